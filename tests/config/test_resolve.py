"""Who wins among the sources, and what the hashes cover."""

from pathlib import Path

import pytest

from lib.config import sources
from lib.config.budget import Budget
from lib.config.errors import ConfigError
from lib.config.resolve import Resolver
from lib.config.schema import Schema
from lib.config.sources import CONFIG, FLAG, VARIABLE, Assignment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver(ROOT)


def given(resolver, *triples):
    return [Assignment(resolver.schema.options[name], text, rank, f"rank {rank}") for name, text, rank in triples]


def test_a_flag_beats_the_environment_which_beats_config_which_beats_the_default(resolver):
    layers = [("GPT2_SEED", "1", CONFIG), ("GPT2_SEED", "2", VARIABLE), ("GPT2_SEED", "3", FLAG)]
    for upto, seed in ((0, 0), (1, 1), (2, 2), (3, 3)):
        spec = resolver.spec(given(resolver, *layers[:upto]))
        assert spec.seed == seed
        assert spec.sources["GPT2_SEED"] == ("default" if upto == 0 else f"rank {layers[upto - 1][2]}")


def test_a_lower_setting_hidden_by_a_higher_choice_is_no_mistake(resolver):
    spec = resolver.spec(given(resolver, ("SPAM_THETA", "9", CONFIG), ("GPT2_OPTIMIZER", "adamw", VARIABLE)))
    assert spec.optimizer == "adamw"
    assert "SPAM_THETA" not in spec.values


@pytest.mark.parametrize(
    ("layers", "budget"),
    [
        ([], Budget("time", 7200)),
        ([("GPT2_MAX_ITERS", "10400", CONFIG)], Budget("iters", 10400)),
        ([("GPT2_MAX_ITERS", "10400", CONFIG), ("GPT2_MAX_TIME", "7200", CONFIG)], Budget("iters", 10400)),
        ([("GPT2_MAX_ITERS", "10400", CONFIG), ("GPT2_MAX_TIME", "60", VARIABLE)], Budget("time", 60)),
        ([("GPT2_MAX_FLOPS", "1e15", VARIABLE), ("GPT2_MAX_TOKENS", "5000", VARIABLE)], Budget("tokens", 5000)),
        ([("GPT2_MAX_TIME", "60", VARIABLE), ("GPT2_MAX_ITERS", "7", FLAG)], Budget("iters", 7)),
    ],
)
def test_the_budget_of_the_higher_source_wins_and_iterations_win_at_equal_rank(resolver, layers, budget):
    assert resolver.spec(given(resolver, *layers)).budget == budget


def test_a_short_time_budget_reduces_the_validation_windows_and_says_so(resolver):
    spec = resolver.spec(given(resolver, ("GPT2_MAX_TIME", "60", VARIABLE)))
    assert spec.values["GPT2_EVAL_WINDOWS"] == 20
    assert "300 s" in spec.sources["GPT2_EVAL_WINDOWS"]


def test_arms_share_the_fairness_hash_and_differ_in_the_spec_hash(resolver):
    specs = [resolver.spec([], step) for step in ("V0", "V1", "V2", "V3")]
    assert len({s.fairness_hash for s in specs}) == 1
    assert len({s.spec_hash for s in specs}) == len(specs)


@pytest.mark.parametrize(
    ("name", "text", "spec_moves", "fairness_moves"),
    [
        ("GPT2_SEED", "1", True, False),
        ("GPT2_LEARNING_RATE", "1e-3", True, False),
        ("GPT2_N_LAYER", "6", True, True),
        ("GPT2_MAX_TIME", "7000", True, True),
        ("GPT2_LEARNING_RATE", "0.0006", False, False),
        ("GPT2_MICRO_BATCH", "4", False, False),
        ("GPT2_NGPUS", "2", False, False),
        ("GPT2_OUTPUT", "elsewhere", False, False),
    ],
)
def test_hashes_cover_varied_and_compared_settings_only(resolver, name, text, spec_moves, fairness_moves):
    base, moved = resolver.spec([]), resolver.spec(given(resolver, (name, text, VARIABLE)))
    assert (base.spec_hash != moved.spec_hash) == spec_moves
    assert (base.fairness_hash != moved.fairness_hash) == fairness_moves


def test_a_losing_budget_leaves_no_trace_in_the_hashes(resolver):
    one = resolver.spec(given(resolver, ("GPT2_MAX_ITERS", "5", FLAG)))
    two = resolver.spec(given(resolver, ("GPT2_MAX_ITERS", "5", FLAG), ("GPT2_MAX_TIME", "1000", CONFIG)))
    assert one.spec_hash == two.spec_hash


