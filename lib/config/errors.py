"""Mistakes that a person can mend: one line each, and the exit code of the program that meets one."""


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
