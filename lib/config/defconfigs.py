"""Whole configurations on disk: named defconfigs with host fragments, the .config they become, and back.

A defconfig holds only what differs from the defaults; `NAME+HOST` lays defconfigs/hosts/HOST over it; a .config holds
every setting.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lib.config.errors import ConfigError
from lib.config.resolve import Resolver
from lib.config.schema import suggest
from lib.config.sources import Assignment, read_file


def names(root: Path) -> dict[str, str]:
    """Every defconfig's name and description (its first comment line), those of the earlier generations last."""
    folders = (root / "defconfigs", root / "defconfigs" / "old")
    return {p.name: _description(p) for f in folders for p in sorted(f.glob("*")) if p.is_file()}


def hosts(root: Path) -> dict[str, str]:
    """Every host fragment's name and description."""
    return {p.name: _description(p) for p in sorted((root / "defconfigs" / "hosts").glob("*"))}


def _description(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()


def read(resolver: Resolver, name: str) -> list[Assignment]:
    """The assignments of `NAME` or `NAME+HOST+…`. Raises ConfigError for unknown names."""
    base, *fragments = name.split("+")
    root, known, known_hosts = resolver.root, names(resolver.root), hosts(resolver.root)
    if base not in known:
        raise ConfigError(
            f"defconfig {base}: not in defconfigs/{suggest(base, known) or '; see `make list-defconfigs`'}"
        )
    path = root / "defconfigs" / base
    found = read_file(resolver.schema, path if path.is_file() else root / "defconfigs" / "old" / base)
    for fragment in fragments:
        if fragment not in known_hosts:
            listed = suggest(fragment, known_hosts, "; did you mean +") or "; hosts: " + " ".join(
                f"+{h}" for h in known_hosts
            )
            raise ConfigError(f"defconfig +{fragment}: not in defconfigs/hosts/{listed}")
        found += read_file(resolver.schema, root / "defconfigs" / "hosts" / fragment)
    return found


def write_config(resolver: Resolver, assignments: list[Assignment], path: Path, title: str) -> None:
    """Write a full .config at `path` atomically; one that is there already is kept as `.config.old`."""
    resolver.resolve(assignments)
    _write(path, resolver, f"# {title}\n", keep=True)


def save_defconfig(resolver: Resolver, assignments: list[Assignment], name: str, description: str) -> Path:
    """Write what differs from the defaults to defconfigs/`name`. Raises ConfigError when the name is taken or unfit."""
    if not name:
        raise ConfigError("savedefconfig needs a name, as in `make savedefconfig NAME=gpt2-mine`")
    if not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise ConfigError(f"NAME={name!r}: letters, digits, dash, dot and underscore only, as NAME=gpt2-mine")
    path = resolver.root / "defconfigs" / name
    if path.exists() or name in names(resolver.root):
        raise ConfigError(f"NAME={name}: defconfigs already has it; choose another name or remove that file first")
    values, _ = resolver.resolve(assignments)
    plain, _ = resolver.resolve([])
    wanted = {name for name, value in values.items() if value != plain.get(name)}
    for hidden in wanted - plain.keys():  # unavailable by default: does its own assignment change anything?
        if resolver.resolve([a for a in assignments if a.option.name != hidden])[0] == values:
            wanted.discard(hidden)
    lines = [f"# {description}"]
    resolver.resolve(assignments)
    for option in resolver.schema.options.values():
        text = resolver.schema.text(option)
        if option.name in wanted and text is not None:
            lines.append(_line(option.kind, option.name, text, option.member_symbol(text)))
    _replace(path, "\n".join(lines) + "\n")
    return path


def _line(kind: str, name: str, text: str, member: str) -> str:
    if kind == "choice":
        return f"CONFIG_{member}=y"
    if kind == "bool" and text == "n":
        return f"# CONFIG_{name} is not set"
    if kind in ("str", "float"):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'CONFIG_{name}="{escaped}"'
    return f"CONFIG_{name}={text}"


def _write(path: Path, resolver: Resolver, header: str, keep: bool) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".config-") as folder:
        fresh = Path(folder) / "config"
        resolver.schema.kconf.write_config(str(fresh), header=header, save_old=False)
        if path.is_file() and path.read_bytes() == fresh.read_bytes():
            return  # the one before last stays in .config.old
        if keep and path.exists():
            os.replace(path, path.with_name(path.name + ".old"))
        os.replace(fresh, path)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
