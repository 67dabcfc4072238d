"""The budget of a run: one number in one unit. Everything that follows training's progress follows this."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["iters", "tokens", "flops", "time"]

# At equal rank of their sources the first of these that is set wins.
ORDER: tuple[tuple[Kind, str], ...] = (
    ("iters", "GPT2_MAX_ITERS"),
    ("tokens", "GPT2_MAX_TOKENS"),
    ("flops", "GPT2_MAX_FLOPS"),
    ("time", "GPT2_MAX_TIME"),
)

# A time budget under this many seconds is a smoke test: it evaluates on few windows, and says so.
SHORT_SECONDS = 300
SHORT_WINDOWS = 20


@dataclass(frozen=True)
class Budget:
    """`amount` optimizer steps, tokens, FLOPs or seconds of optimisation, by `kind`."""

    kind: Kind
    amount: float

    @property
    def is_short(self) -> bool:
        """Too short for a full validation pass."""
        return self.kind == "time" and self.amount < SHORT_SECONDS

    def steps(self, tokens_per_step: int, flops_per_token: float) -> int | None:
        """Optimizer steps that spend the budget (rounded up), or None when only the clock can tell."""
        if self.kind == "time":
            return None
        unit = {"iters": 1.0, "tokens": float(tokens_per_step), "flops": tokens_per_step * flops_per_token}[self.kind]
        return max(1, -int(-self.amount // unit))

    def __str__(self) -> str:
        unit = {"iters": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "s"}[self.kind]
        return f"{self.amount:g} {unit}"
