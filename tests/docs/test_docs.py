"""The pages against the tree: links, commands, settings, numbers and pictures are what they say they are."""

import importlib.util
import platform
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gpt2.size import cost
from lib.config import defconfigs, flags, sources
from lib.config.resolve import Resolver

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# They add steps of their own; tests/docs/test_recipes.py follows them.
RECIPES = ("adding-a-step.md", "adding-a-mechanism.md")
GPT2_VOCAB = 50257


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver(ROOT)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code(path: Path) -> list[str]:
    """A page's pieces of code: inline, and the lines of fenced and indented blocks without their comments."""
    fences = re.compile(r"^```.*?^```$", re.M | re.S)
    said = text(path)
    blocks = [line for block in fences.findall(said) for line in block.splitlines()[1:-1]]
    rest = fences.sub("", said)
    blocks += [line[4:] for line in rest.splitlines() if line.startswith("    ") and line.strip()]
    inline = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", rest)]
    return inline + [re.split(r"\s#\s", line)[0] for line in blocks if not line.startswith("# ")]


def make_calls(path: Path) -> list[list[str]]:
    """The words behind each `make` that a page tells its reader to type."""
    found = []
    for piece in code(path):
        for part in re.split(r";|&&", piece):
            if re.search(r"(^|\s)make(\s|$)", part) and not part.rstrip().endswith(","):
                words = shlex.split(part)
                if "make" in words and all("=" in word for word in words[: words.index("make")]):
                    found.append(words[words.index("make") + 1 :])
    return found


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    kept = "".join(c for c in heading.strip().lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name}: {target}"
        if anchor:
            anchors = {slug(heading) for heading in re.findall(r"^#+ (.+)$", text(file), re.M)}
            assert anchor in anchors, f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_make_targets_and_variables_exist(path, resolver):
    makefile = text(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    assert {"run", "quickstart", "summary"} <= targets
    known, hosts = defconfigs.names(ROOT), defconfigs.hosts(ROOT)
    for words in make_calls(path):
        for word in words:
            name, equals, _ = word.partition("=")
            if equals:
                sources.from_make(resolver.schema, [name], {})
            elif name.startswith("defconfig-"):
                base, *fragments = name.removeprefix("defconfig-").split("+")
                assert base == "NAME" or base in known, f"{path.name}: make {name}"
                assert set(fragments) <= set(hosts) | {"HOST"}, f"{path.name}: make {name}"
            else:
                assert name in targets, f"{path.name}: make {name}"


def test_the_pages_tell_their_reader_to_type_something():
    calls = {page.name: make_calls(page) for page in PAGES}
    assert ["quickstart"] in calls["README.md"]
    assert ["STEPS=V0 V3", "SEEDS=0 1 2", "TIME=600"] in calls["quickstart.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_settings_and_flags_exist(path, resolver):
    schema = resolver.schema
    if path.name not in RECIPES:
        known = {*schema.by_env, *schema.owner, *schema.options, "GPT2_NAME"}
        unknown = {name for name in re.findall(r"\bGPT2_[A-Z0-9_]+", text(path)) if name not in known}
        assert not unknown
    parser = flags.parser(schema, "x", "")
    for piece in code(path):
        if piece.startswith("python gpt2/train_ra_mla.py") and path.name not in RECIPES:
            given = {word for word in shlex.split(piece) if word.startswith("--")}
            own = {"--dry-run", "--config", "--expect", "--help"}
            assert given <= own | {flag for action in parser._actions for flag in action.option_strings}


def test_the_costs_in_the_mathematics_are_those_of_the_code(resolver):
    rows = re.findall(
        r"^\| (V\d) \| ([\d,]+) \|(?: ([+−\d,]+))? \| ([\d.]+) \|", text(ROOT / "docs" / "mathematics.md"), re.M
    )
    assert [row[0] for row in rows] == [f"V{i}" for i in range(9)]
    plain = cost(resolver.spec([], step="V0").values, GPT2_VOCAB)
    for step, parameters, more, mflop in rows:
        found = cost(resolver.spec([], step=step).values, GPT2_VOCAB)
        assert f"{found.parameters:,}" == parameters
        assert f"{found.flops_per_token / 1e6:.3f}" == mflop
        difference = found.parameters - plain.parameters
        assert more == ("" if step == "V0" else f"{difference:+,}".replace("-", "−"))


def test_every_law_that_the_mathematics_names_is_a_test():
    tests = "\n".join(text(path) for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text(ROOT / "docs" / "mathematics.md")))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_paper_that_the_code_cites_is_in_related_work():
    cited = {
        number
        for folder in ("gpt2", "lib")
        for path in (ROOT / folder).rglob("*.py")
        for number in re.findall(r"arXiv[ :](\d{4}\.\d{5})", text(path))
    }
    assert {number for number in cited if number not in text(ROOT / "docs" / "related-work.md")} == set()


def draw_diagrams():
    """scripts/draw_diagrams.py as a module."""
    spec = importlib.util.spec_from_file_location("draw_diagrams", ROOT / "scripts" / "draw_diagrams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_diagrams_are_what_their_program_draws(capsys):
    assert draw_diagrams().main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_diagram_is_named(tmp_path, monkeypatch, capsys):
    module = draw_diagrams()
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert module.main([]) == 0
    (tmp_path / "forward_pass.svg").write_text("<svg/>")
    assert module.main(["--check"]) == 1
    assert "forward_pass.svg" in capsys.readouterr().err


def test_every_diagram_is_well_formed_and_shown():
    shown = "\n".join(text(page) for page in PAGES)
    pictures = sorted((ROOT / "docs" / "images").glob("*.svg"))
    assert pictures
    for path in pictures:
        assert ET.parse(path).getroot().get("viewBox")
        assert f"images/{path.name})" in shown


def tracked() -> list[Path]:
    """The files of the tree: committed, or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git repository")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_knows_the_machine_it_was_written_on():
    folder = re.compile(r"/(?:home|root|Users|work|workspace|mnt)/\w")
    for path in tracked():
        try:
            said = text(path)
        except UnicodeDecodeError:
            continue
        assert str(ROOT) not in said, path
        assert not (found := folder.search(said)), f"{path}: {found[0]}"
        assert len(platform.node()) < 6 or platform.node() not in said, path


def test_pages_have_no_emoji():
    for path in PAGES:
        assert not re.search("[\u2600-\u27bf\U0001f000-\U0001faff]", text(path)), path
