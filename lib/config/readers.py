"""Who reads a setting: every option feeds exactly one field of one dataclass, or it would be an option that lies.

The readers are found in the sources, so that checking them imports nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from lib.config.budget import ORDER
from lib.config.errors import ConfigError
from lib.config.resolve import SEED_SYMBOL, STEP_SYMBOL
from lib.config.schema import Schema

# What resolve() itself turns into a RunSpec: the step, the seed, the budget.
RESOLVED = {STEP_SYMBOL, SEED_SYMBOL, *(symbol for _, symbol in ORDER)}
_FIELD = re.compile(r"""^    \w+.*(?:\bsym\(|"symbol":\s*)"(\w+)\"""", re.MULTILINE)


def readers(root: Path) -> dict[str, list[str]]:
    """For each symbol the places (file:line) whose dataclass field it feeds."""
    found: dict[str, list[str]] = {}
    for path in sorted(p for folder in ("lib", "gpt2") for p in (root / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for match in _FIELD.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.setdefault(match[1], []).append(f"{path.relative_to(root)}:{line}")
    return found


def check_readers(schema: Schema, root: Path) -> None:
    """Raise ConfigError for a setting that nothing reads, that two fields read, or a field without its setting."""
    found = readers(root)
    for name in schema.options:
        places = found.get(name, [])
        if name not in RESOLVED and not places:
            raise ConfigError(
                f"{name}: no dataclass field reads this setting; give it a reader or remove it from Kconfig"
            )
        if len(places) + (name in RESOLVED) > 1:
            raise ConfigError(f"{name} is read more than once ({', '.join(places)}); one setting feeds one field")
    for name, places in found.items():
        if name not in schema.options:
            raise ConfigError(f"{places[0]}: {name} is no setting; add it to Kconfig")
