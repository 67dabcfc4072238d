"""The two recipes of docs/, followed word by word in a copy of the tree: what they say to write, run and expect."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Kconfig", "defconfigs", "gpt2", "lib", "pyproject.toml", "ra.py", "scripts")
# A file's content: a fenced block whose introducing paragraph ends in the file's name and a colon.
NAMED = re.compile(r"`([\w./]+)`:\n\n```\n(.*?)^```$", re.M | re.S)
FENCED = re.compile(r"^```\n(.*?)^```$", re.M | re.S)
KCONFIG = "gpt2/Kconfig"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def files_of(name: str) -> dict[str, str]:
    """What a page says each file holds, by path."""
    return dict(NAMED.findall(page(name)))


def commands_of(name: str, *containing: str) -> list[list[str]]:
    """The python commands of a page with all of these words, in order, as words."""
    lines = [line for block in FENCED.findall(page(name)) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python ") and all(w in line for w in containing)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with both recipes applied."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for name in ("adding-a-step.md", "adding-a-mechanism.md"):
        for path, content in files_of(name).items():
            if path == KCONFIG:
                content = at_the_end_of_the_choice("ATTENTION", (folder / path).read_text(encoding="utf-8"), content)
            else:
                assert not (folder / path).exists(), f"docs/{name} takes the name of a file that is there: {path}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
    return folder


def at_the_end_of_the_choice(choice: str, kconfig: str, content: str) -> str:
    """`content` in the place of the choice's endchoice."""
    before, start, rest = kconfig.partition(f"\nchoice {choice}\n")
    inside, end, after = rest.partition("endchoice\n")
    assert start
    assert end
    return before + start + inside + content + after


def run(tree: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command of a page, in the copy, with this interpreter."""
    assert words[0] == "python"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPT2_")}
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tree,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def small_dry_runs(name: str) -> list[list[str]]:
    return commands_of(name, "--dry-run", "--n-layer")


def test_the_pages_write_what_they_announce():
    assert list(files_of("adding-a-step.md")) == ["gpt2/steps/V3ODD.config"]
    assert list(files_of("adding-a-mechanism.md")) == [
        KCONFIG,
        "gpt2/attention/smeared_keys.py",
        "gpt2/steps/S1.config",
        "tests/equivalence/test_smeared_keys.py",
    ]
    assert len(small_dry_runs("adding-a-step.md")) == len(small_dry_runs("adding-a-mechanism.md")) == 1


def test_every_python_command_of_the_pages_names_flags_that_exist(tree):
    known = set(re.findall(r"--[a-z0-9-]+", run(tree, ["python", "gpt2/train_ra_mla.py", "--help"]).stdout))
    for name in ("adding-a-step.md", "adding-a-mechanism.md"):
        for words in commands_of(name, "train_ra_mla"):
            assert {w for w in words if w.startswith("--")} <= known | {"--help"}


@pytest.mark.parametrize("name", ["adding-a-step.md", "adding-a-mechanism.md"])
def test_a_new_arm_resolves_and_trains_a_step(tree, name):
    (words,) = small_dry_runs(name)
    done = run(tree, words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r" ok  [\d,]+ parameters, [\d,.]+ MFLOP/token, loss [\d.]+ -> [\d.]+", done.stdout)


def test_a_new_setting_is_a_flag_with_its_range(tree):
    said = " ".join(run(tree, ["python", "gpt2/train_ra_mla.py", "--help"]).stdout.split())
    assert "--smear-init FLOAT Initial share of the key before." in said
    assert "[a float in [0, 1]]" in said
    assert "smeared_keys" in said
    wrong = run(
        tree, ["python", "gpt2/train_ra_mla.py", "--ra-mla-ablation-step", "S1", "--smear-init", "2", "--dry-run"]
    )
    assert wrong.returncode == 2
    assert "SMEAR_INIT is a float in [0, 1], not" in wrong.stderr


def test_a_mechanism_without_a_closed_form_is_counted(tree):
    """Smeared keys add no matrix product: as many FLOPs as V0 has by its closed form, and H parameters per layer."""
    (words,) = small_dry_runs("adding-a-mechanism.md")
    vanilla = ["V0" if w == "S1" else w for w in words]
    del vanilla[vanilla.index("--smear-init") : vanilla.index("--smear-init") + 2]
    costs = []
    for each in (words, vanilla):
        found = re.search(r"([\d,]+) parameters, ([\d,.]+) MFLOP", run(tree, each).stdout)
        assert found
        costs.append((int(found[1].replace(",", "")), found[2]))
    (ours, flops), (theirs, reference) = costs
    assert ours - theirs == 2 * 2
    assert flops == reference


def test_the_law_on_the_page_holds(tree):
    (words,) = commands_of("adding-a-mechanism.md", "pytest")
    done = run(tree, [*words, "-p", "no:cacheprovider"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_code_on_the_page_passes_the_linters(tree):
    written = [path for path in files_of("adding-a-mechanism.md") if path.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        done = run(tree, ["python", "-m", "ruff", *command, "--no-cache", *written])
        assert done.returncode == 0, done.stdout + done.stderr
