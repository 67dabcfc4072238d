"""Where a run stands: what a checkpoint carries beside weights and optimizer state."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Position:
    """Steps done and the newest evaluation; seconds counted against the budget, and spent in earlier processes."""

    step: int = 0
    last_eval: int = -1  # the step after which it was made
    best_val_loss: float = math.inf
    last_row: dict[str, float] = field(default_factory=dict)  # the newest evaluation
    seconds: float = 0.0
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])  # the same for trackers after a resume

    def state(self) -> dict[str, Any]:
        """As strict JSON: null for a number that is not finite."""
        found = asdict(self)
        found["best_val_loss"] = _or_null(self.best_val_loss)
        found["last_row"] = {key: _or_null(value) for key, value in self.last_row.items()}
        return found

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Position:
        """What `state` was made from, other keys aside."""
        found = {f.name: state[f.name] for f in fields(cls)}
        found["best_val_loss"] = math.inf if state["best_val_loss"] is None else state["best_val_loss"]
        found["last_row"] = {k: math.nan if v is None else v for k, v in state["last_row"].items()}
        return cls(**found)


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
