"""No option that nothing reads, none that two rooms read, no field without its option."""

from pathlib import Path

import pytest

from lib.config.errors import ConfigError
from lib.config.readers import check_readers, readers
from lib.config.resolve import Resolver

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_feeds_exactly_one_field_and_every_field_has_its_setting():
    check_readers(Resolver(ROOT).schema, ROOT)
    assert len(readers(ROOT)) > 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in [ROOT / "Kconfig", *ROOT.glob("lib/**/*.py"), *ROOT.glob("gpt2/**/*.py"), *ROOT.glob("*/**/Kconfig")]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def refused(tree: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_readers(Resolver(tree).schema, tree)
    return str(caught.value)


def test_a_setting_that_nothing_reads_is_named(tree):
    kconfig = tree / "gpt2" / "Kconfig"
    text = kconfig.read_text().replace(
        'menu "Model"\n', 'menu "Model"\n\nconfig GPT2_IDLE\n\tbool "Idle"\n\thelp\n\t  Class: recorded\n', 1
    )
    kconfig.write_text(text)
    assert "GPT2_IDLE: no dataclass field reads" in refused(tree)


def test_a_setting_that_two_fields_read_is_named(tree):
    (tree / "lib" / "again.py").write_text('class Again:\n    layers: int = sym("GPT2_N_LAYER")\n')
    assert "GPT2_N_LAYER is read more than once (gpt2/size.py" in refused(tree)


def test_a_field_without_its_setting_is_named(tree):
    (tree / "lib" / "more.py").write_text('class More:\n    x: int = sym("GPT2_NOWHERE")\n')
    assert "lib/more.py:2: GPT2_NOWHERE is no setting" in refused(tree)
