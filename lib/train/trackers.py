"""Weights & Biases and TensorBoard, kept at arm's length: a tracker can never stop or slow a run.

Each runs in a daemon thread behind a queue: the loop only drops a row into it. Whatever a tracker raises is one note,
and the end of the run waits a second for it at most. metrics.jsonl is complete without either.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lib.train.config import TrackingConfig

PATIENCE = 1.0  # seconds that the end of a run may wait, all trackers together
INIT_TIMEOUT = 20  # seconds until wandb gives an unreachable server up, in its own thread
QUEUE_ROWS = 10_000

Row = Mapping[str, Any]


class Sink(Protocol):
    """What a tracker must do."""

    def log(self, row: Row) -> None:
        """Take one metrics row."""

    def close(self) -> None:
        """Write out what is left."""


class Tracker:
    """One sink in a thread of its own; `open_sink` connects (there, not here), `note` says what went wrong, once."""

    def __init__(self, name: str, open_sink: Callable[[], Sink], note: Callable[[str], None]) -> None:
        self._name, self._open, self._note = name, open_sink, note
        self._rows: queue.Queue[Row | None] = queue.Queue(QUEUE_ROWS)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Hand a row over; dropped when the tracker is gone or far behind."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._rows.put_nowait(row)

    def finish(self, patience: float) -> None:
        """Ask it to close; wait `patience` seconds at most."""
        with contextlib.suppress(queue.Full):
            self._rows.put_nowait(None)
        self._thread.join(patience)

    def _work(self) -> None:
        try:
            sink = self._open()
            while (row := self._rows.get()) is not None:
                sink.log(row)
            sink.close()
        except BaseException as error:
            said = (str(error).splitlines() or [""])[0][:200]
            self._note(f"{self._name} is off: {error.__class__.__name__}: {said}; metrics.jsonl has everything")


class Trackers:
    """All trackers of a run."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, row: Row) -> None:
        """Hand a row to each."""
        for tracker in self._trackers:
            tracker.log(row)

    def finish(self) -> None:
        """Close all, within `PATIENCE` together."""
        deadline = time.monotonic() + PATIENCE
        for tracker in self._trackers:
            tracker.finish(max(0.0, deadline - time.monotonic()))


def start(
    config: TrackingConfig, folder: Path, name: str, run_id: str, facts: Row, note: Callable[[str], None]
) -> Trackers:
    """The trackers that `config` asks for. `run_id` stays the same when a run is resumed."""
    found = []
    if config.wandb:
        found.append(Tracker("wandb", lambda: WandbSink(config, folder, name, run_id, facts), note))
    if config.tensorboard:
        found.append(Tracker("TensorBoard", lambda: TensorBoardSink(folder), note))
    return Trackers(found)


class WandbSink:
    """Weights & Biases, offline unless asked."""

    def __init__(self, config: TrackingConfig, folder: Path, name: str, run_id: str, facts: Row) -> None:
        import wandb

        self._run = wandb.init(
            project=config.wandb_project,
            mode="online" if config.wandb_mode == "online" else "offline",
            dir=str(folder),
            name=name,
            id=run_id,
            resume="allow" if config.wandb_mode == "online" else None,
            config=dict(facts),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off", x_disable_stats=True),
        )

    def log(self, row: Row) -> None:
        """One row at its iteration."""
        self._run.log(numbers(row), step=int(row["iter"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorBoardSink:
    """TensorBoard event files under <run>/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        """One row at its iteration."""
        for key, value in numbers(row).items():
            self._writer.add_scalar(f"{row['kind']}/{key}", value, int(row["iter"]))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without its position."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "iter" and isinstance(value, int | float) and math.isfinite(value)
    }
