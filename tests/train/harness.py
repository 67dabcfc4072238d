"""A tiny GPT-2, a tiny corpus, and one call that trains the one on the other into a run directory."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2.model import GPT2, GPT2Config
from gpt2.ra_patch import gate_stats, patch_model, set_ra_mlp_coupling_scale
from lib.config.budget import Budget
from lib.config.errors import Interrupted
from lib.config.resolve import Resolver
from lib.run.directory import RunDirectory, read_rows
from lib.train.config import Hooks, TrainConfig
from lib.train.loop import train
from lib.train.step import Stepper

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, BLOCK = 64, 16
SPEC = "a" * 64
TIMINGS = {"seconds", "forward_time_ms", "tokens_per_second", "memory_bytes", "mfu"}
# One CPU thread, no compiler, no checkpoints but the last, four rows a step in two micro-batches.
SETTINGS = {
    "GPT2_DEVICE": "cpu",
    "GPT2_THREADS": 1,
    "GPT2_COMPILE": False,
    "GPT2_PRECISION": "fp32",
    "GPT2_TOKENS_PER_STEP": 4 * BLOCK,
    "GPT2_MICRO_BATCH": 2,
    "GPT2_LEARNING_RATE": 1e-2,
    "GPT2_MIN_LR": 1e-3,
    "GPT2_OPTIMIZER": "adamw",
    "GPT2_LOG_INTERVAL": 1,
    "GPT2_EVAL_INTERVAL": 5,
    "GPT2_EVAL_WINDOWS": 6,
    "GPT2_CHECKPOINT_INTERVAL": 0,
    "GPT2_DIST_TIMEOUT": 30,
}


@dataclass(frozen=True)
class Corpus:
    """What the trainer asks of a dataset, in memory."""

    train: Any
    val: Any
    vocab_size: int = VOCABULARY
    token_bytes: Any = field(default_factory=lambda: np.arange(VOCABULARY) ** 2 % 13)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.train.tobytes() + self.val.tobytes()).hexdigest()


def corpus(seed: int = 0, train: int = 4000, val: int = 400) -> Corpus:
    """Tokens that mostly count upwards, so that there is something to learn."""
    steps = np.random.default_rng(seed).choice([1, 1, 1, 7], train + val)
    tokens = (np.cumsum(steps) % VOCABULARY).astype(np.uint16)
    return Corpus(tokens[:train], tokens[train:])


@functools.cache
def resolver() -> Resolver:
    return Resolver(ROOT)


@functools.cache
def defaults() -> dict[str, Any]:
    return dict(resolver().resolve([])[0])


@functools.cache
def mechanism(step: str) -> dict[str, Any]:
    return resolver().step_values(step)


def values(arm: str = "V0", **given: Any) -> dict[str, Any]:
    """Resolved values; `given` as LEARNING_RATE=1e-3 or SPAM_INTERVAL=4."""
    named = {key if key in defaults() or not is_training(key) else f"GPT2_{key}": v for key, v in given.items()}
    found = {**defaults(), **SETTINGS, **mechanism(arm)}
    if named.get("GPT2_OPTIMIZER") == "adamwspam":
        found.update(SPAM_THETA=50.0, SPAM_INTERVAL=1000, SPAM_WARMUP=1000)
    elif named.get("GPT2_OPTIMIZER") == "muon":
        found.update(GPT2_MUON_LR=0.02)
    return {**found, **named}


def is_training(key: str) -> bool:
    return not key.startswith(("RA_", "RMLP_", "SPAM_"))


def build(values: dict[str, Any], dropout: float = 0.0, layers: int = 2, width: int = 32, seed: int = 0) -> GPT2:
    sizes = {"n_layer": layers, "n_head": 4, "n_embd": width, "block_size": BLOCK}
    config = GPT2Config(VOCABULARY, **sizes, dropout=dropout, bias=True)
    model = GPT2(config, generator=torch.Generator().manual_seed(seed))
    patch_model(model, values, torch.Generator().manual_seed(seed + 1))
    return model


def run(
    path: Path,
    *,
    arm: str = "V0",
    budget: Budget | None = None,
    data: Corpus | None = None,
    model: torch.nn.Module | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    spec_hash: str = SPEC,
    hooks: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train (or continue) in `path`; the summary. On ranks other than the first the directory is only named."""
    given = values(arm, **settings)
    if model is None:
        model = build(given, dropout)
    told = {
        "block_size": BLOCK,
        "flops_per_token": 1000.0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "on_progress": lambda scale: set_ra_mlp_coupling_scale(model, scale),
        "stats": lambda: gate_stats(model),
    }
    identity = {"step": arm, "optimizer": given["GPT2_OPTIMIZER"], "seed": seed, "description": "a test"}
    directory = RunDirectory(path)
    if os.environ.get("RANK", "0") == "0":
        directory.open({"spec_hash": spec_hash}, {"commit": "c"})
    try:
        return train(
            model,
            data or corpus(),
            config=TrainConfig.read(given),
            budget=budget or Budget("iters", 12),
            run=directory,
            hooks=Hooks(**{**told, **(hooks or {})}),
            identity={**identity, "spec_hash": spec_hash, "fairness_hash": "f" * 64},
        )
    finally:
        directory.close()


def rows(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, of some kinds or all."""
    return [row for row in read_rows(path / "metrics.jsonl") if not kinds or row["kind"] in kinds]


def untimed(path: Path) -> list[dict[str, Any]]:
    """Log and evaluation rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows(path, "log", "eval")]


def at_step(monkeypatch: Any, step: int, act: Any) -> None:
    """Do `act()` when training has just done its `step`-th step (counted from the run's beginning), once."""
    original = Stepper.run

    def wrapped(self: Stepper, number: int, *rest: Any, **more: Any) -> None:
        original(self, number, *rest, **more)
        if number + 1 == step:
            monkeypatch.setattr(Stepper, "run", original)
            act()

    monkeypatch.setattr(Stepper, "run", wrapped)


def interrupt(path: Path, monkeypatch: Any, step: int, number: int = signal.SIGTERM, **given: Any) -> Interrupted:
    """Run until the signal comes after `step` steps; the error it ends with."""
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        with pytest.raises(Interrupted) as caught:
            run(path, **given)
    return caught.value


def send(number: int) -> Any:
    """An act: this process gets the signal."""
    return lambda: os.kill(os.getpid(), number)
