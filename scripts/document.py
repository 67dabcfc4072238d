"""make docs: write docs/configuration.md from Kconfig, so that the page cannot disagree with the program."""

from lib.config.schema import Option
from scripts.workspace import ROOT, Workspace, exit_with


def main() -> None:
    path = ROOT / "docs" / "configuration.md"
    path.write_text(page(Workspace()), encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written")


def page(space: Workspace) -> str:
    """The whole page."""
    defaults, _ = space.resolver.resolve([])
    lines = [
        "# Every setting",
        "",
        "Generated from Kconfig by `make docs`; do not edit.",
        "",
        "A setting can be given, in rising precedence, by `.config` (`CONFIG_NAME=value`), by a make variable or the",
        "environment (`GPT2_NAME=value`; on make's command line the prefix may be left out), and by a flag of",
        "`gpt2/train_ra_mla.py`. Settings of the menu *Mechanism* belong to the steps (`gpt2/steps/*.config`).",
        "",
        "Class: **varied** settings are what a matrix compares; **compared** ones must be equal in all its arms;",
        "**recorded** ones may differ between machines. A budget from the higher source wins; at equal rank",
        "iterations, then tokens, FLOPs and seconds.",
    ]
    menu = ""
    for option in space.resolver.schema.options.values():
        if option.menu != menu:
            menu = option.menu
            lines += ["", f"## {menu}", "", "| setting | flag | default | allowed | class |", "|---|---|---|---|---|"]
        lines.append(row(option, defaults.get(option.name)))
    return "\n".join(lines) + "\n"


def row(option: Option, default: object) -> str:
    """One line of the table."""
    text = ("y" if default else "n") if isinstance(default, bool) else "" if default in (None, "") else f"`{default}`"
    said = f"**{option.name}**: {option.prompt}.{' ' + option.help if option.help else ''}"
    return f"| {said} | `{option.flag}` | {text} | {option.allowed()} | {option.cls} |"


if __name__ == "__main__":
    exit_with(main)
