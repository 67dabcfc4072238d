"""The process of one tracker: `python -P tracker_process.py wandb|tensorboard`, settings and then rows on its input.

One JSON object a line. It ends when its input does, and a minute later at the latest, whatever the tracker hangs in.
What goes wrong is one line of output and exit code 1. It imports nothing of this package, and not torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

LINGER = 60  # seconds that a tracker may need after the run's end
INIT_TIMEOUT = 20  # seconds until wandb gives an unreachable server up

Row = Mapping[str, Any]


class Sink(Protocol):
    """What a tracker must do."""

    def log(self, row: Row) -> None:
        """Take one metrics row."""

    def close(self) -> None:
        """Write out what is left."""


class WandbSink:
    """Weights & Biases, offline unless asked."""

    def __init__(self, settings: Row) -> None:
        import wandb

        online = settings["mode"] == "online"
        self._run = wandb.init(
            project=settings["project"],
            mode="online" if online else "offline",
            dir=settings["folder"],
            name=settings["name"],
            id=settings["run_id"],
            resume="allow" if online else None,
            config=dict(settings["facts"]),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off", x_disable_stats=True),
        )

    def log(self, row: Row) -> None:
        """One row at its iteration."""
        self._run.log(numbers(row), step=int(row["iter"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorBoardSink:
    """TensorBoard event files under <run>/tensorboard, by TensorBoard's own writer: torch's would need torch."""

    def __init__(self, settings: Row) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(Path(settings["folder"]) / "tensorboard"))

    def log(self, row: Row) -> None:
        """One row at its iteration."""
        values = [self._summary.Value(tag=f"{row['kind']}/{key}", simple_value=v) for key, v in numbers(row).items()]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=int(row["iter"]), summary=self._summary(value=values))
        )

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


SINKS: dict[str, type[WandbSink] | type[TensorBoardSink]] = {"wandb": WandbSink, "tensorboard": TensorBoardSink}


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without its position."""
    return {k: float(v) for k, v in row.items() if k != "iter" and isinstance(v, int | float)}


def read(rows: queue.SimpleQueue[str | None]) -> None:
    """Take lines as they come, so that the run's end is noticed however busy the tracker is."""
    for line in sys.stdin:
        rows.put(line)
    signal.alarm(LINGER)  # unhandled: the end, even of a hang in foreign code
    rows.put(None)


def main() -> int:
    """The program."""
    voice = os.fdopen(os.dup(1), "w")  # trackers print; only a complaint goes back
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(OSError):
        os.nice(5)
    rows: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=read, args=(rows,), daemon=True).start()
    try:
        first = rows.get()
        if first is None:
            return 0
        sink: Sink = SINKS[sys.argv[1]](json.loads(first))
        while (line := rows.get()) is not None:
            sink.log(json.loads(line))
        sink.close()
    except BaseException as error:
        said = (str(error).splitlines() or [""])[0][:200]
        print(f"{type(error).__name__}: {said}", file=voice, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # Not sys.exit: what a failed tracker has left running would be waited for.
    sys.stderr.flush()
    code = main()
    os._exit(code) if code else sys.exit(0)
