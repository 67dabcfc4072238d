"""The settings as Kconfig declares them: names, types, ranges, classes, flags.

kconfiglib reads the language; this module gives each setting one `Option`. A choice is one option whose values are its
members' suffixes in lower case (ATTENTION_UNIFIED_RA is the value unified_ra of ATTENTION), so nothing downstream sees
its members.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.config.errors import ConfigError, need
from lib.config.fields import Value

CLASSES = ("varied", "compared", "recorded")
STRING_TYPES = ("text", "path", "list", "list of integers", "layers", "heads")
_FLOAT_TYPE = re.compile(r"float in ([\[(])\s*(\S+)\s*,\s*(\S+?)\s*([\])])$")
_INTEGER = re.compile(r"-?[0-9]{1,18}$")


def suggest(word: str, known: Iterable[str], lead: str = "; did you mean ") -> str:
    """`lead` and the nearest of `known` with a question mark, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"{lead}{near[0]}?" if near else ""


@dataclass(frozen=True)
class Option:
    """One setting: a Kconfig symbol with a prompt, or a named choice."""

    name: str
    kind: str  # bool, int, float, str or choice
    prompt: str
    help: str
    type_text: str  # what follows "Type:" in the help, if anything
    cls: str  # varied, compared or recorded
    menu: str
    members: tuple[str, ...]  # of a choice, as values; empty otherwise
    item: Any  # kconfiglib's Symbol or Choice

    @property
    def is_mechanism(self) -> bool:
        """Whether a step may set it."""
        return self.menu == "Mechanism"

    @property
    def flag(self) -> str:
        """The command-line flag: GPT2_MAX_TIME is --max-time, RA_R is --ra-r."""
        return "--" + self.name.removeprefix("GPT2_").lower().replace("_", "-")

    @property
    def env(self) -> str:
        """The environment name; all begin with GPT2_."""
        return self.name if self.name.startswith("GPT2_") else f"GPT2_{self.name}"

    def allowed(self) -> str:
        """What a value may be, in words."""
        if self.kind == "bool":
            return "y or n"
        if self.kind == "choice":
            return "one of " + ", ".join(self.members)
        if self.kind == "int":
            low, high = self.range()
            return f"an integer from {low} to {high}"
        return f"a {self.type_text}" if self.kind == "float" else self.type_text

    def range(self) -> tuple[int, int]:
        """Inclusive bounds of an int."""
        low, high, _ = self.item.ranges[0]
        return int(low.str_value), int(high.str_value)

    def parse(self, text: str) -> Value:
        """The typed value of `text`; ValueError when it is not allowed."""
        if self.kind == "bool":
            if text not in ("y", "n"):
                raise ValueError
            return text == "y"
        if self.kind == "choice":
            if text not in self.members:
                raise ValueError
            return text
        if self.kind == "int":
            low, high = self.range()
            if not _INTEGER.match(text) or not low <= int(text) <= high:
                raise ValueError
            return int(text)
        if self.kind == "float":
            return self._parse_float(text)
        if "\0" in text or "\n" in text:
            raise ValueError
        if self.type_text == "list of integers" and not all(
            _INTEGER.match(part) for part in text.replace(",", " ").split()
        ):
            raise ValueError
        return text

    def _parse_float(self, text: str) -> float:
        match = _FLOAT_TYPE.match(self.type_text)
        if match is None or "_" in text:
            raise ValueError
        opens, low, high, closes = match.groups()
        value = float(text)
        above = value >= float(low) if opens == "[" else value > float(low)
        below = value <= float(high) if closes == "]" else value < float(high)
        if not (math.isfinite(value) and above and below):
            raise ValueError
        return value

    def member_symbol(self, value: str) -> str:
        """The Kconfig symbol behind a choice's value."""
        return f"{self.name}_{value.upper()}"


