"""make summary: the table of results so far, also as summary.md and summary.json."""

from scripts.report import summarise
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    if summarise(space):
        print(f"\nAlso in {space.shown(space.output)}/summary.md and summary.json")


if __name__ == "__main__":
    exit_with(main)
