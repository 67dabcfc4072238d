"""How many processes a run gets, and starting them on this machine.

The launcher keeps the meeting point (a TCPStore on a port of its own: none can be taken meanwhile), passes signals on,
ends the others when one rank fails, and leaves with the exit code that says why. torchrun may stand in its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import IO

import torch
import torch.distributed as dist

from lib.config.errors import ConfigError
from lib.train.distributed import LAUNCHER, is_launched
from lib.train.signals import asking

GRACE = 3.0  # seconds for the others to say what they lost when a rank has failed
POLL = 0.05
STOPPED = {75, 130}


def processes(device: str, wanted: int) -> tuple[int, str]:
    """How many processes to start for `device` (auto, cpu, cuda) when `wanted` were asked for (0: all), and a note.

    Fewer GPUs than asked for are used as they are: tokens per step do not depend on them. Raises ConfigError when CUDA
    is demanded and absent.
    """
    if device == "cpu":
        return wanted or 1, ""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not visible:
        if device == "cuda":
            raise ConfigError("GPT2_DEVICE is cuda, but no CUDA GPU is visible here; use auto or cpu")
        return 1, f"no GPU is visible: one process on the CPU instead of {wanted} GPUs" if wanted > 1 else ""
    if wanted > visible:
        return visible, f"{visible} GPU(s) instead of {wanted}: same tokens per step, more micro-batches"
    return wanted or visible, ""


def is_worker() -> bool:
    """Whether this process is one of a launched run."""
    return is_launched()


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run this program again in `count` processes; their exit code (`verdict`).

    A signal to this process reaches the ranks, which save and leave; a second Ctrl-C kills them. The ranks' complaints
    appear once however many of them complain alike; only rank 0 has standard output.
    """
    return Ranks(count, arguments).wait()


class Ranks:
    """The started processes of one run."""

    def __init__(self, count: int, arguments: Sequence[str]) -> None:
        self._asked = 0
        self._before = {number: signal.signal(number, self._pass_on) for number in asking()}
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's word for: the store is there already
            LAUNCHER: str(os.getpid()),
        }
        for rank in range(count):
            self._ranks.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            if self._asked:
                self._ranks[-1].send_signal(_told(self._asked))
        self._echo = Echo()
        self._pumps = [threading.Thread(target=self._echo.copy, args=(rank.stderr,)) for rank in self._ranks]
        for pump in self._pumps:
            pump.start()

    def wait(self) -> int:
        """Until all have ended; those that outlive a failed one by GRACE are killed."""
        failed_at = None
        try:
            while None in (codes := [rank.poll() for rank in self._ranks]):
                if failed_at is None and has_failed(codes, self._asked):
                    failed_at = time.monotonic()
                if failed_at is not None and time.monotonic() > failed_at + GRACE:
                    self._kill()
                time.sleep(POLL)
        finally:
            self._kill()
            for pump in self._pumps:
                pump.join()
            for number, handler in self._before.items():
                signal.signal(number, handler)
        return verdict([rank.wait() for rank in self._ranks], self._asked)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT:
            self._kill()
        self._asked = self._asked or number
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(_told(number))

    def _kill(self) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.kill()


def _told(number: int) -> int:
    """What a rank is sent: a SIGINT would be a KeyboardInterrupt, and exit code 1, while Python is still starting."""
    return signal.SIGTERM if number == signal.SIGINT else number


def has_failed(codes: Sequence[int | None], asked: int) -> bool:
    """Whether a rank has failed, so that the others wait in vain; one that was stopped leaves them to their saving."""
    return any(code not in (None, 0, *STOPPED) for code in _with_early(codes, asked))


def verdict(codes: Sequence[int], asked: int) -> int:
    """One exit code for a run whose ranks ended with `codes` after signal `asked` (0: none).

    A rank that complains of settings (2) or data (3) knows more than those that lost it (1).
    """
    found = _with_early(codes, asked)
    for code in (2, 3):
        if code in found:
            return code
    if found - {0, *STOPPED}:
        return 130 if asked == signal.SIGINT and -signal.SIGKILL in found else 1
    if found & STOPPED:
        return 130 if 130 in found or asked == signal.SIGINT else 75
    return 0


def _with_early(codes: Sequence[int | None], asked: int) -> set[int | None]:
    """The codes; a rank that the signal itself ended had not begun to listen: interrupted like the others."""
    early = {-number: 130 if number == signal.SIGINT else 75 for number in asking()} if asked else {}
    return {early.get(code, code) if code else code for code in codes}


class Echo:
    """Copies several streams to stderr, a line that several of them say once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: Counter[bytes] = Counter()

    def copy(self, stream: IO[bytes]) -> None:
        """Copy `stream` to its end."""
        own: Counter[bytes] = Counter()
        for line in stream:
            own[line] += 1
            with self._lock:
                if own[line] <= self._said[line]:
                    continue
                self._said[line] += 1
                with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody hears; a rank must not wait
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()
