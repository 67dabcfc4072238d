"""Validation on fixed windows: the same tokens for every arm, step, rank count and machine.

val_loss is the mean over all targets in nats; bits per byte divides the same sum by ln 2 and the targets' UTF-8 bytes.
train_loss is the same measure (no dropout, these weights) on up to 20 fixed windows of the training split: comparable
with val_loss, where a running mean over dropped-out, moving weights is not. Whole batches are dealt to ranks and their
sums added in window order in float64, so the number of ranks changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.data.batches import windows
from lib.train.device import autocast
from lib.train.distributed import World

TRAIN_WINDOWS = 20


class Evaluator:
    """Evaluates `model` (compiled or not, never wrapped for gradients) on windows of two token arrays.

    `forward` is called as forward(x, y, reduction="none") and returns losses [rows, T]; `model` is switched to
    evaluation mode around it. `val_starts` and `train_starts` are the windows' first tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Tensor],
        world: World,
        precision: str,
        block_size: int,
        rows: int,
        val: tuple[Any, Sequence[int]],
        train: tuple[Any, Sequence[int]],
        token_bytes: Any,
    ) -> None:
        self.model, self.forward, self.world, self.precision = model, forward, world, precision
        self.block_size, self.rows = block_size, rows
        self.val, self.train = val, train
        self.windows = len(val[1])
        self.reduced = False  # fewer windows than the split has
        tokens, starts = val
        counts = np.asarray(token_bytes, dtype=np.int64)
        self.target_bytes = sum(int(counts[tokens[s + 1 : s + 1 + block_size]].sum()) for s in starts)

    def run(self, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """val_loss, train_loss, perplexities and bits per byte; None when `stopped` (collective) said so midway."""
        was_training = self.model.training
        self.model.eval()
        try:
            val = self._nats(*self.val, stopped)
            train = self._nats(*self.train, stopped) if val is not None else None
        finally:
            self.model.train(was_training)
        if val is None or train is None:
            return None
        val_loss = val / (self.windows * self.block_size)
        train_loss = train / (len(self.train[1]) * self.block_size)
        return {
            "val_loss": val_loss,
            "train_loss": train_loss,
            "val_perplexity": perplexity(val_loss),
            "train_perplexity": perplexity(train_loss),
            "bits_per_byte": val / (math.log(2) * self.target_bytes) if self.target_bytes else math.nan,
        }

    @torch.no_grad()
    def rehearse(self) -> None:
        """One forward pass on this rank alone, for its costs."""
        was_training = self.model.training
        self.model.eval()
        try:
            self._losses(self.val[0], list(self.val[1][: self.rows]))
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def _nats(self, tokens: Any, starts: Sequence[int], stopped: Callable[[], bool]) -> float | None:
        """Sum of losses over all windows, in nats."""
        count = -(-len(starts) // self.rows)
        table = torch.zeros(count, self.rows, dtype=torch.float64, device=self.world.device)
        for first in range(0, count, self.world.size):
            if stopped():
                return None
            batch = first + self.world.rank
            if batch < count:
                chosen = list(starts[batch * self.rows : (batch + 1) * self.rows])
                table[batch, : len(chosen)] = self._losses(tokens, chosen).double().sum(dim=1)
        total = torch.stack(self.world.gather(table)).sum(dim=0)  # every cell is one rank's; the others hold zero
        return float(total.sum())

    def _losses(self, tokens: Any, starts: list[int]) -> Tensor:
        """Losses [len(starts), T] of the windows that begin at `starts`, at most `rows` of them."""
        # A short batch is filled up with its last window: one shape for the compiler, the same kernels for all rows.
        filled = starts + starts[-1:] * (self.rows - len(starts))
        block = np.stack([tokens[s : s + self.block_size + 1] for s in filled]).astype(np.int64)
        both = torch.from_numpy(block).to(self.world.device)
        with autocast(self.world.device, self.precision):
            losses = self.forward(both[:, :-1].contiguous(), both[:, 1:].contiguous(), reduction="none")
        return losses[: len(starts)]


def evaluator(
    model: nn.Module, forward: Callable[..., Tensor], world: World, precision: str, block_size: int, micro_batch: int,
    dataset: Any, windows_wanted: int,
) -> Evaluator:  # fmt: skip
    """The evaluator of `dataset`: `windows_wanted` validation windows (0: the whole split), evenly spread."""
    everything = windows(dataset.val, block_size, 0)
    starts = windows(dataset.val, block_size, windows_wanted) if windows_wanted else everything
    val = [int(s) for s in starts]
    train = [int(s) for s in windows(dataset.train, block_size, min(TRAIN_WINDOWS, len(val)))]
    rows = min(micro_batch, max(len(val), len(train)))
    found = Evaluator(
        model,
        forward,
        world,
        precision,
        block_size,
        rows,
        (dataset.val, val),
        (dataset.train, train),
        dataset.token_bytes,
    )
    found.reduced = len(val) < len(everything)
    return found


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that leaves the floating-point range."""
    return math.exp(loss) if loss < 700 else math.inf
