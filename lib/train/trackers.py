"""Weights & Biases and TensorBoard, kept at arm's length: a tracker can never stop or slow a run.

Each is a process of its own (lib/train/tracker_process.py) behind a pipe that is never waited for: whatever a tracker
imports, raises or hangs in happens there. What it complains of becomes one note. The end of the run waits a second for
all of them; one that needs longer goes on alone, for a minute at most. metrics.jsonl is complete without either.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib.run.files import finite
from lib.train.config import TrackingConfig

PATIENCE = 1.0  # seconds that the end of a run may wait, all trackers together
WAITING_BYTES = 8 << 20  # rows kept for a tracker that is busy; more are dropped
PIPE_BYTES = 1 << 20
PROGRAM = Path(__file__).with_name("tracker_process.py")

Note = Callable[[str], None]


class Tracker:
    """One tracker process of a `kind`, told its `settings` first; `note` says what went wrong, once."""

    def __init__(self, kind: str, settings: Mapping[str, Any], note: Note) -> None:
        self._kind, self._note = kind, note
        self._waiting = bytearray()
        # -P: its folder, where modules have everyday names, stays off the path. Its own session: no Ctrl-C.
        theirs, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), kind],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        self._open = True
        self.log(settings)

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand a row over without waiting; dropped when the tracker is gone or far behind."""
        if self._open and len(self._waiting) < WAITING_BYTES:
            self._waiting += (json.dumps(finite(row), allow_nan=False) + "\n").encode()
            self._push()

    def finish(self, deadline: float) -> None:
        """Hand over what is left and close; wait until `deadline` (monotonic) at most."""
        while self._open and self._waiting and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._pipe], [], left)
            self._push()
        self._end(max(0.0, deadline - time.monotonic()))

    def _push(self) -> None:
        """Write what the pipe takes."""
        try:
            while self._waiting:
                written = os.write(self._pipe, self._waiting)
                del self._waiting[:written]
        except BlockingIOError:
            return
        except OSError:  # it has closed its end: it is leaving
            self._end(PATIENCE)

    def _end(self, patience: float) -> None:
        """Close the pipe, wait for the process, repeat what it complained of."""
        if not self._open:
            return
        self._open = False
        os.close(self._pipe)
        try:
            said, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return
        if self._process.returncode:
            why = said[:400].decode(errors="replace").strip() or f"its process ended with {self._process.returncode}"
            self._note(f"{self._kind} is off: {why}; metrics.jsonl has everything")


class Trackers:
    """All trackers of a run."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand a row to each."""
        for tracker in self._trackers:
            tracker.log(row)

    def finish(self) -> None:
        """Close all, within PATIENCE together."""
        deadline = time.monotonic() + PATIENCE
        for tracker in self._trackers:
            tracker.finish(deadline)


def start(
    config: TrackingConfig, folder: Path, name: str, run_id: str, facts: Mapping[str, Any], note: Note
) -> Trackers:
    """The trackers that `config` asks for. `run_id` stays the same when a run is resumed."""
    settings = {
        "folder": str(folder),
        "name": name,
        "run_id": run_id,
        "project": config.wandb_project,
        "mode": config.wandb_mode,
        "facts": dict(facts),
    }
    wanted = {"wandb": config.wandb, "tensorboard": config.tensorboard}
    return Trackers([Tracker(kind, settings, note) for kind, is_wanted in wanted.items() if is_wanted])
