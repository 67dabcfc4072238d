"""Mistakes that a person can mend: one line each, and the exit code of the program that meets one.

Codes: 0 done, 1 run failed, 2 configuration, 3 data, 75 interrupted and resumable, 130 Ctrl-C.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """A mistake with a one-line message: what, where, what is allowed, what next. Never shown as a traceback."""

    exit_code = 1


class RunError(UserError):
    """The run itself failed (non-finite loss, out of memory, a lost process)."""

    exit_code = 1


class ConfigError(UserError):
    """A setting, step, flag or variable is wrong."""

    exit_code = 2


class DataError(UserError):
    """Text, tokens or a tokenizer is missing, damaged or unusable."""

    exit_code = 3


class Interrupted(UserError):
    """Stopped by a signal after saving a checkpoint; the same command continues."""

    exit_code = 75


def need(package: str, root: Path) -> None:
    """Raise ConfigError where `package` is missing, naming the way to it."""
    if importlib.util.find_spec(package) is not None:
        return
    built = root / ".venv" / "bin" / "python"
    way = (
        f"use {built}, or leave that environment"
        if built.exists()
        else f"`pip install -r {root / 'requirements.lock'}` there, or leave that environment: make then builds .venv"
    )
    raise ConfigError(f"{package} is missing in {sys.prefix}; {way}")


def complain(message: str) -> None:
    """One line on stderr, whatever characters a name in it has."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    print(f"error: {line}", file=sys.stderr)


def _silence() -> None:
    """Let the interpreter's last flush of stdout succeed."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main` and leave with its exit code; a UserError is one line on stderr, never a traceback."""
    try:
        code = main() or 0
        if sys.stdout:  # None where it was closed before we began
            sys.stdout.flush()
    except UserError as error:
        complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody to tell.
        _silence()
        code = 0
    except OSError as error:  # a full disk, a name too long, a folder where a file should be
        complain(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        _silence()
        code = 1
    sys.exit(code)
