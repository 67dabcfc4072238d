"""How far tokenising is, on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 30.0


class Progress:
    """Called with the bytes just done. `total` bytes where known."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._what, total=self._total, unit="B", unit_scale=True, leave=False, file=sys.stderr
            )
        return self

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            of = f" of {self._total / 1e6:,.0f}" if self._total else ""
            rate = self._done / (now - self._began) / 1e6
            print(f"{self._what}: {self._done / 1e6:,.0f}{of} MB, {rate:.1f} MB/s", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
