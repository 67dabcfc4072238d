"""Every mistake in a .config, the environment or a flag is one line that names its place and the way out."""

from pathlib import Path

import pytest

from lib.config import flags, sources
from lib.config.errors import ConfigError
from lib.config.resolve import Resolver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver(ROOT)


def refused(resolver: Resolver, tmp_path: Path, text: str) -> str:
    path = tmp_path / ".config"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolver.spec(sources.read_file(resolver.schema, path, shown=".config"))
    message = str(caught.value)
    assert "\n" not in message
    return message


MISTAKES = [
    ("CONFIG_GPT2_MAX_TIM=60", [".config:1", "did you mean CONFIG_GPT2_MAX_TIME?"]),
    ("CONFIG_GPT2_OPTIMIZER_ADAMWSPAN=y", [".config:1", "did you mean CONFIG_GPT2_OPTIMIZER_ADAMWSPAM?"]),
    ("CONFIG_GPT2_MAX_TIME = 1", [".config:1", "write CONFIG_GPT2_MAX_TIME=1", "no spaces"]),
    ("GPT2_MAX_TIME=1", [".config:1", "write CONFIG_GPT2_MAX_TIME=1"]),
    ("CONFIG_GPT2_COMPILE=yes", [".config:1", "y or n", "yes"]),
    ("CONFIG_GPT2_SCHEDULE_WSD=yes", [".config:1", "y or n", "yes"]),
    ("CONFIG_GPT2_N_LAYER=0", [".config:1", "an integer from 1 to 512"]),
    ("CONFIG_GPT2_N_LAYER=1000000000", [".config:1", "an integer from 1 to 512"]),
    ("CONFIG_GPT2_N_LAYER=0x10", [".config:1", "integer"]),
    ("CONFIG_GPT2_N_LAYER=", [".config:1", "nothing"]),
    ('CONFIG_GPT2_N_LAYER="12"', [".config:1", "integer"]),
    ("# CONFIG_GPT2_N_LAYER is not set", [".config:1", "cannot be `not set`"]),
    ('CONFIG_GPT2_DROPOUT="1.0"', [".config:1", "float in [0, 1)"]),
    ('CONFIG_GPT2_DROPOUT="nan"', [".config:1", "float in [0, 1)"]),
    ('CONFIG_GPT2_DROPOUT="0,1"', [".config:1", "float in [0, 1)"]),
    ('CONFIG_GPT2_DROPOUT=""', [".config:1", "float in [0, 1)"]),
    ("CONFIG_GPT2_DROPOUT=0.1", [".config:1", 'write CONFIG_GPT2_DROPOUT="0.1"']),
    ('CONFIG_SPAM_THETA="9"\nCONFIG_GPT2_OPTIMIZER_ADAMW=y', [".config:1", "needs GPT2_OPTIMIZER_ADAMWSPAM"]),
    ("hello world", [".config:1", "hello world", "CONFIG_NAME=value"]),
    ("\n\nCONFIG_GPT2_SEED=1\nCONFIG_GPT2_SEED=2", [".config:4", "already set at .config:3"]),
    ("CONFIG_GPT2_SCHEDULE_WSD=y\nCONFIG_GPT2_SCHEDULE_COSINE=y", [".config:2", "already set at .config:1"]),
    ("CONFIG_ATTENTION_UNIFIED_RA=y", [".config:1", "gpt2/steps/NAME.config"]),
    ("CONFIG_GPT2_N_EMBD=100", ["GPT2_N_EMBD 100", "GPT2_N_HEAD 12"]),
    ("CONFIG_GPT2_TOKENS_PER_STEP=1000", ["no multiple of GPT2_BLOCK_SIZE 1024", "nearest is 1024"]),
    ('CONFIG_GPT2_MIN_LR="1"', ["GPT2_MIN_LR 1.0 is above"]),
    ("CONFIG_GPT2_MAX_TIME=0", ["no budget"]),
    ('CONFIG_RA_MLA_ABLATION_STEP="V1X"', ["step V1X", "did you mean V1"]),
    ('CONFIG_GPT2_SEEDS="0 one"', [".config:1", "list of integers"]),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[m[0].splitlines()[0] or "blank" for m in MISTAKES])
def test_a_mistake_in_a_config_file_is_one_line_with_its_place_and_what_is_allowed(resolver, tmp_path, text, said):
    message = refused(resolver, tmp_path, text)
    for words in said:
        assert words in message, message


def test_a_file_that_is_missing_or_binary_is_named(resolver, tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such file"):
        sources.read_file(resolver.schema, tmp_path / "x", shown="nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        sources.read_file(resolver.schema, tmp_path / "binary")


def test_an_unknown_environment_name_is_refused_with_the_nearest(resolver):
    with pytest.raises(ConfigError, match="GPT2_MAX_TME: no such setting; did you mean GPT2_MAX_TIME"):
        sources.variables(resolver.schema, {"GPT2_MAX_TME": "60", "PATH": "/bin"})


def test_an_unknown_make_variable_is_refused_with_the_nearest(resolver):
    with pytest.raises(ConfigError, match="make: SEDS: no such variable; did you mean SEEDS"):
        sources.variables(resolver.schema, {"MAKE_GIVEN": "SEDS", "SEDS": "0 1"})


def test_a_bad_value_in_the_environment_names_its_variable(resolver):
    with pytest.raises(ConfigError, match=r"environment GPT2_MAX_TIME: .* integer"):
        resolver.spec(sources.variables(resolver.schema, {"GPT2_MAX_TIME": "1h"}))


@pytest.mark.parametrize("word", ["TIME", "MAX_TIME", "GPT2_MAX_TIME"])
def test_a_make_variable_may_leave_out_the_prefix(resolver, word):
    spec = resolver.spec(sources.variables(resolver.schema, {"MAKE_GIVEN": word, word: "60"}))
    assert spec.values["GPT2_MAX_TIME"] == 60
    assert spec.sources["GPT2_MAX_TIME"] == f"make {word}"


def test_an_unknown_flag_is_refused_with_the_nearest(resolver):
    made = flags.parser(resolver.schema, "train", "")
    with pytest.raises(ConfigError, match=r"--max-tim: no such flag; did you mean --max-time"):
        flags.parse(resolver.schema, made, ["--max-tim", "3"])


def test_every_option_is_a_flag_that_takes(resolver):
    made = flags.parser(resolver.schema, "train", "")
    _, found = flags.parse(
        resolver.schema, made, ["--no-compile", "--n-layer", "3", "--optimizer", "muon", "--muon-lr=0.1"]
    )
    values, where = resolver.resolve(found)
    assert (values["GPT2_COMPILE"], values["GPT2_N_LAYER"], values["GPT2_MUON_LR"]) == (False, 3, 0.1)
    assert where["GPT2_N_LAYER"] == "flag --n-layer"
    assert all(option.flag in made.format_help() for option in resolver.schema.options.values())


def test_an_assignment_survives_the_way_to_flags_and_back(resolver):
    given = {"RA_W_REC_INIT": "-0.5", "GPT2_COMPILE": "n", "GPT2_DATA_PATH": "a b/--c", "ATTENTION": "unified_ra"}
    words = [w for name, text in given.items() for w in flags.as_flags(resolver.schema.options[name], text)]
    _, found = flags.parse(resolver.schema, flags.parser(resolver.schema, "train", ""), words)
    assert {a.option.name: a.text for a in found} == given
