"""Exact resume: a run that was stopped or killed anywhere and continued ends with the bits of one that was not."""

import json
import os
import signal

import pytest
import torch

from lib.config.budget import Budget
from lib.config.errors import Interrupted
from lib.run import checkpoints
from lib.run.directory import RunDirectory
from lib.train import checkpoint, summary
from tests.train.harness import at_step, interrupt, rows, run, send, untimed

EVERY_STEP = 1e-9  # seconds between checkpoints
KINDS = {
    "adamw": {"OPTIMIZER": "adamw", "arm": "V0"},
    # Clipping begins with update 20, and at update 22 the moments are reset, with a warm-up behind it.
    "adamwspam": {"OPTIMIZER": "adamwspam", "SPAM_INTERVAL": 22, "SPAM_WARMUP": 5, "SPAM_THETA": 2.0, "arm": "V3"},
    "muon": {"OPTIMIZER": "muon", "arm": "V6", "RMLP_R_FF": 16},
}


def settings(kind):
    long = {"budget": Budget("iters", 26)} if kind == "adamwspam" else {"budget": Budget("iters", 12)}
    return {"dropout": 0.2, "GRAD_CLIP": 0.5, **KINDS[kind], **long}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """kind → (summary, rows) of the uninterrupted run, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            path = tmp_path_factory.mktemp("straight") / kind
            made[kind] = run(path, **settings(kind)), untimed(path)
        return made[kind]

    return get


def assert_same(path, found, wanted):
    expected, expected_rows = wanted
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert untimed(path) == expected_rows
    same = {"val_loss", "best_val_loss", "iterations", "tokens", "bits_per_byte", "status"}
    assert {k: found[k] for k in same} == {k: expected[k] for k in same}


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("adamw", [1]), ("adamw", [5, 6]), ("adamwspam", [19]), ("adamwspam", [21, 22, 23]), ("muon", [1, 7])],
)
def test_a_run_that_was_stopped_and_continued_ends_with_the_same_bits(tmp_path, straight, monkeypatch, kind, steps):
    path = tmp_path / "r"
    for step in steps:
        interrupt(path, monkeypatch, step, **settings(kind))
        assert checkpoints.listed(path / "checkpoints")[0].name == f"step-{step:08d}"
    assert_same(path, run(path, **settings(kind)), straight(kind))


@pytest.mark.parametrize("budget", [Budget("tokens", 64 * 12), Budget("flops", 64e3 * 12)])
def test_so_does_one_with_a_budget_in_tokens_or_flops(tmp_path, straight, monkeypatch, budget):
    given = {**settings("adamw"), "budget": budget}
    interrupt(tmp_path / "r", monkeypatch, 4, **given)
    assert_same(tmp_path / "r", run(tmp_path / "r", **given), straight("adamw"))


def test_a_signal_before_the_first_step_is_answered_with_a_checkpoint_of_step_zero(tmp_path, straight, monkeypatch):
    from lib.train.session import Session

    begin = Session.begin
    with monkeypatch.context() as patch:
        patch.setattr(Session, "begin", lambda self: (begin(self), send(signal.SIGTERM)()))
        with pytest.raises(Interrupted, match="after step 0"):
            run(tmp_path / "r", **settings("muon"))
    assert_same(tmp_path / "r", run(tmp_path / "r", **settings("muon")), straight("muon"))


def test_a_signal_during_an_evaluation_leaves_it_to_be_made_after_the_resume(tmp_path, straight, monkeypatch):
    from lib.train.evaluation import Evaluator

    original, calls = Evaluator._losses, []

    def losses(self, *given):
        calls.append(1)
        if len(calls) == 15:  # six windows and six more of training, in batches of two: in the third evaluation
            send(signal.SIGUSR1)()
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_losses", losses)
        with pytest.raises(Interrupted, match="SIGUSR1 after step 10"):
            run(tmp_path / "r", **settings("adamw"))
    assert [row["iter"] for row in rows(tmp_path / "r", "eval")] == [0, 5]
    assert_same(tmp_path / "r", run(tmp_path / "r", **settings("adamw")), straight("adamw"))


# -- killed ----------------------------------------------------------------------------------------------------------


def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner, name, count):
    """A patch: the count-th call of owner.name is the process's last."""

    def apply(patch):
        original, calls = getattr(owner, name), []

        def wrapped(*given, **more):
            calls.append(1)
            return die() if len(calls) == count else original(*given, **more)

        patch.setattr(owner, name, wrapped)

    return apply


def half_an_export(patch):
    patch.setattr(torch, "save", lambda state, file: (file.write(b"half"), file.flush(), die()))


