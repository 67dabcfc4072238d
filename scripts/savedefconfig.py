"""make savedefconfig NAME=…: keep this .config, with the variables given, as defconfigs/NAME."""

import os

from lib.config import defconfigs
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    name = os.environ.get("NAME", "")
    steps = " ".join(space.matrix.step_list)
    path = defconfigs.save_defconfig(space.resolver, space.given, name, f"{name}: steps {steps}")
    print(f"{space.shown(path)} written. Its first line is its description: edit it. Load it: make defconfig-{name}")


if __name__ == "__main__":
    exit_with(main)