class Schema:
    """All settings of a tree of Kconfig files, and the kconfiglib state that values are tried on."""

    def __init__(self, root: Path) -> None:
        """Read `root`/Kconfig. Raises ConfigError when it cannot be parsed or an entry breaks the rules above."""
        need("kconfiglib", root)
        import kconfiglib

        before = os.environ.get("srctree")
        os.environ["srctree"] = str(root)
        try:
            self.kconf = kconfiglib.Kconfig("Kconfig", warn_to_stderr=False)
        except (kconfiglib.KconfigError, OSError) as error:
            raise ConfigError("Kconfig: " + str(error).strip().splitlines()[0]) from None
        finally:
            if before is None:
                del os.environ["srctree"]
            else:
                os.environ["srctree"] = before
        if self.kconf.warnings:
            raise ConfigError("Kconfig: " + self.kconf.warnings[0].strip().splitlines()[0])
        self.root = root
        self.options = {option.name: option for option in map(self._option, self._items())}
        self.by_flag = {option.flag: option for option in self.options.values()}
        self.by_env = {option.env: option for option in self.options.values()}
        # The option that owns each Kconfig symbol: itself, or the choice it is a member of.
        self.owner = {o.name: o for o in self.options.values() if o.kind != "choice"}
        for option in self.options.values():
            self.owner.update({option.member_symbol(v): option for v in option.members})

    def _items(self) -> list[Any]:
        """Symbols and choices in the order of the menus."""
        from kconfiglib import Choice, Symbol

        found: list[Any] = []
        for node in self.kconf.node_iter(unique_syms=True):
            item = node.item
            is_setting = isinstance(item, (Symbol, Choice)) and node.prompt is not None
            if is_setting and getattr(item, "choice", None) is None and item not in found:
                found.append(item)
        return found

    def _option(self, item: Any) -> Option:
        import kconfiglib as k

        node = item.nodes[0]
        lines = (node.help or "").rstrip().splitlines()
        tags: dict[str, str] = {}
        while lines and (tag := re.match(r"(Class|Type): (.+)$", lines[-1].strip())):
            tags[tag[1]] = tag[2].strip()
            lines.pop()
        type_text = tags.get("Type", "")
        is_choice = isinstance(item, k.Choice)
        if is_choice:
            kind = "choice"
        else:
            kind = {k.BOOL: "bool", k.INT: "int", k.STRING: "str"}.get(item.orig_type, "")
            if kind == "str" and type_text.startswith("float"):
                kind = "float"
        menu = node.parent
        while menu.item is not k.MENU and menu.parent is not None:
            menu = menu.parent
        option = Option(
            name=item.name,
            kind=kind,
            prompt=node.prompt[0],
            help=" ".join(line.strip() for line in lines).strip(),
            type_text=type_text,
            cls=tags.get("Class", ""),
            menu=menu.prompt[0],
            members=tuple(s.name.removeprefix(item.name + "_").lower() for s in item.syms) if is_choice else (),
            item=item,
        )
        where = f"{node.filename}:{node.linenr}: {item.name}"
        if not kind:
            raise ConfigError(f"{where}: only bool, int, string and choice settings exist here")
        if option.cls not in CLASSES:
            raise ConfigError(f"{where}: its help must end in `Class: varied`, `compared` or `recorded`")
        if option.is_mechanism and option.cls != "varied":
            raise ConfigError(f"{where}: a Mechanism setting is `Class: varied`")
        if kind == "int" and not item.ranges:
            raise ConfigError(f"{where}: an int needs a range")
        if kind == "str" and type_text not in STRING_TYPES:
            raise ConfigError(f"{where}: the last help line must be `Type: ` and one of {', '.join(STRING_TYPES)}")
        if kind == "float" and not _FLOAT_TYPE.match(type_text):
            raise ConfigError(f"{where}: `Type: {type_text}` should read `Type: float in (low, high)`, round or square")
        if is_choice and any(not s.name.startswith(item.name + "_") for s in item.syms):
            raise ConfigError(f"{where}: a choice's members must begin with {item.name}_")
        return option

    def text(self, option: Option) -> str | None:
        """The option's value in the current state as .config would hold it (unquoted), or None when unavailable."""
        if option.kind == "choice":
            selected = option.item.selection
            return None if selected is None else selected.name.removeprefix(option.name + "_").lower()
        if not self._available(option):
            return None
        return str(option.item.str_value)

    @staticmethod
    def _available(option: Option) -> bool:
        from kconfiglib import expr_value

        return bool(expr_value(option.item.direct_dep))

    def unmet(self, option: Option) -> str | None:
        """The dependency that hides the option now, in Kconfig's words, or None."""
        from kconfiglib import expr_str

        return None if self._available(option) else expr_str(option.item.direct_dep)

    def set(self, option: Option, value: str) -> None:
        """Give the option a value on the kconfiglib state (checked by the caller beforehand)."""
        if option.kind == "choice":
            self.kconf.syms[option.member_symbol(value)].set_value("y")
        else:
            option.item.set_value(value)
