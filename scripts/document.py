"""make docs: write docs/configuration.md from Kconfig, so that the page cannot disagree with the program."""

from kconfiglib import expr_str

from lib.config.schema import Option
from scripts.workspace import ROOT, Workspace, exit_with


def main() -> None:
    path = ROOT / "docs" / "configuration.md"
    path.write_text(page(Workspace()), encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written")


def page(space: Workspace) -> str:
    """The whole page."""
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
        lines.append(row(option))
    return "\n".join(lines) + "\n"


def row(option: Option) -> str:
    """One line of the table."""
    needs = f" Needs {unmet}." if (unmet := needed(option)) else ""
    said = f"**{option.name}**: {option.prompt}.{' ' + option.help if option.help else ''}{needs}"
    return f"| {said} | `{option.flag}` | {default(option)} | {option.allowed()} | {option.cls} |"


def default(option: Option) -> str:
    """The default as Kconfig writes it, with its conditions."""
    always = option.item.kconfig.y
    parts = []
    for value, condition in option.item.orig_defaults:
        text = value.name.removeprefix(f"{option.name}_").lower() if option.kind == "choice" else value.str_value
        parts.append(f"`{text}`" + ("" if condition is always else f" if {expr_str(condition)}") if text else "")
    return ", else ".join(parts) or ("`n`" if option.kind == "bool" else "")


def needed(option: Option) -> str:
    """What must be so for the option to exist, in Kconfig's words."""
    condition = option.item.direct_dep
    return "" if condition is option.item.kconfig.y else expr_str(condition)


if __name__ == "__main__":
    exit_with(main)