def test_the_matched_arm_of_a_control_is_part_of_its_hash(resolver):
    spec = resolver.spec([], "G2")
    assert spec.values["MATCHED_VALUES"] == resolver.step_values(str(spec.values["MATCHED_STEP"]))


def test_run_names_carry_the_seed_only_when_it_is_not_zero(resolver):
    assert resolver.spec([], "V1", "adamw", 0).name == "test_V1_adamw_none"
    assert resolver.spec([], "V1", "adamw", 2).name == "test_V1_adamw_none_s2"


def test_a_step_that_reaches_beyond_the_mechanism_is_refused(tmp_path):
    tree = copy_of_kconfig(tmp_path)
    (tree / "gpt2" / "steps" / "X1.config").write_text("# reaches too far\nCONFIG_GPT2_SEED=3\n")
    with pytest.raises(ConfigError, match=r"gpt2/steps/X1.config:2: GPT2_SEED is no Mechanism setting"):
        Resolver(tree).spec([], "X1")


def test_a_step_without_a_description_is_refused(tmp_path):
    tree = copy_of_kconfig(tmp_path)
    (tree / "gpt2" / "steps" / "X1.config").write_text("CONFIG_ATTENTION_UNIFIED_RA=y\n")
    with pytest.raises(ConfigError, match=r"gpt2/steps/X1.config:1: .*description"):
        Resolver(tree).spec([], "X1")


def test_a_float_that_is_not_quoted_text_or_a_setting_without_class_is_refused_at_load(tmp_path):
    tree = copy_of_kconfig(tmp_path)
    kconfig = tree / "lib" / "Kconfig"
    kconfig.write_text(kconfig.read_text() + '\nconfig GPT2_LOOSE\n\tint "Loose"\n\trange 0 1\n\tdefault 0\n')
    with pytest.raises(ConfigError, match="GPT2_LOOSE: its help must end in `Class"):
        Schema(tree)


def test_every_step_resolves_and_every_defconfig_plans(resolver):
    from lib.config import defconfigs

    for step in resolver.steps:
        assert resolver.spec([], step).description
    for name in defconfigs.names(ROOT):
        for host in ("", *(f"+{h}" for h in defconfigs.hosts(ROOT))):
            assert resolver.spec(defconfigs.read(resolver, name + host), "V0").budget.amount > 0


def test_a_written_config_reads_back_as_the_same_run(resolver, tmp_path):
    from lib.config import defconfigs

    wanted = resolver.spec(defconfigs.read(resolver, "gpt2-ra-ablation+h200"), "V1")
    path = tmp_path / ".config"
    path.write_text("# mine\n")
    for _ in range(2):  # the second finds nothing to change, and leaves what the first has put by
        defconfigs.write_config(resolver, defconfigs.read(resolver, "gpt2-ra-ablation+h200"), path, "title")
    again = resolver.spec(sources.read_file(resolver.schema, path), "V1")
    assert again.spec_hash == wanted.spec_hash
    assert again.values == wanted.values
    assert path.with_name(".config.old").read_text() == "# mine\n"


def test_a_saved_defconfig_holds_only_differences_and_reads_back_equal(tmp_path):
    from lib.config import defconfigs

    tree = copy_of_kconfig(tmp_path)
    (tree / "defconfigs").mkdir()
    resolver = Resolver(tree)
    changes = given(
        resolver,
        ("GPT2_OPTIMIZER", "muon", CONFIG),
        ("GPT2_COMPILE", "n", CONFIG),
        ("GPT2_DATA_PATH", 'a "b"\\c', CONFIG),
        ("GPT2_N_LAYER", "3", CONFIG),
    )
    path = defconfigs.save_defconfig(resolver, changes, "mine", "what it is")
    lines = path.read_text().splitlines()
    assert lines[0] == "# what it is"
    assert "CONFIG_GPT2_OPTIMIZER_MUON=y" in lines
    assert len([line for line in lines if "CONFIG" in line]) == 4
    assert resolver.spec(defconfigs.read(resolver, "mine")).spec_hash == resolver.spec(changes).spec_hash
    with pytest.raises(ConfigError, match="already has it"):
        defconfigs.save_defconfig(resolver, changes, "mine", "")
    for unfit in ("", "../x", ".hidden", "a b"):
        with pytest.raises(ConfigError, match="NAME="):
            defconfigs.save_defconfig(resolver, changes, unfit, "")


def copy_of_kconfig(tmp_path: Path) -> Path:
    """A tree with the Kconfig files and V0, free to be broken."""
    for name in ("Kconfig", "gpt2/Kconfig", "lib/Kconfig", "lib/data/Kconfig", "gpt2/steps/V0.config"):
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / name).read_text())
    return tmp_path / "tree"
