"""The command line, made from the settings: every option is a flag, and --help is the manual."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lib.config.errors import ConfigError
from lib.config.schema import Option, Schema, suggest
from lib.config.sources import FLAG, Assignment


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def parser(schema: Schema, prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with one flag per option, grouped by menu; callers add the few flags that are no settings."""
    made = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    groups = {menu: made.add_argument_group(menu) for menu in dict.fromkeys(o.menu for o in schema.options.values())}
    for option in schema.options.values():
        text = f"{option.prompt}.{' ' + option.help if option.help else ''} [{option.allowed()}]".replace("%", "%%")
        if option.kind == "bool":
            groups[option.menu].add_argument(
                option.flag, action=argparse.BooleanOptionalAction, dest=option.name, help=text
            )
        else:
            metavar = "|".join(option.members) if option.kind == "choice" else option.kind.upper()
            groups[option.menu].add_argument(option.flag, dest=option.name, metavar=metavar, help=text)
    return made


def parse(
    schema: Schema, made: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, list[Assignment]]:
    """The namespace (with the caller's own flags) and the settings among `argv`, later ones winning."""
    namespace, unknown = made.parse_known_args(argv)
    if unknown:
        known = [flag for action in made._actions for flag in action.option_strings]
        word = unknown[0].split("=")[0]
        raise ConfigError(f"{made.prog}: {unknown[0]}: no such flag{suggest(word, known) or '; see --help'}")
    found = []
    for name, option in schema.options.items():
        if hasattr(namespace, name):
            given = getattr(namespace, name)
            text = ("y" if given else "n") if option.kind == "bool" else str(given)
            found.append(Assignment(option, text, FLAG, f"flag {option.flag}"))
    return namespace, found


def as_flags(option: Option, text: str) -> list[str]:
    """The words that give `option` the value `text` on the command line."""
    if option.kind == "bool":
        return [option.flag if text == "y" else option.flag.replace("--", "--no-", 1)]
    # A value that begins with a dash would be read as a flag of its own.
    return [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]
