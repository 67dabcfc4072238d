"""make plan: the exact command of every run, and whether it is done."""

import shlex
import sys
from pathlib import Path

from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    python = space.shown(Path(sys.executable))
    print(f"# from {space.root}")
    for cell in space.cells:
        print(f"# {cell.spec.name}: {cell.state}; {cell.spec.description}")
        print(shlex.join([python, *cell.command]))


if __name__ == "__main__":
    exit_with(main)
