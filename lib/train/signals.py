"""Signals that ask a run to stop: remembered, and answered between two steps with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from lib.config.errors import Interrupted


def asking() -> list[signal.Signals]:
    """The signals that ask: SIGTERM, SIGINT, SIGUSR1/2, and a closed terminal unless nohup has it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, *hangup]


class StopSignal:
    """While entered, the first signal that asks sets `number`.

    A second SIGINT is KeyboardInterrupt, unless this is one of several ranks (`patient`): those get Ctrl-C twice, from
    the terminal and from their launcher, which kills them itself at a second one.
    """

    def __init__(self, patient: bool = False) -> None:
        self.number = 0
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._asked) for number in asking()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT and number == signal.SIGINT and not self._patient:
            raise KeyboardInterrupt
        self.number = self.number or number


def interrupted(number: int, step: int) -> Interrupted:
    """The error of a run stopped by signal `number` after `step` steps: exit code 75, or 130 for Ctrl-C."""
    error = Interrupted(
        f"stopped by {signal.Signals(number).name} after step {step}, checkpoint saved; the same command continues"
    )
    if number == signal.SIGINT:
        error.exit_code = 130
    return error
