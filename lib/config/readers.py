"""Who reads a setting: every option feeds exactly one field of one dataclass, or it would be an option that lies.

The readers are found in the sources, so that checking them imports nothing.
"""

from __future__ import annotations

import ast
from pathlib import Path

from lib.config.budget import ORDER
from lib.config.errors import ConfigError
from lib.config.resolve import SEED_SYMBOL, STEP_SYMBOL
from lib.config.schema import Schema

# What resolve() itself turns into a RunSpec: the step, the seed, the budget.
RESOLVED = {STEP_SYMBOL, SEED_SYMBOL, *(symbol for _, symbol in ORDER)}


def readers(root: Path) -> dict[str, list[str]]:
    """For each symbol the places (file:line) whose dataclass field it feeds."""
    found: dict[str, list[str]] = {}
    for path in sorted(p for folder in ("lib", "gpt2") for p in (root / folder).rglob("*.py")):
        for room in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(room, ast.ClassDef):
                for field in room.body:
                    symbol = _symbol(field)
                    if symbol:
                        found.setdefault(symbol, []).append(f"{path.relative_to(root)}:{field.lineno}")
    return found


def _symbol(field: ast.stmt) -> str | None:
    """What follows `= sym(`, or stands under "symbol" in a field's metadata."""
    if not isinstance(field, ast.AnnAssign) or field.value is None:
        return None
    for node in ast.walk(field.value):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sym":
            return str(ast.literal_eval(node.args[0]))
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "symbol":
                    return str(ast.literal_eval(value))
    return None


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
