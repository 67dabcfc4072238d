"""One run's directory: config.json, metrics.jsonl, metrics.json, training.log, checkpoints/, model.pt.

`metrics.json` with status "done" and the wanted spec hash IS done. Another hash at the same name is set aside as
NAME~<hash8>, never overwritten, and comes back when its hash is wanted again. Only the holder of the lock writes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.config.errors import RunError
from lib.run import checkpoints
from lib.run.files import finite, read_json, write_json, write_text
from lib.run.lock import Lock, holder_of

CONFIG, METRICS, SUMMARY, FAILURE = "config.json", "metrics.jsonl", "metrics.json", "failure.json"
CHECKPOINTS = "checkpoints"
HASH_SHOWN = 8


class RunDirectory:
    """A run's directory as one process of the run sees it; ranks other than the first only know its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []  # checkpoints that newest_good() passed over, in words
        self._lock: Lock | None = None

    def open(self, config: Mapping[str, Any], attempt: Mapping[str, Any]) -> None:
        """Become the writer: lock, make room for config["spec_hash"], write config.json with this attempt added.

        Raises RunError when another process has the lock or the folder cannot be written.
        """
        make_room(self.path, str(config["spec_hash"]))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {self.path}: {error.strerror or error}") from error
        self._lock = Lock(self.path, "training").take()
        checkpoints.remove_leftovers(self.path / CHECKPOINTS)
        for half in self.path.glob(".*.tmp"):  # of a killed writer
            half.unlink(missing_ok=True)
        known = read_json(self.path / CONFIG) or {}
        earlier = known.get("attempts") if known.get("spec_hash") == config["spec_hash"] else None
        earlier = earlier if isinstance(earlier, list) else []
        write_json(self.path / CONFIG, {**config, "attempts": [*earlier, {**attempt, "number": self._lock.attempt}]})

    def close(self) -> None:
        """Give the lock back."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def check_lock(self) -> None:
        """Raise RunError when a later attempt has taken this directory over."""
        if self._lock:
            self._lock.check()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl and flush it. Raises RunError when it cannot be written."""
        self.check_lock()
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(row), allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path / METRICS}: {error.strerror or error}") from error

    def truncate_metrics(self, step: int, last_eval: int) -> None:
        """Drop the rows behind `step`, and evaluations behind `last_eval`: the run goes over that ground again."""
        path = self.path / METRICS
        if path.exists():
            kept = [
                json.dumps(row)
                for row in read_rows(path)
                if _position(row) <= (last_eval if row.get("kind") == "eval" else step)
            ]
            write_text(path, "".join(line + "\n" for line in kept))

    @contextlib.contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """An empty folder to fill; it becomes a checkpoint, all of it or nothing, on leaving."""
        self.check_lock()
        with checkpoints.new(self.path / CHECKPOINTS, step) as folder:
            yield folder
            self.check_lock()

    def newest_good(self) -> Path | None:
        """The newest intact checkpoint; `damaged` then says what is wrong with newer ones."""
        found, self.damaged = checkpoints.newest_good(self.path / CHECKPOINTS)
        return found

    def keep(self, count: int) -> None:
        """Keep the newest `count` checkpoints."""
        checkpoints.keep(self.path / CHECKPOINTS, count)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write metrics.json, last of all: from now on this run is done."""
        self.check_lock()
        (self.path / FAILURE).unlink(missing_ok=True)
        write_json(self.path / SUMMARY, summary)

    def fail(self, message: str) -> None:
        """Record why the run failed; says nothing when even that cannot be written."""
        with contextlib.suppress(RunError):
            self.check_lock()
            write_json(self.path / FAILURE, {"error": message, "time": time.strftime("%FT%T%z")})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that a kill cut short is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def _position(row: Mapping[str, Any]) -> float:
    """A row's iteration; a row without one comes last."""
    found = row.get("iter", 0)
    return found if isinstance(found, int | float) else math.inf


def spec_hash(path: Path) -> str:
    """The spec hash of the run in a directory, "" when it has none."""
    config = read_json(path / CONFIG)
    return str(config.get("spec_hash", "")) if config else ""


def summary_if_done(path: Path, wanted: str) -> dict[str, Any] | None:
    """metrics.json of a finished run with the wanted spec hash, or None."""
    summary = read_json(path / SUMMARY)
    if not summary or summary.get("status") != "done" or summary.get("spec_hash") != wanted:
        return None
    return summary if isinstance(summary.get("val_loss"), float) else None  # else somebody has edited it


def aside(path: Path, hash_: str) -> Path:
    """Where a run with this spec hash is set aside."""
    return path.with_name(f"{path.name}~{hash_[:HASH_SHOWN] or 'unknown'}")


def find(path: Path, wanted: str) -> Path:
    """Where the run with the wanted hash is: at `path`, or set aside; `path` when it is nowhere yet."""
    kept = aside(path, wanted)
    here = spec_hash(path) == wanted and _is_worth_keeping(path)
    return kept if not here and spec_hash(kept) == wanted else path


def make_room(path: Path, wanted: str) -> str:
    """Set a run with another hash aside and bring the wanted one back; what was done, in words, or "".

    Raises RunError when the run in the way is being trained right now.
    """
    said, back = [], spec_hash(aside(path, wanted)) == wanted
    if path.exists():
        if not _is_worth_keeping(path):
            if back:  # the shell of a run that never had a row gives way to the one that had
                with Lock(path, "make"):
                    shutil.rmtree(path)
        elif spec_hash(path) != wanted:
            said.append(f"set aside as {set_aside(path).name}")
    if back and not path.exists():
        _rename(aside(path, wanted), path)
        said.append("brought back from " + aside(path, wanted).name)
    return "; ".join(said)


def set_aside(path: Path, retire: bool = False) -> Path:
    """Move a run out of the way; its new place. With `retire` the place is one that is never brought back by itself.

    Raises RunError when the run is being trained right now.
    """
    first = aside(path, spec_hash(path))
    numbered = (path.with_name(f"{first.name}.{'old' if retire else ''}{turn}") for turn in itertools.count(1))
    place = next(p for p in itertools.chain([] if retire else [first], numbered) if not p.exists())
    _rename(path, place)
    return place


def _rename(path: Path, place: Path) -> None:
    """Move a run while holding its lock."""
    lock = Lock(path, "make").take()
    try:
        os.rename(path, place)
        lock.follow(place)
    except OSError as error:
        raise RunError(f"cannot move {path} to {place.name}: {error.strerror or error}") from error
    finally:
        lock.release()


def _is_worth_keeping(path: Path) -> bool:
    """Whether a directory holds more than a run leaves before its first row."""
    shells = {CONFIG, FAILURE, "training.log"}
    found = (p for p in path.iterdir() if not p.name.startswith(("lock.", ".lock.")) and not p.name.endswith(".tmp"))
    return any(p.name not in shells and not (p.is_dir() and not any(p.iterdir())) for p in found)


def state(path: Path, wanted: str) -> str:
    """done, running, failed, stopped (it has something to continue from) or waiting, for the wanted hash."""
    place = find(path, wanted)
    if spec_hash(place) != wanted:
        return "waiting"
    if summary_if_done(place, wanted):
        return "done"
    if holder_of(place):
        return "running"
    if (place / FAILURE).exists():
        return "failed"
    return "stopped" if checkpoints.listed(place / CHECKPOINTS) else "waiting"
