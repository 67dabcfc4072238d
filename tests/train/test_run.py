"""A whole run: what it learns, what it writes down, what it leaves behind."""

import io
import json
import math
import os
import sys
import threading

import numpy as np
import pytest
import torch

from lib.config.budget import Budget
from lib.config.errors import DataError
from lib.data.batches import Batches
from lib.run import directory
from lib.train import checkpoint
from tests.train.harness import BLOCK, SPEC, Corpus, build, corpus, rows, run, values

LOG = {"train_loss_step", "learning_rate", "grad_norm", "forward_time_ms", "tokens_per_second", "mfu", "memory_bytes"}
EVAL = {"train_loss", "val_loss", "train_perplexity", "val_perplexity", "bits_per_byte", "best_val_loss"}
GATES = {f"{g}_{s}" for g in ("unified_ra_w_std", "unified_ra_w_rec") for s in ("mean", "std", "min", "max")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "V1"
    return path, run(path, arm="V1", budget=Budget("iters", 60), LOG_INTERVAL=3, EVAL_INTERVAL=20)


def test_a_tiny_model_learns(finished):
    path, summary = finished
    losses = [row["train_loss_step"] for row in rows(path, "log")]
    assert math.log(64) - 0.3 < losses[0] < math.log(64) + 0.3
    assert summary["val_loss"] < 2.2
    assert np.mean(losses[-5:]) < 2.4


def test_every_log_row_is_complete(finished):
    path, _ = finished
    found = rows(path, "log")
    assert [row["iter"] for row in found] == list(range(3, 61, 3))
    for row in found:
        assert row.keys() >= LOG | GATES
        assert row["mfu"] is None
        assert row["tokens"] == row["iter"] * 64
        assert row["progress"] == row["iter"] / 60
        assert min(row["forward_time_ms"], row["tokens_per_second"], row["memory_bytes"], row["grad_norm"]) > 0


def test_every_evaluation_row_is_complete(finished):
    path, _ = finished
    found = rows(path, "eval")
    assert [row["iter"] for row in found] == [0, 20, 40, 60]
    for row in found:
        assert row.keys() >= EVAL | GATES
        assert row["val_perplexity"] == pytest.approx(math.exp(row["val_loss"]))
    best = [row["best_val_loss"] for row in found]
    assert best == [min(row["val_loss"] for row in found[: n + 1]) for n in range(4)]


def test_a_row_carries_gate_statistics_only_of_a_model_with_gates(tmp_path):
    run(tmp_path / "r", budget=Budget("iters", 1))
    assert not any(key.startswith(("unified_ra", "rmlp")) for row in rows(tmp_path / "r") for key in row)


def test_the_summary_is_complete_and_strict_json(finished):
    path, returned = finished

    def refuse(word):
        raise AssertionError(word)

    summary = json.loads((path / "metrics.json").read_text(), parse_constant=refuse)
    assert summary == returned
    assert summary["status"] == "done"
    assert summary.keys() >= EVAL | GATES
    assert {"step", "optimizer", "seed", "description", "spec_hash", "fairness_hash"} <= summary.keys()
    assert (summary["iterations"], summary["tokens"], summary["flops"]) == (60, 3840, 3.84e6)
    assert summary["world_size"] == summary["threads"] == 1
    assert summary["micro_batch"] == 2
    assert summary["compiled"] is False
    assert summary["mfu"] is None
    assert 0 < summary["seconds"] <= summary["wall_seconds"]
    times = sorted(row["forward_time_ms"] for row in rows(path, "log"))
    assert times[0] <= summary["forward_time_ms"] <= times[-1]
    assert directory.summary_if_done(path, SPEC) == summary


def test_model_pt_loads_without_pickle_and_is_what_was_trained(finished):
    path, summary = finished
    state = torch.load(path / "model.pt", weights_only=True)
    model = build(values("V1"))
    model.load_state_dict(state)
    assert checkpoint.weights_sha256(model) == summary["weights_sha256"]
    assert not list(path.glob(".*.tmp"))


def test_the_last_rows_and_the_summary_agree(finished):
    path, summary = finished
    last = rows(path, "eval")[-1]
    assert all(summary[key] == last[key] for key in EVAL)


def test_training_log_holds_what_the_terminal_showed(tmp_path, capsys):
    run(tmp_path / "r", budget=Budget("iters", 2))
    shown = capsys.readouterr().out
    assert (tmp_path / "r" / "training.log").read_text() == shown
    assert "val loss" in shown
    assert "tok/s" in shown


def test_a_stdout_that_closes_does_not_end_the_run(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    assert run(tmp_path / "r")["status"] == "done"
    assert len((tmp_path / "r" / "training.log").read_text().splitlines()) == 16


@pytest.mark.parametrize("budget", [Budget("iters", 7), Budget("tokens", 64 * 6.5), Budget("flops", 64e3 * 6.01)])
def test_a_budget_is_spent_in_whole_steps_rounded_up(tmp_path, budget):
    summary = run(tmp_path / "r", budget=budget)
    assert summary["iterations"] == 7
    assert rows(tmp_path / "r", "log")[-1]["learning_rate"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("name", "decay"), [("cosine", None), ("wsd", 0.5)])
def test_the_learning_rate_follows_the_budget_and_not_its_unit(tmp_path, name, decay):
    rates = []
    for number, budget in enumerate((Budget("iters", 10), Budget("tokens", 640), Budget("flops", 640e3))):
        run(tmp_path / str(number), budget=budget, SCHEDULE=name, DECAY=decay, WARMUP=0.2)
        rates.append([row["learning_rate"] for row in rows(tmp_path / str(number), "log")])
    assert rates[0] == rates[1] == rates[2]
    assert rates[0][0] == pytest.approx(0.5e-2)
    assert max(rates[0]) == rates[0][1] == 1e-2
    assert rates[0][-1] == pytest.approx(1e-3)
    if name == "wsd":
        assert rates[0][1:5] == [1e-2] * 4
        assert rates[0][5] == pytest.approx(0.82e-2)
    else:
        assert rates[0][5] == pytest.approx(1e-3 + 9e-3 * 0.5)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_the_coupling_scale_follows_the_budget(tmp_path, warmup):
    told = []
    run(tmp_path / "r", budget=Budget("iters", 10), COUPLING_WARMUP=warmup, hooks={"on_progress": told.append})
    expected = {0.0: [1.0], 0.5: [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 1.0: [n / 10 for n in range(11)]}
    assert told == pytest.approx(expected[warmup])


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_loss_and_gradient_of_a_step_are_those_of_the_mean_over_all_its_rows(tmp_path, micro_batch):
    """A float64 oracle: the first step from the initial weights and the rows that Batches gives."""
    run(tmp_path / "r", budget=Budget("iters", 1), MICRO_BATCH=micro_batch)
    x, y = Batches(corpus().train, BLOCK, 0).rows(0, 0, 4)
    model = build(values()).double()
    logits = model(x).log_softmax(-1)
    wanted = -logits.gather(-1, y[..., None]).mean()
    wanted.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    (row,) = rows(tmp_path / "r", "log")
    assert row["train_loss_step"] == pytest.approx(wanted.item(), abs=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_batches_come_from_the_hooks_seed_when_there_is_one(tmp_path):
    losses = []
    for name, seed, hooks in (("a", 3, {}), ("b", 3, {"seed": 5}), ("c", 5, {})):
        run(tmp_path / name, seed=seed, budget=Budget("iters", 2), hooks=hooks)
        losses.append([row["train_loss_step"] for row in rows(tmp_path / name, "log")])
    assert losses[1] == losses[2] != losses[0]


def test_a_split_too_short_for_one_window_is_a_data_error(tmp_path):
    few = Corpus(corpus().train, corpus().val[:10])
    with pytest.raises(DataError, match="10 tokens"):
        run(tmp_path / "r", data=few)


def test_no_thread_and_no_file_is_left_open_by_a_run(tmp_path):
    run(tmp_path / "warm", budget=Budget("iters", 1))
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    run(tmp_path / "r", budget=Budget("iters", 1))
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