MOMENTS = {
    "after a step": lambda patch: at_step(patch, 8, die),
    "before the first checkpoint": lambda patch: at_step(patch, 1, die),
    "between two files of a checkpoint": on_call(checkpoint, "save_file", 10),
    "before the manifest of a checkpoint": on_call(checkpoints, "_seal", 5),
    "before the rename of a checkpoint": on_call(checkpoints, "_free_name", 6),
    "while old checkpoints are removed": on_call(checkpoints, "remove_leftovers", 5),
    "before a row is written": on_call(RunDirectory, "append_metrics", 9),
    "before the export": on_call(checkpoint, "export", 1),
    "in the middle of the export": half_an_export,
    "before the summary": on_call(RunDirectory, "finish", 1),
}


def killed(patch, path, moment, **given):
    """Run in a forked process that kills itself at `moment`."""
    child = os.fork()
    if child == 0:
        try:
            MOMENTS[moment](patch)
            run(path, **given)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_and_continued_ends_with_the_same_bits(tmp_path, straight, monkeypatch, moment):
    given = {**settings("adamw"), "CHECKPOINT_INTERVAL": EVERY_STEP}
    killed(monkeypatch, tmp_path / "r", moment, **given)
    assert_same(tmp_path / "r", run(tmp_path / "r", **given), straight("adamw"))
    left = [p for p in (tmp_path / "r").rglob("*") if p.name.startswith(".") and not p.name.startswith(".lock")]
    assert left == []


def test_a_row_cut_short_by_a_kill_is_written_again(tmp_path, straight, monkeypatch):
    interrupt(tmp_path / "r", monkeypatch, 7, **settings("adamw"))
    with open(tmp_path / "r" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "log", "iter": 8, "train_lo')
    assert_same(tmp_path / "r", run(tmp_path / "r", **settings("adamw")), straight("adamw"))


@pytest.mark.parametrize("harm", ["flip", "truncate"])
def test_a_damaged_checkpoint_is_named_in_the_rows_and_the_one_before_used(tmp_path, straight, monkeypatch, harm):
    given = {**settings("adamw"), "CHECKPOINT_INTERVAL": EVERY_STEP}
    interrupt(tmp_path / "r", monkeypatch, 7, **given)
    newest = checkpoints.listed(tmp_path / "r" / "checkpoints")[0] / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data if harm == "flip" else data[:-9])
    assert_same(tmp_path / "r", run(tmp_path / "r", **given), straight("adamw"))
    notes = [row["note"] for row in rows(tmp_path / "r", "note")]
    assert any("step-00000007 is not used: model.safetensors is damaged" in note for note in notes)
    assert any("continues from step 6" in note for note in notes)


def test_when_all_checkpoints_are_damaged_the_run_begins_again_and_says_so(tmp_path, straight, monkeypatch):
    interrupt(tmp_path / "r", monkeypatch, 7, **settings("adamw"))
    for found in checkpoints.listed(tmp_path / "r" / "checkpoints"):
        (found / "MANIFEST.json").unlink()
    assert_same(tmp_path / "r", run(tmp_path / "r", **settings("adamw")), straight("adamw"))
    assert any("MANIFEST.json is missing" in row["note"] for row in rows(tmp_path / "r", "note"))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path / "r", CHECKPOINT_INTERVAL=EVERY_STEP, KEEP_CHECKPOINTS=3, EVAL_INTERVAL=100)
    names = [p.name for p in checkpoints.listed(tmp_path / "r" / "checkpoints")]
    assert names == ["step-00000012", "step-00000011", "step-00000010"]


def test_a_finished_run_that_is_run_again_repeats_its_summary(tmp_path):
    first = run(tmp_path / "r")
    (tmp_path / "r" / "metrics.json").unlink()
    second = run(tmp_path / "r")
    timed = {"seconds", "wall_seconds", "compile_seconds", "peak_memory_bytes", "tokens_per_second"}
    assert {k: v for k, v in second.items() if k not in timed} == {k: v for k, v in first.items() if k not in timed}
    assert second["forward_time_ms"] == first["forward_time_ms"]


def test_seconds_and_identity_of_a_run_survive_a_resume(tmp_path, monkeypatch):
    interrupt(tmp_path / "r", monkeypatch, 7, **settings("adamw"))
    state = json.loads((checkpoints.listed(tmp_path / "r" / "checkpoints")[0] / "state.json").read_text())
    seen = {}
    original = summary.finish

    def finish(session):
        seen.update(session.fingerprint(), **session.at.state())
        return original(session)

    monkeypatch.setattr("lib.train.loop.finish", finish)
    done = run(tmp_path / "r", **settings("adamw"))
    assert seen["run_id"] == state["run_id"]
    assert seen["wall_seconds"] == state["wall_seconds"] < done["wall_seconds"]
    assert 0 < state["seconds"] < done["seconds"]
