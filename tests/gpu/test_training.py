"""The trainer on CUDA: nothing waits between log points, bad numbers change nothing, several GPUs are one run.

Skipped where there is no GPU. Bits are not compared: attention's backward pass on a GPU adds in no fixed order.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from lib.config.budget import Budget
from lib.config.errors import RunError
from lib.train import checkpoint, device
from lib.train.session import Session
from lib.train.step import Stepper
from tests.train.harness import ROOT, build, interrupt, rows, run, values

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU = {"DEVICE": "cuda", "PRECISION": "bf16", "arm": "V3", "dropout": 0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "adamwspam", "muon"])
@pytest.mark.parametrize("kind", ["iters", "time"])
def test_nothing_waits_for_the_gpu_between_log_points(tmp_path, monkeypatch, optimizer, kind):
    """agree, couple and a step, from the third step on (the first ones allocate), under torch's own alarm."""
    watched = []

    def strict(name):
        original = getattr(Session, name)

        def under_alarm(self, *given):
            if not 3 <= self.at.step < 20:
                return original(self, *given)
            watched.append(name)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return original(self, *given)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(Session, name, under_alarm)

    for name in ("agree", "couple", "train_step"):
        strict(name)
    spam = {"SPAM_INTERVAL": 5, "SPAM_WARMUP": 3} if optimizer == "adamwspam" else {}
    budget = Budget("iters", 24) if kind == "iters" else Budget("time", 2)
    run(
        tmp_path / "r", budget=budget, OPTIMIZER=optimizer, LOG_INTERVAL=100, EVAL_INTERVAL=10**6,
        COUPLING_WARMUP=1.0, **spam, **GPU,
    )  # fmt: skip
    assert set(watched) == {"agree", "couple", "train_step"}


def test_a_model_learns_as_on_the_cpu(tmp_path):
    gpu = run(tmp_path / "gpu", DEVICE="cuda", arm="V3", budget=Budget("iters", 40))
    cpu = run(tmp_path / "cpu", DEVICE="cpu", arm="V3", budget=Budget("iters", 40))
    assert gpu["device"] == torch.cuda.get_device_name()
    assert gpu["val_loss"] == pytest.approx(cpu["val_loss"], abs=0.05)
    first = [rows(tmp_path / where, "log")[0]["train_loss_step"] for where in ("gpu", "cpu")]
    assert first[0] == pytest.approx(first[1], abs=1e-4)


def test_rows_have_mfu_where_the_peak_is_known_and_memory_of_the_gpu(tmp_path):
    run(tmp_path / "r", budget=Budget("iters", 5), **GPU)
    peak = device.peak_flops(torch.device("cuda"), "bf16")
    for row in rows(tmp_path / "r", "log"):
        assert row["forward_time_ms"] > 0
        assert 0 < row["memory_bytes"] <= torch.cuda.max_memory_allocated()
        assert row["mfu"] == (pytest.approx(row["tokens_per_second"] * 1000.0 / peak) if peak else None)


def test_a_compiled_run_learns_and_compiles_nothing_once_the_clock_runs(tmp_path, monkeypatch):
    if device.missing_compiler(torch.device("cuda")):
        pytest.skip("no compiler for the GPU")
    counted, begin = [], Session.begin
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def noted(self):
        begin(self)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    monkeypatch.setattr(Session, "begin", noted)
    summary = run(tmp_path / "r", budget=Budget("iters", 40), COMPILE=True, COUPLING_WARMUP=1.0, **GPU)
    assert summary["compiled"] is True
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted[0] == 2
    assert summary["val_loss"] < 3.5


@pytest.mark.parametrize("optimizer", ["adamw", "adamwspam", "muon"])
def test_a_bad_gradient_is_found_at_the_next_log_point_and_no_weight_has_changed(tmp_path, monkeypatch, optimizer):
    model, original, before = build(values()), Stepper._guard, []

    def guard(self, step):
        if step == 3:
            before.append(checkpoint.weights_sha256(model))
            self._parameters[0].grad.view(-1)[:1].fill_(float("nan"))
            self.grad_norm = self._clip()
        original(self, step)

    monkeypatch.setattr(Stepper, "_guard", guard)
    with pytest.raises(RunError, match="step 4: the gradient norm is not finite"):
        run(tmp_path / "r", model=model, DEVICE="cuda", OPTIMIZER=optimizer, LOG_INTERVAL=9, EVAL_INTERVAL=100)
    assert checkpoint.weights_sha256(model) == before[0]


def test_a_run_that_was_stopped_continues_where_it_was(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", budget=Budget("iters", 20), **GPU)
    interrupt(tmp_path / "r", monkeypatch, 7, signal.SIGTERM, budget=Budget("iters", 20), **GPU)
    again = run(tmp_path / "r", budget=Budget("iters", 20), **GPU)
    assert again["iterations"] == 20
    assert again["val_loss"] == pytest.approx(whole["val_loss"], abs=0.05)
    a, b = (rows(tmp_path / name, "log") for name in ("whole", "r"))
    assert [row["iter"] for row in a] == [row["iter"] for row in b]
    assert a[7]["train_loss_step"] == pytest.approx(b[7]["train_loss_step"], abs=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_are_one_run(tmp_path):
    given = {"DEVICE": "cuda", "arm": "V3"}
    alone = run(tmp_path / "one", **given)
    done = subprocess.run(
        [sys.executable, "tests/train/worker.py", "2", str(tmp_path / "two"), json.dumps(given)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert both["world_size"] == 2
    assert both["val_loss"] == pytest.approx(alone["val_loss"], abs=0.02)
