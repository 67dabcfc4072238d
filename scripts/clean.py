"""make clean: remove caches and leftovers of interrupted work; --all: .config and shards too. Never results."""

import re
import shutil
import sys
from pathlib import Path

from lib.config.errors import ConfigError
from lib.data import shards
from lib.run.lock import holder_of, process_began
from scripts.workspace import ROOT, Workspace, exit_with

CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache")
# What a killed writer leaves: .metrics.json.1a2b3c4d.tmp, .model.pt.123.tmp; a tokenisation: .NAME.PID-1a2b3c4d.part
HALF_WRITTEN = re.compile(r"\.(?:config|metrics|failure|summary|model)\.\w+\.[0-9a-f]+\.tmp$")
HALF_TOKENISED = re.compile(r"\..+\.(\d+)-[0-9a-f]+\.part$")


def main() -> None:
    space = Workspace()
    _ = space.variables
    everything = "--all" in sys.argv[1:]
    for folder in (p for p in (space.base.iterdir() if space.base.is_dir() else ()) if p.is_dir()):
        if everything and (holder := holder_of(folder)):
            raise ConfigError(f"{space.shown(folder)} is in use by {holder}; wait for it, or stop that process")
    removed = [remove(ROOT / name) for name in CACHES]
    own = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in (".venv", ".git")]
    removed += [remove(path) for folder in own for path in folder.rglob("__pycache__")]
    removed += [remove(path) for path in leftovers(space.base)]
    if everything:
        removed += [remove(space.base / name) for name in (".config", ".config.old")]
        removed += [shards.remove(path) for path in data_folder(space).glob("*/") if path.is_dir()]
    print(f"{sum(removed)} removed; results stay")


def leftovers(base: Path) -> list[Path]:
    """Half-written files under the folder of .config, except where a run is at work."""
    found = [p for p in [*base.glob("*/.*.tmp"), *base.glob("*/test_*/.*.tmp")] if HALF_WRITTEN.match(p.name)]
    found += base.glob("*/test_*/checkpoints/.step-*")
    found = [p for p in found if not any(holder_of(folder) for folder in p.parents if folder.is_relative_to(base))]
    tokenised = ((p, HALF_TOKENISED.match(p.name)) for p in base.glob("*/.*.part"))
    return found + [p for p, match in tokenised if match and not process_began(int(match[1]))]


def data_folder(space: Workspace) -> Path:
    """The data folder of this .config (the default one without a .config)."""
    given = space.given if space.config_path.exists() else space.variables
    return space.base / str(space.resolver.resolve(given)[0]["GPT2_DATA_DIR"])


def remove(path: Path) -> int:
    """Remove a file or a tree; how many were there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    else:
        return 0
    return 1


if __name__ == "__main__":
    exit_with(main)
