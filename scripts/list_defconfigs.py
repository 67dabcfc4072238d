"""make list-defconfigs: every whole configuration and host fragment, with its description."""

from lib.config import defconfigs
from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    _ = space.variables
    listed = defconfigs.names(space.root)
    width = max(map(len, listed))
    for name, description in listed.items():
        print(f"make defconfig-{name:<{width}}  {description}")
    print("\nAppend a host, as in `make defconfig-gpt2-ra-ablation+h200`:")
    for name, description in defconfigs.hosts(space.root).items():
        print(f"  +{name:<8} {description}")


if __name__ == "__main__":
    exit_with(main)
