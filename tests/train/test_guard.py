"""A loss or gradient that is not finite: no weight changes any more, and the run says where it was."""

import json

import pytest
import torch

from lib.config.errors import RunError
from lib.run import checkpoints, directory
from lib.train import checkpoint
from lib.train.session import Session
from lib.train.step import Stepper
from tests.train.harness import SPEC, at_step, build, run, values


def spoil(monkeypatch, step, where, value):
    """From `step` (counted from 1) on, training's loss or a gradient is `value`."""
    original = Stepper._backward

    def backward(self, number, *rest, **more):
        original(self, number, *rest, **more)
        if number + 1 >= step:
            target = self.losses[-1:] if where == "loss" else self._parameters[3].grad.view(-1)[:1]
            target.fill_(value)

    monkeypatch.setattr(Stepper, "_backward", backward)


@pytest.mark.parametrize("optimizer", ["adamw", "adamwspam", "muon"])
@pytest.mark.parametrize("where", ["loss", "gradient norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_weight_changes_from_that_step_on_and_the_error_names_it(tmp_path, monkeypatch, optimizer, where, value):
    path, model = tmp_path / "r", build(values())
    weights = []
    original = Stepper._guard

    def guard(self, step):
        weights.append(checkpoint.weights_sha256(model))
        original(self, step)

    monkeypatch.setattr(Stepper, "_guard", guard)
    spoil(monkeypatch, 4, where, value)
    with pytest.raises(RunError, match=f"step 4: the {where} is not finite") as caught:
        run(path, model=model, OPTIMIZER=optimizer, LOG_INTERVAL=100)
    assert caught.value.exit_code == 1
    assert len(weights) == 4  # a CPU run looks after every step
    assert checkpoint.weights_sha256(model) == weights[3]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "step 4" in json.loads((path / "failure.json").read_text())["error"]
    assert directory.state(path, SPEC) == "failed"
    assert checkpoints.listed(path / "checkpoints") == []


def test_where_nobody_looks_the_steps_after_it_change_nothing_either(tmp_path, monkeypatch):
    """As on a GPU, where the loop looks only at log points: weights stay, and the first bad step is named."""
    model, seen = build(values()), []
    original, check = Stepper.run, Session.check

    def noted(self, step, *rest, **more):
        original(self, step, *rest, **more)
        seen.append(checkpoint.weights_sha256(model))

    monkeypatch.setattr(Stepper, "run", noted)
    monkeypatch.setattr(Session, "check", lambda self: check(self) if self.at.step == 9 else None)
    spoil(monkeypatch, 4, "gradient norm", float("nan"))
    with pytest.raises(RunError, match="step 4: the gradient norm"):
        run(tmp_path / "r", model=model, LOG_INTERVAL=9, EVAL_INTERVAL=100)
    assert len(seen) == 9
    assert len(set(seen[:3])) == 3
    assert len(set(seen[2:])) == 1


def test_a_run_that_failed_so_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    path = tmp_path / "r"
    with monkeypatch.context() as patch:
        spoil(patch, 4, "loss", float("nan"))
        with pytest.raises(RunError):
            run(path, CHECKPOINT_INTERVAL=1e-9)
    assert checkpoints.listed(path / "checkpoints")[0].name == "step-00000003"
    assert run(path)["status"] == "done"
    assert not (path / "failure.json").exists()


def test_a_validation_loss_that_is_not_finite_fails_the_run(tmp_path, monkeypatch):
    from lib.train.evaluation import Evaluator

    original = Evaluator.run
    monkeypatch.setattr(Evaluator, "run", lambda *given: {**original(*given), "val_loss": float("nan")})
    with pytest.raises(RunError, match="validation loss after step 0 is nan"):
        run(tmp_path / "r")


def test_a_mistake_in_the_code_is_recorded_and_shown_as_it_is(tmp_path):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3, 3))

        def forward(self, x, y, **more):
            raise IndexError("of my own making")

    with pytest.raises(IndexError, match="of my own making"):
        run(tmp_path / "r", model=Broken(), hooks={"stats": dict, "on_progress": lambda scale: None})
    said = json.loads((tmp_path / "r" / "failure.json").read_text())["error"]
    assert said == "IndexError: of my own making"


def test_running_out_of_memory_names_the_way_out(tmp_path, monkeypatch):
    def full(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    monkeypatch.setattr(Stepper, "run", full)
    with pytest.raises(RunError, match=r"out of memory \(CUDA.*MiB\.\); set GPT2_MICRO_BATCH to a smaller divisor"):
        run(tmp_path / "r")
    assert "GPT2_MICRO_BATCH" in json.loads((tmp_path / "r" / "failure.json").read_text())["error"]


def test_a_disk_that_is_full_stops_the_run_with_the_cause(tmp_path, monkeypatch):
    def fill(what):
        (tmp_path / what).unlink()
        (tmp_path / what).symlink_to("/dev/full")

    at_step(monkeypatch, 2, lambda: fill("metrics.jsonl"))
    with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: No space left"):
        run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    fill("training.log")
    with pytest.raises(RunError, match=r"cannot write .*training.log: No space left"):
        run(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path, monkeypatch):
    path, original, calls = tmp_path / "r", checkpoint.save_file, []

    def save(tensors, file):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        original(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(RunError, match=r"No space left on device; older checkpoints are intact"):
        run(path, CHECKPOINT_INTERVAL=1e-9, EVAL_INTERVAL=100)
    assert [p.name for p in checkpoints.listed(path / "checkpoints")] == ["step-00000001", "step-00000000"]
