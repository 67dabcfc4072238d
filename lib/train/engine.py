"""The model made ready to compute: compiled where asked and possible, with what trains it and what evaluates it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.optimizers.build import Optimizers
from lib.train import device
from lib.train.config import TrainConfig
from lib.train.distributed import World
from lib.train.evaluation import Evaluator, evaluator
from lib.train.microbatch import Split
from lib.train.step import Stepper

Note = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """The two ways through one model, and the seconds it took to compile and rehearse them."""

    stepper: Stepper
    evaluator: Evaluator
    compiled: bool
    seconds: float


def prepare(
    model: nn.Module, optimizers: Optimizers, dataset: Any, config: TrainConfig, block_size: int, split: Split,
    seed: int, world: World, note: Note,
) -> Engine:  # fmt: skip
    """An engine that has paid for compilation and first use, before the budget's clock starts (collective).

    Where the compiler is missing or fails, on whatever rank, all go without, and `note` says why.
    """
    began = time.monotonic()

    def build(forward: Any) -> tuple[Stepper, Evaluator]:
        stepper = Stepper(
            world.wrap(forward), optimizers, world, split.accumulation, config.precision, config.grad_clip, seed
        )
        windows = config.eval_windows
        return stepper, evaluator(
            model, forward, world, config.precision, block_size, split.micro_batch, dataset, windows
        )

    compiled = config.machine.compile and _has_compiler(world, note)
    if compiled:
        parts = build(torch.compile(model, fullgraph=True, dynamic=False))
        wrong = rehearse(*parts, optimizers, world, split, block_size)
        if wrong:
            note(f"torch.compile is off: {wrong}")
        compiled = world.agree(bool(wrong))[0] == 0
        if not compiled:
            torch._dynamo.reset()
    if not compiled:
        parts = build(model)
        if world.device.type == "cuda":  # a CPU has nothing to set up that a step would notice
            parts[0].rehearse(*_tokens(split.micro_batch, block_size, world))
            optimizers.zero_grad()
    device.settle(world.device)
    return Engine(*parts, compiled, time.monotonic() - began)


def _has_compiler(world: World, note: Note) -> bool:
    missing = device.missing_compiler(world.device)
    if missing:
        note(f"torch.compile is off: {missing}")
    return world.agree(bool(missing))[0] == 0


def rehearse(
    stepper: Stepper, evaluation: Evaluator, optimizers: Optimizers, world: World, split: Split, block_size: int
) -> str:
    """Compile by running, with gradients thrown away and no word between ranks; what went wrong, or ""."""
    try:
        stepper.rehearse(*_tokens(split.micro_batch, block_size, world))
        evaluation.rehearse()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        return f"{type(error).__name__}: {said}"
    finally:
        optimizers.zero_grad()
    return ""


def _tokens(rows: int, block_size: int, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    # Two tensors, as in a step: the compiler makes another graph for one that comes twice.
    x, y = (torch.zeros(rows, block_size, dtype=torch.long, device=world.device) for _ in range(2))
    return x, y
