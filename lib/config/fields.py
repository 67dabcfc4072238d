"""How a room gets its settings: a small frozen dataclass whose fields name their Kconfig symbols.

@dataclass(frozen=True)
class ScheduleConfig:
    warmup: float = sym("GPT2_WARMUP")

schedule = fill(ScheduleConfig, spec.values)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Value = bool | int | float | str
T = TypeVar("T")


def sym(symbol: str) -> Any:
    """A dataclass field fed by `symbol` (a Kconfig symbol or the name of a choice)."""
    return dataclasses.field(metadata={"symbol": symbol})


def symbols_of(room: type) -> list[str]:
    """The symbols that the dataclass `room` reads, in field order."""
    return [f.metadata["symbol"] for f in dataclasses.fields(room) if "symbol" in f.metadata]


def fill(room: type[T], values: Mapping[str, Value], **extra: Any) -> T:
    """An instance of the dataclass `room` from resolved `values`; `extra` fills the fields without a symbol.

    A symbol whose dependencies are unmet has no value: its field becomes None.
    """
    taken = {f.name: values.get(f.metadata["symbol"]) for f in dataclasses.fields(room) if "symbol" in f.metadata}  # type: ignore[arg-type]
    return room(**taken, **extra)
