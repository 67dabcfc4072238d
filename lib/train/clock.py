"""The budget's clock: seconds of optimisation, and the share of the budget that is spent.

Only optimisation counts: the clock is paused for evaluation and checkpoints, starts after compilation, and carries its
reading through a checkpoint. It is monotonic; what a killed process had not saved is not counted, as its work is lost.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from lib.config.budget import Budget

# In the first steps of a time budget and in its last, each step is waited for: a GPU lies some steps behind the host
# that feeds it, and the run may overshoot by one step at most.
FIRST_STEPS = 2
NEAR_STEPS = 8
# A process's first step under a time budget has no measured predecessor: it is taken for this share of the budget.
FIRST_STEP = 1e-3


class Clock:
    """Progress of one run through its `budget`. `now` and `settle` (wait for the device) can be replaced in tests."""

    def __init__(
        self,
        budget: Budget,
        tokens_per_step: int,
        flops_per_token: float,
        seconds: float = 0.0,
        step: int = 0,
        now: Callable[[], float] = time.monotonic,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.budget = budget
        self.total_steps = budget.steps(tokens_per_step, flops_per_token)
        self._now, self._settle = now, settle
        self._saved = seconds
        self._since: float | None = None
        self.agreed = seconds  # what all ranks decide by
        self._first_step, self._first_seconds = step, seconds

    @property
    def seconds(self) -> float:
        """Counted seconds by this process's own clock."""
        return self._saved + (self._now() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Begin to count."""
        self._since = self._now()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside; the device's queue is emptied before and after."""
        self._settle()
        self._saved, self._since = self.seconds, None
        try:
            yield
        finally:
            self._settle()
            self.start()

    def read(self, step: int) -> float:
        """Counted seconds before `step`; early and late in a time budget the device is waited for first."""
        if self.budget.kind == "time":
            left = self.budget.amount - self.seconds
            if step - self._first_step <= FIRST_STEPS or left < NEAR_STEPS * self._mean(self.seconds, step):
                self._settle()
        return self.seconds

    def progress(self, step: int, seconds: float | None = None) -> float:
        """Share of the budget spent before `step`, in [0, 1]; after counted `seconds`, or the agreed ones."""
        if self.total_steps is None:
            return min(1.0, (self.agreed if seconds is None else seconds) / self.budget.amount)
        return min(1.0, step / self.total_steps)

    def ahead(self, step: int) -> float:
        """Share of the budget that will be spent when `step` is done: what the learning rate follows."""
        if self.total_steps is None:
            expected = self._mean(self.agreed, step) / self.budget.amount
            return min(1.0, self.progress(step) + (expected or FIRST_STEP))
        return min(1.0, (step + 1) / self.total_steps)

    def is_spent(self, step: int) -> bool:
        """Whether the run is over before `step`."""
        return self.agreed >= self.budget.amount if self.total_steps is None else step >= self.total_steps

    def remaining(self, step: int) -> float:
        """Expected seconds of optimisation left by this process's own clock; NaN before its first step."""
        if self.total_steps is None:
            return max(0.0, self.budget.amount - self.seconds)
        return max(0, self.total_steps - step) * (self._mean(self.seconds, step) or math.nan)

    def _mean(self, seconds: float, step: int) -> float:
        """Mean seconds of a step since this process began, 0 before its first."""
        done = step - self._first_step
        return (seconds - self._first_seconds) / done if done > 0 else 0.0
