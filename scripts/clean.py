"""make clean: remove caches and leftovers of interrupted work; --all: .config and shards too. Never results."""

import shutil
import sys
from pathlib import Path

from lib.run.lock import holder_of, process_began
from scripts.workspace import ROOT, Workspace, exit_with

CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", "build")


def main() -> None:
    space = Workspace()
    _ = space.variables
    removed = [remove(ROOT / name) for name in CACHES]
    own = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in (".venv", ".git")]
    removed += [remove(path) for folder in own for path in folder.rglob("__pycache__")]
    removed += [remove(path) for path in leftovers(space.base)]
    if "--all" in sys.argv[1:]:
        removed += [remove(space.base / name) for name in (".config", ".config.old")]
        removed += [remove(path.parent) for path in shards(space)]
    print(f"{sum(removed)} removed; results stay")


def leftovers(base: Path) -> list[Path]:
    """Half-written files under the folder of .config, except where a run is at work."""
    found = [*base.glob("*/.*.tmp"), *base.glob("*/test_*/.*.tmp"), *base.glob("*/test_*/checkpoints/.step-*")]
    # A tokenisation in the making carries its process's number: .NAME.PID-RANDOM.part
    found += [p for p in base.glob("*/.*.part") if not process_began(int(p.name.split(".")[-2].split("-")[0]))]
    return [p for p in found if not any(holder_of(folder) for folder in p.parents if folder.is_relative_to(base))]


def shards(space: Workspace) -> list[Path]:
    """Manifests of the token shards in the data folder of this .config (the default one without a .config)."""
    given = space.given if space.config_path.exists() else space.variables
    values, _ = space.resolver.resolve(given)
    return sorted((space.base / str(values["GPT2_DATA_DIR"])).glob("*/manifest.json"))


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
