"""How long a matrix will take: wall time, from runs that are done or from a measured rate.

A time budget counts optimisation alone, so its wall time is longer: start, evaluations and the last export come on top.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lib.matrix.plan import Cell

# What a step costs against its forward pass: backward is twice the forward, evaluation is a forward pass.
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Rate:
    """Training tokens per second of a run on this machine, seconds that a run needs around it, and who says so."""

    tokens_per_second: float
    start_seconds: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run that is still to do; `wall` includes start and evaluation."""

    name: str
    optimisation: float
    evaluation: float
    start: float

    @property
    def wall(self) -> float:
        """All of it."""
        return self.optimisation + self.evaluation + self.start


def from_done(cells: Sequence[Cell]) -> Rate | None:
    """The rate of the finished runs of this matrix, or None where there are none."""
    done = [summary for cell in cells if (summary := cell.summary) and summary.get("tokens_per_second")]
    if not done:
        return None
    rate = statistics.median(float(s["tokens_per_second"]) for s in done)
    start = statistics.median(float(s.get("compile_seconds") or 0.0) for s in done)
    return Rate(rate, start, f"{len(done)} finished runs")


def estimate(cell: Cell, rate: Rate, flops_per_token: float, eval_tokens: float) -> Estimate:
    """One run's seconds; `eval_tokens` are the tokens of one evaluation (validation and training windows)."""
    spec = cell.spec
    per_step = int(spec.values["GPT2_TOKENS_PER_STEP"])
    steps: float | None = spec.budget.steps(per_step, flops_per_token)
    if steps is None:
        steps = spec.budget.amount * rate.tokens_per_second / per_step
    optimisation = steps * per_step / rate.tokens_per_second
    evaluations = 2 + int(steps / int(spec.values["GPT2_EVAL_INTERVAL"]))
    each = eval_tokens * FORWARD_SHARE / rate.tokens_per_second
    return Estimate(spec.name, optimisation, evaluations * each, rate.start_seconds)
