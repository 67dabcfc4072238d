"""Runs what is not done, one process per run, and answers signals: the first asks the runs to save, the second kills.

The runner knows run directories and exit codes, nothing else: 0 done, 1 failed, 2 configuration, 3 data, 75 and 130
interrupted. A failed run does not stop the others, missing data does: the others need the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lib.config.errors import UserError
from lib.matrix.plan import Cell
from lib.run import directory
from lib.run.process import RUNNER

DATA_MISSING = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
Say = Callable[[str], None]


@dataclass
class _Running:
    cell: Cell
    slot: int
    process: subprocess.Popen[bytes]
    began: float
    errors: IO[bytes] | None  # what it says on stderr, where several share the terminal


@dataclass
class Runner:
    """Trains `cells` from the checkout `root`, `parallel` at a time. `devices` are the ids of the visible GPUs."""

    root: Path
    cells: Sequence[Cell]
    parallel: int = 1
    devices: Sequence[str] = ()
    threads: int = 0  # CPU threads of one run when several share the CPU; 0: the run's own choice
    say: Say = print
    codes: dict[str, int] = field(default_factory=dict)  # exit codes by run name
    _running: list[_Running] = field(default_factory=list)
    _stop: int = 0  # the first signal
    _missing: bool = False  # the data is

    def run(self) -> int:
        """Everything that is not done; the exit code of the whole."""
        before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        try:
            for number, cell in enumerate(self.cells, start=1):
                while len(self._running) >= self.parallel:
                    self._wait()
                if self._stop or self._missing:
                    break
                self._start(cell, f"[{number}/{len(self.cells)}]")
            while self._running:
                self._wait()
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._code()

    def _start(self, cell: Cell, count: str) -> None:
        done = cell.state == "done"
        try:
            moved = directory.make_room(cell.path, cell.spec.spec_hash)
        except UserError as error:
            self.codes[cell.spec.name] = error.exit_code
            self.say(f"{count} {cell.spec.name}: {error}")
            return
        if moved:
            self.say(f"{count} {cell.spec.name}: {moved}")
        if done:
            self.say(f"{count} {cell.spec.name}: done")
            return
        self.say(f"{count} {cell.spec.name}: {cell.spec.description}")
        slot = min(set(range(self.parallel)) - {r.slot for r in self._running})
        alone = self.parallel == 1
        errors = None if alone else tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *cell.command, *self._share()],
            cwd=self.root,
            env={**os.environ, **self._environment(slot)},
            stdin=subprocess.DEVNULL,
            stdout=None if alone else subprocess.DEVNULL,
            stderr=errors,
            process_group=0,  # Ctrl-C reaches the runner alone, which passes it on once
        )
        self._running.append(_Running(cell, slot, process, time.monotonic(), errors))
        if self._stop:
            self._tell(self._stop)

    def _share(self) -> list[str]:
        return ["--threads", str(self.threads)] if self.threads else []

    def _environment(self, slot: int) -> dict[str, str]:
        """Where a run computes when several share the machine: every parallel-th GPU, at least one."""
        shared = {RUNNER: str(os.getpid())}
        if self.parallel > 1 and self.devices:
            own = self.devices[slot :: self.parallel] or [self.devices[slot % len(self.devices)]]
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return shared

    def _wait(self) -> None:
        """Until one of the running ends."""
        while True:
            for running in self._running:
                code = running.process.poll()
                if code is not None:
                    self._running.remove(running)
                    self._ended(running, code if code >= 0 else 128 - code)
                    return
            if len(self._running) == 1:
                try:
                    self._running[0].process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    continue
            else:
                time.sleep(0.05)

    def _ended(self, running: _Running, code: int) -> None:
        name = running.cell.spec.name
        self.codes[name] = code
        self._missing = self._missing or code == DATA_MISSING
        said = b""
        if running.errors:
            running.errors.seek(0)
            said = running.errors.read()[-2000:]
            running.errors.close()
        if code:
            words = {75: "interrupted", 130: "interrupted", 137: "killed"}.get(code, f"failed (exit {code})")
            self.say(f"      {name}: {words}")
            if said:
                self.say(said.decode(errors="replace").strip())
        elif self.parallel > 1:
            loss = float((running.cell.summary or {}).get("val_loss", "nan"))
            self.say(f"      {name}: done in {time.monotonic() - running.began:.0f} s, val loss {loss:.4f}")

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._stop == signal.SIGINT and number == signal.SIGINT:
            self._kill()
            return
        if not self._stop:
            self.say("" if number != signal.SIGINT else "\nstopping: each run saves a checkpoint; Ctrl-C again kills")
        self._stop = self._stop or number
        self._tell(number)

    def _tell(self, number: int) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _kill(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()

    def _code(self) -> int:
        if self._stop:
            return 130 if self._stop == signal.SIGINT else 75
        codes = {code for code in self.codes.values() if code}
        if codes & {75, 130}:
            return 75
        return codes.pop() if len(codes) == 1 and codes <= {1, 2, 3} else int(bool(codes))


def visible_devices(environ: Any = os.environ) -> list[str]:
    """Ids of the GPUs that runs may use, without asking a driver library."""
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [d.strip() for d in given.split(",") if d.strip() and d.strip() != "-1"]
    known = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(known.iterdir())))] if known.is_dir() else []
