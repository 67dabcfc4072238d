"""Compilation: paid for before the clock, switched off with one note where it cannot be, exact when it is on."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lib.config.budget import Budget
from lib.config.errors import RunError
from lib.train import device, engine
from lib.train.evaluation import Evaluator
from lib.train.session import Session
from tests.train.harness import ROOT, interrupt, rows, run, untimed

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(device.missing_compiler(CPU) != "", reason="no C++ compiler or Python headers")


def notes(path):
    return [row["note"] for row in rows(path, "note")]


def test_without_a_compiler_the_run_goes_on_with_one_note(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    summary = run(tmp_path / "r", COMPILE=True)
    assert summary["compiled"] is False
    assert notes(tmp_path / "r") == ["torch.compile is off: no C++ compiler here"]


def test_a_compiler_that_fails_is_one_note_and_the_numbers_of_an_eager_run(tmp_path, monkeypatch):
    def broken(model, **more):
        def forward(*given, **options):
            raise RuntimeError("cannot lower this\nand a long story")

        return forward

    monkeypatch.setattr(device, "missing_compiler", lambda where: "")
    monkeypatch.setattr(torch, "compile", broken)
    run(tmp_path / "eager")
    summary = run(tmp_path / "r", COMPILE=True)
    assert summary["compiled"] is False
    assert notes(tmp_path / "r") == ["torch.compile is off: RuntimeError: cannot lower this"]
    assert untimed(tmp_path / "r") == untimed(tmp_path / "eager")


def test_one_that_fails_only_in_evaluation_is_off_for_all(tmp_path, monkeypatch):
    """What is compiled is tried both ways before the clock starts."""

    def rehearse(self):
        if hasattr(self.forward, "compiled"):
            raise RuntimeError("no graph for this")

    def compiled(model, **more):
        def forward(*given, **options):
            return model(*given, **options)

        forward.compiled = True
        return forward

    monkeypatch.setattr(Evaluator, "rehearse", rehearse)
    monkeypatch.setattr(device, "missing_compiler", lambda where: "")
    monkeypatch.setattr(torch, "compile", compiled)
    assert run(tmp_path / "r", COMPILE=True)["compiled"] is False
    assert notes(tmp_path / "r") == ["torch.compile is off: RuntimeError: no graph for this"]


def test_running_out_of_memory_in_compilation_is_no_reason_to_go_on_without(tmp_path, monkeypatch):
    def full(model, **more):
        def forward(*given, **options):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return forward

    monkeypatch.setattr(device, "missing_compiler", lambda where: "")
    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(RunError, match="GPT2_MICRO_BATCH"):
        run(tmp_path / "r", COMPILE=True)


def test_a_rehearsal_leaves_no_gradient_and_no_difference(tmp_path, monkeypatch):
    seen = []
    original = engine.rehearse

    def rehearse(stepper, evaluation, optimizers, *rest):
        said = original(stepper, evaluation, optimizers, *rest)
        seen.append([p.grad for p in optimizers.names])
        return said

    monkeypatch.setattr(engine, "rehearse", rehearse)
    monkeypatch.setattr(device, "missing_compiler", lambda where: "")
    monkeypatch.setattr(torch, "compile", lambda model, **more: model)
    run(tmp_path / "eager", dropout=0.1)
    summary = run(tmp_path / "r", dropout=0.1, COMPILE=True)
    assert summary["compiled"] is True
    assert all(gradient is None for gradient in seen[0])
    assert untimed(tmp_path / "r") == untimed(tmp_path / "eager")


@pytest.mark.parametrize(
    ("tools", "headers", "said"),
    [
        ([], True, "no C++ compiler here"),
        (["g++"], True, ""),
        (["clang++"], True, ""),
        (["g++"], False, "no Python headers here (Python.h)"),
    ],
)
def test_what_a_cpu_needs_to_compile(tmp_path, monkeypatch, tools, headers, said):
    for tool in tools:
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(device.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert device.missing_compiler(CPU) == said


def test_what_a_gpu_needs_to_compile(tmp_path, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    assert device.missing_compiler(cuda) == "no triton here"
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert device.missing_compiler(cuda) == "no C compiler here (triton needs one)"
    monkeypatch.setenv("CC", "cc")
    assert device.missing_compiler(cuda) == ""


EAGER = """
import sys
from lib.config.budget import Budget
from lib.run.directory import RunDirectory
from lib.train.config import Hooks, TrainConfig
from lib.train.loop import train
from tests.train.plain import VALUES, Plain, data
run = RunDirectory(__import__("pathlib").Path(sys.argv[1]))
run.open({"spec_hash": "a"}, {})
identity = {"step": "V0", "optimizer": "muon", "seed": 0, "description": "", "spec_hash": "a", "fairness_hash": "b"}
hooks = Hooks(block_size=8, flops_per_token=1.0, parameters=1)
train(Plain(), data(), config=TrainConfig.read(VALUES), budget=Budget("iters", 2), run=run, hooks=hooks,
      identity=identity)
