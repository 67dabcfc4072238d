"""Learning-rate schedules: pure functions from the budget's progress in [0, 1] to a factor of the peak.

Whatever the budget counts (seconds, steps, tokens, FLOPs), a schedule sees only the share that is spent, so two runs
of one matrix anneal alike. Both end at `floor`, the final learning rate over the peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lib.config.errors import ConfigError
from lib.config.fields import sym


@dataclass(frozen=True)
class ScheduleConfig:
    """Shape of the schedule; `warmup` and `decay` are shares of the budget."""

    name: str = sym("GPT2_SCHEDULE")
    warmup: float = sym("GPT2_WARMUP")
    decay: float | None = sym("GPT2_DECAY")
    min_lr: float = sym("GPT2_MIN_LR")

    def factor(self, progress: float, peak: float) -> float:
        """The learning rate at `progress` as a factor of `peak`. Raises ConfigError for an unknown schedule."""
        floor = self.min_lr / peak
        if self.name == "cosine":
            return cosine(progress, self.warmup, floor)
        if self.name == "wsd":
            return wsd(progress, self.warmup, self.decay or 0.0, floor)
        raise ConfigError(f"GPT2_SCHEDULE is {self.name}; schedules: cosine wsd")


def cosine(progress: float, warmup: float, floor: float) -> float:
    """Linear warm-up, then half a cosine from 1 down to `floor` (Loshchilov & Hutter 2017)."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    through = (progress - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * through))


def wsd(progress: float, warmup: float, decay: float, floor: float) -> float:
    """Linear warm-up, a plateau, and a linear decay to `floor` over the last `decay` (Hu et al. 2024, MiniCPM).

    A decay that would begin inside the warm-up begins after it.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    start = max(warmup, 1.0 - decay)
    if progress <= start:
        return 1.0
    return 1.0 - (1.0 - floor) * (progress - start) / (1.0 - start)
