"""One writer per folder, on any file system that has hard links (NFS too).

The lock is the file `lock.N` with the highest N, made by link(), which either creates it or fails. N counts attempts:
who takes a dead holder's lock makes N + 1, so the dead one, should it wake, finds itself superseded and may not write
(`check`). A holder on this machine is alive while its process is; one elsewhere while its heartbeat, the lock file's
mtime by the file server's own clock, is younger than STALE_SECONDS.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.config.errors import RunError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
PATIENCE_SECONDS = 10.0  # a holder that was just told to stop may still be saving
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Holder:
    """Who has a lock."""

    attempt: int
    host: str
    pid: int
    began: str  # the process's start time in kernel ticks: a reused pid is another process
    what: str
    token: str

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.host})"


class Lock:
    """The lock of one folder, held from `take` to `release`; also a context manager around both."""

    def __init__(self, folder: Path, what: str, patience: float = PATIENCE_SECONDS) -> None:
        """`what` tells others what the holder does, as "make" or "training"."""
        self.folder, self._what, self._patience = folder, what, patience
        self._path: Path | None = None
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def attempt(self) -> int:
        """The number of this attempt, 0 when the lock is not held."""
        return _attempt(self._path) if self._path else 0

    def take(self) -> Lock:
        """Take the lock. Raises RunError naming the holder when a living one keeps it for `patience` seconds."""
        deadline = time.monotonic() + self._patience
        while (other := self._try()) is not None:
            if time.monotonic() >= deadline:
                raise RunError(f"{self.folder} is in use by {other}; wait for it, or stop that process")
            time.sleep(POLL_SECONDS)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()
        return self

    def _try(self) -> Holder | None:
        """Take the lock and return None, or return the living holder."""
        path = _newest(self.folder)
        if path is not None:
            holder = read_holder(path)
            if holder is not None and _is_alive(path, holder):
                return holder
        wanted = self.folder / f"lock.{_attempt(path) + 1 if path else 1}"
        draft = self.folder / f".lock.{self._token}"
        try:
            _write_holder(draft, _attempt(wanted), self._what, self._token)
            os.link(draft, wanted)
        except FileExistsError:
            return read_holder(wanted) or Holder(0, "?", 0, "", "another process", "")
        finally:
            draft.unlink(missing_ok=True)
        if _newest(self.folder) != wanted:  # somebody took and released this number while we looked away
            wanted.unlink(missing_ok=True)
            return self._try()
        self._path = wanted
        for old in self.folder.glob("lock.*"):
            if _attempt(old) < _attempt(wanted):
                old.unlink(missing_ok=True)
        return None

    def check(self) -> None:
        """Raise RunError when a later attempt has taken over: this one may not write any more."""
        if self._path is None:
            raise RunError(f"{self.folder}: not locked by this process")
        newest = _newest(self.folder)
        holder = read_holder(self._path) if newest == self._path else None
        if holder is None or holder.token != self._token:
            raise RunError(
                f"{self.folder} was taken over by a later attempt ({newest}); this one stops without writing"
            )

    def follow(self, folder: Path) -> None:
        """The locked folder was renamed to `folder`."""
        if self._path:
            self.folder, self._path = folder, folder / self._path.name

    def release(self) -> None:
        """Give the lock back. The file stays, marked, so that the next attempt's number is higher."""
        self._ended.set()
        if self._heart:
            self._heart.join()
        if self._path and self._path.exists():
            draft = self.folder / f".lock.{self._token}"
            draft.write_text(json.dumps({"attempt": self.attempt, "released": True}) + "\n")
            os.replace(draft, self._path)
        self._path = None

    def __enter__(self) -> Lock:
        return self.take()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _beat(self) -> None:
        while self._path is not None and not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def holder_of(folder: Path) -> Holder | None:
    """The living holder of a folder's lock, or None."""
    path = _newest(folder)
    holder = read_holder(path) if path else None
    return holder if holder and path and _is_alive(path, holder) else None


def read_holder(path: Path) -> Holder | None:
    """Who wrote a lock file; None when it is released, gone or damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return None if found.get("released") else Holder(**found)
    except (OSError, ValueError, TypeError):
        return None


def _write_holder(path: Path, attempt: int, what: str, token: str) -> None:
    holder = Holder(attempt, socket.gethostname(), os.getpid(), process_began(os.getpid()), what, token)
    try:
        path.write_text(json.dumps(holder.__dict__) + "\n")
    except OSError as error:
        raise RunError(f"cannot write into {path.parent}: {error.strerror or error}") from error


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("lock.*"), key=_attempt, default=None)


def _attempt(path: Path) -> int:
    number = path.name.removeprefix("lock.")
    return int(number) if number.isdecimal() else 0


def _is_alive(path: Path, holder: Holder) -> bool:
    if holder.host == socket.gethostname():
        began = process_began(holder.pid)
        return began != "" and (not holder.began or began == holder.began)
    probe = path.with_name(f".clock.{uuid.uuid4().hex}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        return now - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def process_began(pid: int) -> str:
    """When a process started, in kernel ticks; "?" where that cannot be told, "" when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "?"
        return "?"
    except OSError:
        return ""
    fields = text[text.rindex(")") + 2 :].split()
    return "" if fields[0] in "ZX" else fields[19]
