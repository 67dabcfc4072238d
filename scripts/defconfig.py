"""make defconfig-NAME[+HOST]: write .config from defconfigs/NAME."""

import sys

from lib.config import defconfigs
from lib.config.errors import ConfigError
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space, name = Workspace(), sys.argv[1]
    given = [a.where for a in space.variables if a.where.startswith("make ")]
    if given and "--then-run" not in sys.argv:
        raise ConfigError(f"{', '.join(given)}: a defconfig is written as it is; give that to the commands after it")
    space.base.mkdir(parents=True, exist_ok=True)
    assignments = defconfigs.read(space.resolver, name)
    defconfigs.write_config(space.resolver, assignments, space.config_path, f"Made from defconfigs/{name}")
    then = "" if "--then-run" in sys.argv else f". Next: make check{space.where}, then make{space.where}"
    print(f"{space.shown(space.config_path)} written from {name}{then}")


if __name__ == "__main__":
    exit_with(main)
