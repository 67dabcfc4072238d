"""make check: a dry run of every step of this .config at its real width and depth, on the CPU."""

import sys
import time

from lib.config.errors import need
from lib.config.readers import check_readers
from scripts.workspace import ROOT, Workspace, exit_with


def main() -> int:
    began = time.monotonic()
    space = Workspace()
    cells = space.cells
    check_readers(space.resolver.schema, ROOT)
    need("torch", ROOT)
    from gpt2.check import check

    broken = check([cell.spec for cell in cells])
    steps = len({cell.spec.step for cell in cells})
    if broken:
        print(f"error: {len(broken)} of {steps} steps are broken: {' '.join(broken)}", file=sys.stderr)
        return 1
    print(f"{steps} steps are sound ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    exit_with(main)
