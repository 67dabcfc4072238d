"""make rerun STEPS=failed, or STEPS="V1 V2": set those runs aside for good and train them again."""

import os

from lib.config.errors import ConfigError
from scripts import run
from scripts.workspace import Workspace, exit_with


def main() -> int:
    wanted = os.environ.get("STEPS", "").strip()
    if not wanted:
        raise ConfigError('rerun needs STEPS=failed, or names such as STEPS="V1 V2"')
    failed_only = wanted == "failed"
    if failed_only:
        os.environ["MAKE_GIVEN"] = " ".join(n for n in os.environ.get("MAKE_GIVEN", "").split() if n != "STEPS")
    space = Workspace()
    chosen = [c for c in space.cells if c.state == "failed" or (not failed_only and c.state in ("done", "stopped"))]
    if not chosen:
        print("nothing to set aside: no run has failed" if failed_only else "nothing to set aside: none has begun")
        if failed_only:
            return 0
    return run.train(space, chosen if failed_only else space.cells, retire=chosen)


if __name__ == "__main__":
    exit_with(main)
