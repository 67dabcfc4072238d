"""make menuconfig: edit .config in the terminal."""

import os
import sys

from lib.config import sources
from lib.config.errors import ConfigError
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    _ = space.variables
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menuconfig needs a terminal; edit .config, or use `make show` and variables")
    space.base.mkdir(parents=True, exist_ok=True)
    if space.config_path.exists():
        sources.read_file(space.resolver.schema, space.config_path)
    os.environ["KCONFIG_CONFIG"] = str(space.config_path)
    import menuconfig
    from kconfiglib import MENU

    kconf = space.resolver.schema.kconf
    kconf.unset_values()
    for node in kconf.node_iter():
        if node.item is MENU and node.prompt[0] == "Mechanism":  # a step's settings, refused in a .config
            node.visibility = kconf.n
    menuconfig.menuconfig(kconf)
    _ = space.specs


if __name__ == "__main__":
    exit_with(main)