heavy = {"torch._dynamo", "torch._inductor", "sympy", "wandb", "tensorboard", "torch.distributed.elastic",
         "torch.utils.tensorboard", "scipy", "transformers"}
print(sorted(heavy & set(sys.modules)))
"""


def test_an_eager_run_imports_neither_compiler_nor_trackers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EAGER, str(tmp_path / "r")], capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# -- with a compiler -------------------------------------------------------------------------------------------------


GIVEN = {"arm": "V3", "dropout": 0.1, "COMPILE": True}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "r"
    torch._dynamo.reset()
    return path, run(path, **GIVEN)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_learns_like_an_eager_one(tmp_path, compiled):
    path, summary = compiled
    assert summary["compiled"] is True
    assert summary["compile_seconds"] > summary["seconds"]  # the clock did not see it
    assert notes(path) == []
    eager = run(tmp_path / "eager", arm="V3", dropout=0.0)
    again = run(tmp_path / "again", arm="V3", dropout=0.0, COMPILE=True)
    assert again["val_loss"] == pytest.approx(eager["val_loss"], abs=1e-4)


@pytest.mark.slow
@needs_compiler
def test_nothing_is_compiled_once_the_clock_runs(tmp_path, monkeypatch):
    """Changing couplings, dropout seeds, micro-batches and evaluations: two graphs, both from the rehearsal."""
    torch._dynamo.reset()
    counted = []
    begin = Session.begin

    def noted(self):
        begin(self)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    monkeypatch.setattr(Session, "begin", noted)
    torch._dynamo.utils.counters.clear()
    run(tmp_path / "r", COUPLING_WARMUP=1.0, **GIVEN)
    assert counted == [2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_resumes_bit_for_bit(tmp_path, monkeypatch, compiled):
    path, summary = compiled
    interrupt(tmp_path / "r", monkeypatch, 5, **GIVEN)
    again = run(tmp_path / "r", **GIVEN)
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert untimed(tmp_path / "r") == untimed(path)
    assert again["compile_seconds"] > 0


@pytest.mark.slow
@needs_compiler
def test_a_resume_without_the_compiler_says_so(tmp_path, monkeypatch):
    interrupt(tmp_path / "r", monkeypatch, 5, **GIVEN)
    run(tmp_path / "r", **{**GIVEN, "COMPILE": False}, budget=Budget("iters", 12))
    assert "since the checkpoint, compiled was True, is False: equal results, not equal bits" in notes(tmp_path / "r")


@pytest.mark.slow
@needs_compiler
def test_two_compiled_ranks_are_one_compiled_process_bit_for_bit(tmp_path, compiled):
    path, summary = compiled
    done = subprocess.run(
        [sys.executable, "tests/train/worker.py", "2", str(tmp_path / "r"), json.dumps(GIVEN)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert ranks["compiled"] is True
    assert untimed(tmp_path / "r") == untimed(path)
    assert ranks["weights_sha256"] == summary["weights_sha256"]
