"""Which tokens a step reads: random windows for training, fixed ones for evaluation.

Row r of step s is drawn by the counter-based generator Philox with key (seed, s) and counter r, so it is a pure
function of (seed, step, row): arms see the same batches at any number of processes and any micro-batch (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lib.config.errors import DataError

_WORDS = 4  # 64-bit words that Philox draws per counter value


class Batches:
    """Random windows of `tokens` (one-dimensional, any integer type), each of block_size inputs and their targets."""

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, seed: int) -> None:
        """Raises DataError when `tokens` are fewer than block_size + 1."""
        _refuse_short(tokens, block_size, "training")
        self._tokens = np.asarray(tokens)  # slicing a plain array costs a fifth of slicing a memmap
        self._block_size = block_size
        self._seed = seed % 2**64
        self._starts = len(tokens) - block_size

    def rows(self, step: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows first … first + count − 1 of `step`: x and y, int64 [count, block_size]; y is x one token later."""
        # 64 random bits modulo the number of starts: the bias is below 2^-20 for a trillion tokens.
        draws = np.random.Philox(key=[self._seed, step], counter=[first, 0, 0, 0]).random_raw(_WORDS * count)
        starts = (draws[::_WORDS] % np.uint64(self._starts)).tolist()
        block = np.empty((count, self._block_size + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            block[row] = self._tokens[start : start + self._block_size + 1]
        both = torch.from_numpy(block)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def windows(tokens: npt.NDArray[Any], block_size: int, count: int) -> Sequence[int]:
    """First tokens of fixed evaluation windows tokens[s : s + block_size + 1], multiples of block_size.

    `count` of them evenly spread, or all when `count` is 0 or there are fewer. Raises DataError when there is none.
    """
    _refuse_short(tokens, block_size, "evaluation")
    whole = (len(tokens) - 1) // block_size
    if count == 0 or count >= whole:
        return range(0, whole * block_size, block_size)
    return [i * whole // count * block_size for i in range(count)]


def _refuse_short(tokens: npt.NDArray[Any], block_size: int, use: str) -> None:
    if len(tokens) < block_size + 1:
        raise DataError(
            f"a split has {len(tokens):,} tokens, fewer than one {use} window of {block_size + 1:,} (block_size + 1); "
            "give more text, a shorter GPT2_BLOCK_SIZE or another GPT2_VAL_FRACTION"
        )
