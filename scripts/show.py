"""make show: every value and where it comes from; those that are not defaults are marked."""

from scripts.workspace import Workspace, exit_with


def main() -> None:
    space = Workspace()
    specs = space.specs
    spec, schema = specs[0], space.resolver.schema
    menu = ""
    for name, option in schema.options.items():
        if name not in spec.sources or option.is_mechanism:
            continue
        if option.menu != menu:
            menu = option.menu
            print(f"\n{menu}")
        value, source = spec.values[name], spec.sources[name]
        text = show_value(value)
        mark = " " if value == option_default(space, name) else "*"
        print(f" {mark} {name:<26} {text:<24} {source:<34} {option.cls}")
    print(f"\nBudget: {spec.budget} ({spec.sources[budget_symbol(spec.budget.kind)]})")
    print(f"Fairness hash: {spec.fairness_hash[:16]}   (* differs from the default)")
    print(f"Runs: {len(specs)}")
    for each in specs:
        own = [n for n, source in each.sources.items() if source.startswith("gpt2/steps/")]
        arm = " ".join(f"{n}={show_value(each.values[n])}" for n in own)
        print(f"  {each.name:<30} {each.spec_hash[:8]}  {arm or 'the baseline'}")


def show_value(value: object) -> str:
    """A value as .config would hold it, without quotes."""
    return ("y" if value else "n") if isinstance(value, bool) else str(value)


def option_default(space: Workspace, name: str) -> object:
    """The value that Kconfig alone would give."""
    if not hasattr(option_default, "values"):
        option_default.values = space.resolver.resolve([])[0]
    return option_default.values.get(name)


def budget_symbol(kind: str) -> str:
    """The symbol that holds a budget of this kind."""
    from lib.config.budget import ORDER

    return dict(ORDER)[kind]


if __name__ == "__main__":
    exit_with(main)
