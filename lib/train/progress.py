"""What a person sees: one line rewritten in place on a terminal, plain lines elsewhere, the same in training.log."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lib.config.errors import RunError


class Terminal:
    """Writes a run's lines to `stream` and to `log`; a run's quiet ranks have neither."""

    def __init__(self, stream: TextIO | None, log: Path | None) -> None:
        """Raises RunError when `log` cannot be opened."""
        self._stream = stream
        self._in_place = bool(stream and not stream.closed and stream.isatty())
        self._open_line = 0  # characters of the line that the next one replaces
        self._path = log
        try:
            self._log = open(log, "a", encoding="utf-8") if log else None  # noqa: SIM115
        except OSError as error:
            raise RunError(f"cannot write {log}: {error.strerror or error}") from error

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write(("\r" + text.ljust(self._open_line) if self._open_line else text) + "\n")
        self._open_line = 0
        self._record(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces on a terminal."""
        if not self._in_place:
            return self.line(text)
        width = self._width() - 1  # a wrapped line could not be replaced
        shown = text[:width]
        self._write("\r" + shown.ljust(min(self._open_line, width)))
        self._open_line = len(shown)
        self._record(text)

    def close(self) -> None:
        """Leave the cursor on a fresh line."""
        if self._open_line:
            self._write("\n")
            self._open_line = 0
        if self._log:
            with contextlib.suppress(OSError):
                self._log.close()
            self._log = None

    def _width(self) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(self._stream.fileno()).columns or 80  # type: ignore[union-attr]
        return 80

    def _write(self, text: str) -> None:
        if not self._stream:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            _silence(self._stream)  # the reader has gone; the run goes on
            self._stream = None

    def _record(self, text: str) -> None:
        if self._log:
            try:
                self._log.write(text + "\n")
                self._log.flush()
            except OSError as error:
                raise RunError(f"cannot write {self._path}: {error.strerror or error}") from error


def _silence(stream: TextIO) -> None:
    """Send what is still buffered nowhere: flushed at exit, it would fail again and change the exit code."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def log_text(row: Mapping[str, Any], remaining: float) -> str:
    """A log row in words: iteration, loss, tokens/s, time left, then share done, learning rate, MFU where known."""
    mfu = f"  mfu {100 * row['mfu']:.1f} %" if row.get("mfu") else ""
    return (
        f"iter {row['iter']:>6}  loss {row['train_loss_step']:.4f}  {row['tokens_per_second']:,.0f} tok/s  "
        f"{duration(remaining)} left  {100 * row['progress']:5.1f} %  lr {row['learning_rate']:.2e}{mfu}"
    )


def eval_text(row: Mapping[str, Any]) -> str:
    """An evaluation row in words."""
    return (
        f"iter {row['iter']:>6}  val loss {row['val_loss']:.4f}  train loss {row['train_loss']:.4f}  "
        f"perplexity {row['val_perplexity']:.2f}  {row['bits_per_byte']:.4f} bits/byte  best {row['best_val_loss']:.4f}"
    )


def duration(seconds: float) -> str:
    """3725 → 1h02m; 65 → 1m05s; 4.2 → 4s."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
