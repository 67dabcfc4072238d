"""The rows of metrics.jsonl, and who else is told of them: trackers and the terminal. Only rank 0 writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib.train import progress
from lib.train.trackers import Trackers

Row = dict[str, Any]


class Rates:
    """Tokens per second and MFU over counted seconds; `peak` is the FLOP/s of all devices together, None if unknown."""

    def __init__(
        self, tokens_per_step: int, flops_per_token: float, peak: float | None, step: int, seconds: float
    ) -> None:
        self._tokens_per_step, self._flops_per_token, self._peak = tokens_per_step, flops_per_token, peak
        self._step, self._seconds = step, seconds

    def since_last(self, step: int, seconds: float) -> tuple[float, float | None]:
        """(tokens/s, MFU) since the last call."""
        found = self.of((step - self._step) * self._tokens_per_step, seconds - self._seconds)
        self._step, self._seconds = step, seconds
        return found

    def of(self, tokens: int, seconds: float) -> tuple[float, float | None]:
        """(tokens/s, MFU) of `tokens` in `seconds`."""
        rate = tokens / seconds if seconds > 0 else 0.0
        return rate, rate * self._flops_per_token / self._peak if self._peak else None


class Telemetry:
    """Sends each row where it belongs. `append` is the run directory's; None on ranks that only compute."""

    def __init__(
        self,
        append: Callable[[Mapping[str, Any]], None] | None,
        terminal: progress.Terminal,
        stats: Callable[[], Mapping[str, float]],
    ) -> None:
        self._append, self._terminal, self._stats = append, terminal, stats
        self.trackers = Trackers([])

    @property
    def speaks(self) -> bool:
        """Whether this process writes rows."""
        return self._append is not None

    def log(self, row: Row, remaining: float) -> None:
        """A log row, with the model's own statistics; `remaining` seconds for the terminal."""
        self._send({"kind": "log", **row, **self._stats()})
        self._terminal.progress(progress.log_text(row, remaining))

    def evaluation(self, row: Row) -> None:
        """An evaluation row, with the model's own statistics."""
        self._send({"kind": "eval", **row, **self._stats()})
        self._terminal.line(progress.eval_text(row))

    def note(self, text: str, step: int) -> None:
        """Something a reader of the metrics should know."""
        if self._append:
            self._append({"kind": "note", "iter": step, "note": text})
        self._terminal.line(f"note: {text}")

    def _send(self, row: Row) -> None:
        if self._append:
            self._append(row)
        self.trackers.log(row)
