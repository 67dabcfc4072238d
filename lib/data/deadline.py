"""A bound on waiting for libraries that set none, and their errors in a few words.

The call runs in a thread that is left behind when it is late.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError when it takes longer than `seconds`."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="deadline", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def in_short(error: Exception) -> str:
    """The error's kind and the beginning of its message, on one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}".rstrip(": "), 110, placeholder=" ...")
