"""Processes that end with their parent, however it ends: no orphan trains on, holds a GPU or a lock (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# A matrix runner puts its own pid here for the runs it starts.
RUNNER = "MATRIX_RUNNER"


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when the thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), number)


def end_with_runner() -> None:
    """In a run that a matrix runner started: save and stop (SIGTERM) when the runner is gone."""
    runner = os.environ.get(RUNNER, "")
    if runner == str(os.getppid()):
        die_with_parent(signal.SIGTERM)
    elif runner and "RANK" not in os.environ and os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_make() -> None:
    """In a program that make started: stop as on SIGTERM when make is killed, which would not tell its children."""
    if os.environ.get("MAKELEVEL"):
        die_with_parent(signal.SIGTERM)
