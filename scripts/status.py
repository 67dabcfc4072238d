"""make status: what is done, running, stopped, failed, waiting."""

from lib.analysis import table
from lib.matrix import status
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    rows = status.rows(space.cells)
    print(table.text(status.HEADER, rows))
    states = [row[1] for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    print(f"\n{space.shown(space.output)}: {counts}")


if __name__ == "__main__":
    exit_with(main)
