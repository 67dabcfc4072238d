"""How a step's sequences are shared out: among processes, and into forward passes that fit the memory.

Tokens per step are fixed by the settings; what differs between machines is only in how many parts they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib.config.errors import ConfigError
from lib.train import device
from lib.train.config import Hooks, TrainConfig
from lib.train.distributed import World

# A CPU is fastest while a micro-batch stays in its caches; a GPU wants at least 8k tokens and gains little past 64k.
CPU_TOKENS = 8192
GPU_TOKENS = 65536
MEMORY_SHARE = 0.85  # the rest is for the allocator's fragments, the loss and the libraries
BYTES_PER_PARAMETER = 16  # fp32: weight, gradient, two moments


@dataclass(frozen=True)
class Split:
    """Sequences per optimizer step (all processes), per forward pass; forward passes per step and process."""

    rows: int
    micro_batch: int
    accumulation: int


def split(config: TrainConfig, hooks: Hooks, world: World) -> Split:
    """The same on every rank: what fits the one with the least memory fits all (collective).

    Raises ConfigError when the numbers do not divide, naming those that do.
    """
    rows = config.rows_per_step(hooks.block_size)
    share, rest = divmod(rows, world.size)
    if rest or not share:
        raise ConfigError(
            f"{rows} sequences per step (GPT2_TOKENS_PER_STEP / context length) do not divide among "
            f"{world.size} processes; change GPT2_TOKENS_PER_STEP or GPT2_NGPUS"
        )
    wanted = config.machine.micro_batch
    if wanted and share % wanted:
        allowed = " ".join(str(d) for d in divisors(share))
        raise ConfigError(
            f"GPT2_MICRO_BATCH is {wanted}, no divisor of the {share} sequences per step and process; "
            f"one of {allowed}, or 0 to derive it"
        )
    if not wanted:
        available = device.free_memory(world.device, world.local_size) * MEMORY_SHARE
        left = available - hooks.parameters * BYTES_PER_PARAMETER
        wanted = derive(share, hooks.memory_per_row, left, most(world.device, hooks.block_size))
        wanted = int(-world.agree(-wanted)[0])
    return Split(rows, wanted, share // wanted)


def most(where: torch.device, block_size: int) -> int:
    """Sequences in a forward pass beyond which there is nothing to gain."""
    return max(1, (GPU_TOKENS if where.type == "cuda" else CPU_TOKENS) // block_size)


def derive(share: int, memory_per_row: float, available: float, cap: int) -> int:
    """The largest divisor of a rank's `share` of sequences that fits `available` bytes and `cap`; at least 1."""
    fits = available / memory_per_row if memory_per_row > 0 else float("inf")
    return max([d for d in divisors(share) if d <= min(fits, cap)], default=1)


def divisors(n: int) -> list[int]:
    """All divisors of n in increasing order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
