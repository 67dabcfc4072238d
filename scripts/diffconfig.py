"""make diffconfig A=… B=…: what differs between two configurations (files or defconfig names)."""

import os
from pathlib import Path

from lib.config import defconfigs, sources
from lib.config.errors import ConfigError
from scripts.workspace import Workspace, exit_with


def main() -> int:
    space = Workspace()
    _ = space.variables
    old = space.config_path.with_name(".config.old")
    a = os.environ.get("A") or str(old)
    b = os.environ.get("B") or str(space.config_path)
    if not os.environ.get("A") and not old.exists():
        raise ConfigError("there is no .config.old to compare with; name two: A=gpt2-ra-ablation B=.config")
    left, right = values(space, a), values(space, b)
    for name in space.resolver.schema.options:
        if left.get(name) != right.get(name):
            print(f"{name:<28} {shown(left.get(name))} -> {shown(right.get(name))}")
    return 0


def values(space: Workspace, name: str) -> dict[str, object]:
    """All values of a configuration file or of a defconfig."""
    path = Path(name)
    if path.is_file():
        given = sources.read_file(space.resolver.schema, path, shown=space.shown(path))
    elif "/" in name or path.name.startswith("."):
        given = sources.read_file(space.resolver.schema, path, shown=name)
    else:
        given = defconfigs.read(space.resolver, name)
    return dict(space.resolver.resolve(given)[0])


def shown(value: object) -> str:
    """A value as .config would hold it."""
    if value is None:
        return "(unavailable)"
    return ("y" if value else "n") if isinstance(value, bool) else f"{value}" or '""'


if __name__ == "__main__":
    exit_with(main)
