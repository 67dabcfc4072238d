"""Where values come from: files in .config form, make variables, the environment, flags. Each becomes `Assignment`s.

kconfiglib accepts most mistakes in silence, so lines are parsed here, strictly, and every mistake is named with its
place and the nearest name that would have been right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.config.errors import ConfigError
from lib.config.schema import Option, Schema, suggest

# Ranks of sources; the higher wins.
DEFAULT, CONFIG, STEP, VARIABLE, AXIS, FLAG = range(6)

# Make variables that are no settings: they choose what a command does.
CONTROLS = ("V", "O", "A", "B", "NAME", "PYTHON", "SYSTEM_TORCH", "RUN")
ALIASES = {"TIME": "GPT2_MAX_TIME", "ITERS": "GPT2_MAX_ITERS", "TOKENS": "GPT2_MAX_TOKENS", "FLOPS": "GPT2_MAX_FLOPS"}

_UNSET = re.compile(r"# CONFIG_(\w+) is not set$")
_ASSIGNS = re.compile(r"CONFIG_(\w+)=(.*)$")
_LOOSE = re.compile(r"\s*(?:CONFIG_)?(\w+)\s*=\s*(.*?)\s*$")


@dataclass(frozen=True)
class Assignment:
    """One value for one option, still as text, and where it was written."""

    option: Option
    text: str
    rank: int
    where: str

    def check(self) -> None:
        """Raise ConfigError when the text is no value of the option."""
        try:
            self.option.parse(self.text)
        except ValueError:
            near = suggest(self.text, self.option.members) if self.option.kind == "choice" else ""
            shown = f'"{self.text}"' if self.option.kind in ("str", "float") else self.text or "nothing"
            raise ConfigError(
                f"{self.where}: {self.option.name} is {self.option.allowed()}, not {shown}{near}"
            ) from None


def read_file(schema: Schema, path: Path, rank: int = CONFIG, shown: str | None = None) -> list[Assignment]:
    """The assignments of a file in .config form. Raises ConfigError with file:line at the first mistake."""
    shown = shown or str(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read as text ({error.__class__.__name__})") from None
    found: dict[str, Assignment] = {}
    for number, line in enumerate(lines, start=1):
        assignment = _read_line(schema, line.rstrip(), rank, f"{shown}:{number}")
        if assignment is None:
            continue
        assignment.check()
        earlier = found.get(assignment.option.name)
        if earlier is not None:
            raise ConfigError(
                f"{assignment.where}: {assignment.option.name} was already set at {earlier.where}; keep one of the two"
            )
        found[assignment.option.name] = assignment
    return list(found.values())


def _read_line(schema: Schema, line: str, rank: int, where: str) -> Assignment | None:
    unset = _UNSET.match(line)
    if unset:
        symbol, text = unset[1], "n"
    elif not line.strip() or line.lstrip().startswith("#"):
        return None
    else:
        assigns = _ASSIGNS.match(line)
        if assigns is None:
            raise ConfigError(f"{where}: {_why_garbage(schema, line)}")
        symbol, text = assigns[1], assigns[2]
    option = schema.owner.get(symbol)
    if option is None:
        near = suggest(symbol, schema.owner, "; did you mean CONFIG_")
        raise ConfigError(f"{where}: CONFIG_{symbol}: no such setting{near or '; `make menuconfig` shows all'}")
    if option.kind == "choice":
        if text not in ("y", "n"):
            raise ConfigError(f"{where}: CONFIG_{symbol} is y or n, not {text or 'nothing'}")
        value = symbol.removeprefix(option.name + "_").lower()
        return Assignment(option, value, rank, where) if text == "y" else None
    if unset and option.kind != "bool":
        raise ConfigError(f"{where}: CONFIG_{symbol} is {option.allowed()}; it cannot be `not set`")
    if option.kind in ("str", "float"):
        return Assignment(option, _unquote(symbol, text, where), rank, where)
    return Assignment(option, text, rank, where)


def _unquote(symbol: str, text: str, where: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ConfigError(f'{where}: write CONFIG_{symbol}="{text.strip(chr(34))}", with quotes')
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _why_garbage(schema: Schema, line: str) -> str:
    loose = _LOOSE.match(line)
    if loose and loose[1] in schema.owner:
        return f"write CONFIG_{loose[1]}={loose[2]}, with CONFIG_ in front and no spaces"
    if loose:
        near = suggest(loose[1], schema.owner, "; did you mean CONFIG_")
        return f"{loose[1]}: no such setting{near or '; a line reads CONFIG_NAME=value'}"
    return f"{line.strip()[:60]!r} is no setting; a line reads CONFIG_NAME=value or begins with #"


def from_environment(schema: Schema, environ: Mapping[str, str]) -> list[Assignment]:
    """Every GPT2_ name of the environment. An unknown one is a ConfigError: a misspelt setting must not be ignored."""
    found = []
    for name in sorted(n for n in environ if n.startswith("GPT2_")):
        option = schema.by_env.get(name)
        if option is None:
            near = suggest(name, schema.by_env)
            raise ConfigError(f"environment: {name}: no such setting{near or '; unset it'}")
        found.append(Assignment(option, environ[name], VARIABLE, f"environment {name}"))
    return found


def from_make(schema: Schema, names: Iterable[str], environ: Mapping[str, str]) -> list[Assignment]:
    """The variables given on make's command line, by name; make exports their values to the environment."""
    found = []
    for name in names:
        if name in CONTROLS:
            continue
        option = schema.by_env.get(ALIASES.get(name, name)) or schema.by_env.get(f"GPT2_{name}")
        if option is None:
            short = [n.removeprefix("GPT2_") for n in schema.by_env]
            near = suggest(name, [*CONTROLS, *ALIASES, *short, *schema.by_env])
            raise ConfigError(f"make: {name}: no such variable{near or '; see `make help`'}")
        found.append(Assignment(option, environ.get(name, ""), VARIABLE, f"make {name}"))
    return found


def variables(schema: Schema, environ: Mapping[str, str]) -> list[Assignment]:
    """Make variables and environment together; a make variable wins over the same setting in the environment."""
    given = from_make(schema, environ.get("MAKE_GIVEN", "").split(), environ)
    by_make = {a.option.name for a in given}
    return [a for a in from_environment(schema, environ) if a.option.name not in by_make] + given
