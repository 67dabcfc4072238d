"""The commands as a user types them: exit codes, one-line errors, and how fast they answer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def one_line(text: str) -> str:
    """The only error line of a program's stderr (make adds its own)."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("make")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_help_lists_every_target_of_the_readme(commands):
    said = commands.make("help").stdout
    for target in (
        "quickstart",
        "test",
        "check",
        "plan",
        "estimate",
        "status",
        "rerun",
        "summary",
        "clean",
        "mrproper",
    ):
        assert f"make {target}" in said


def test_every_defconfig_is_a_target_that_the_shell_can_complete(commands):
    database = subprocess.run(
        ["make", "-qp"], cwd=ROOT, env=commands.environment(), capture_output=True, text=True
    ).stdout
    for path in [*ROOT.glob("defconfigs/gpt2-*"), *ROOT.glob("defconfigs/old/gpt2-*")]:
        assert f"\ndefconfig-{path.name}:" in database


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (["show", "SEDS=1"], {}, "did you mean SEEDS"),
        (["show"], {"GPT2_MAX_TIM": "1"}, "did you mean GPT2_MAX_TIME"),
        (["show", "STEPS=V0 V99"], {}, "step V99"),
        (["show", "TIME=soon"], {}, "integer"),
        (["plan", "OPTIMIZERS=adam"], {}, "adamw"),
        (["show", "SEED=3"], {}, "SEEDS=3"),
        (["status", "GPT2_OPTIMIZER=adamm"], {}, "did you mean adamw"),
    ],
)
def test_a_mistake_exits_2_with_one_line_and_a_suggestion(commands, folder, words, changes, said):
    done = commands.make(*words, f"O={folder}", **changes)
    assert done.returncode == 2
    assert said in one_line(done.stderr)


def test_without_a_config_the_way_to_one_is_named(commands, tmp_path):
    done = commands.make("show", f"O={tmp_path}")
    assert done.returncode == 2
    assert "make defconfig-" in one_line(done.stderr)


def test_an_unknown_defconfig_names_the_nearest(commands, tmp_path):
    done = commands.make("defconfig-gpt2-ra-ablatoin", f"O={tmp_path}")
    assert done.returncode == 2
    assert "did you mean gpt2-ra-ablation" in one_line(done.stderr)
    assert "+h200" in one_line(commands.make("defconfig-gpt2-ra-ablation+h20", f"O={tmp_path}").stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-tim", "3"], "did you mean --max-time"),
        (["--max-time", "soon"], "integer"),
        (["--ra-mla-ablation-step", "V1X"], "did you mean V1"),
        (["--attention", "unified"], "one of sdpa, unified_ra"),
        (["--ra-r", "4"], "RA_R needs ATTENTION_UNIFIED_RA"),
        (["--config", "nowhere"], "nowhere: no such file"),
        (["--expect", "feed"], "has changed"),
    ],
)
def test_a_mistaken_flag_exits_2_before_torch_is_imported(commands, tmp_path, words, said):
    began = time.process_time()
    done = commands.train(*words, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert said in lines[0]
    assert len(lines) == 1
    assert " torch" not in done.stderr
    assert time.process_time() - began < 60


def test_help_is_the_manual(commands):
    said = commands.train("--help").stdout
    assert "--kv" not in said or "--kvsplice" in said
    for flag in ("--max-time", "--ra-r", "--rmlp-mixer", "--dry-run", "--expect"):
        assert flag in said


def test_show_names_value_source_and_class(commands, folder):
    said = commands.make("show", f"O={folder}", "TIME=7").stdout
    row = next(line for line in said.splitlines() if " GPT2_MAX_TIME " in line)
    assert "7" in row
    assert "make TIME" in row
    assert "compared" in row
    assert "Budget: 7 s" in said


def test_plan_prints_commands_that_are_complete(commands, folder):
    said = commands.make("plan", f"O={folder}", "STEPS=V0 V3", "SEEDS=0 1", "NGPUS=2").stdout
    commands = [line for line in said.splitlines() if "train_ra_mla.py" in line]
    assert len(commands) == 4
    assert all("--ngpus 2" in line for line in commands)
    assert "--ra-mla-ablation-step V3" in said


def test_diffconfig_shows_what_differs(commands):
    said = commands.make("diffconfig", "A=gpt2-ra-ablation", "B=gpt2-ra-ablation+h200").stdout
    assert "GPT2_NGPUS" in said
    assert "4 -> 1" in said
    assert "GPT2_N_LAYER" not in said


def test_configuration_page_is_what_kconfig_says():
    sys.path.insert(0, str(ROOT / "scripts"))
    from scripts import document
    from scripts.workspace import Workspace

    assert document.page(Workspace()) == (ROOT / "docs" / "configuration.md").read_text()


def test_clean_removes_leftovers_but_neither_results_nor_what_is_in_the_making(commands, folder):
    run = folder / "test_matrix_results_ra" / "test_V0_adamwspam_none"
    dead, alive = (folder / "data" / f".text-bytes-1.{pid}-ab12.part" for pid in (2**22 + 1, os.getpid()))
    half, result = run / "checkpoints" / ".step-00000001.7.tmp", run / "metrics.json"
    for path in (dead, alive, half):
        path.mkdir(parents=True)
    result.write_text("{}")
    assert commands.make("mrproper", f"O={folder}").returncode == 0
    assert [p.exists() for p in (dead, alive, half, result, folder / ".config")] == [False, True, False, True, False]


def test_cleaning_touches_nothing_that_the_project_did_not_make(commands, folder):
    theirs = [
        folder / "build" / "thesis.txt",
        folder / "data" / "webapp" / "manifest.json",
        folder / "z" / ".movie.part",
    ]
    theirs += [folder / "z" / ".draft.tmp", folder / "data" / "mine" / "manifest.json"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    theirs[-1].write_text('{"format": 1, "files": 3}')
    assert commands.make("mrproper", f"O={folder}").returncode == 0
    assert all(path.exists() for path in theirs)


def test_a_folder_with_a_blank_in_its_name_is_one_folder(commands, tmp_path):
    folder = tmp_path / "a b"
    assert commands.make("defconfig-gpt2-ra-quickstart", f"O={folder}").returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a b"]
    assert "7 waiting" in commands.make("status", f"O={folder}").stdout


@pytest.mark.parametrize("name", ["a'b", "x;echo INJECTED", "$(id)", "a" * 300, "../x", "a\nb"])
def test_no_name_of_a_defconfig_reaches_the_shell(commands, tmp_path, name):
    done = commands.make(f"defconfig-{name}", f"O={tmp_path / 'o'}")
    assert done.returncode == 2
    assert "INJECTED\n" not in done.stdout
    assert "uid=" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_defconfig_does_not_swallow_variables(commands, tmp_path):
    done = commands.make("defconfig-gpt2-ra-quickstart", f"O={tmp_path}", "ITERS=77")
    assert "make ITERS: a defconfig is written as it is" in one_line(done.stderr)


def test_a_closed_or_full_output_is_no_traceback(commands, folder):
    for target in ("/dev/full", "&-"):
        command = f"{sys.executable} -m scripts.status >{target}"
        environment = commands.environment(CONFIG_DIR=str(folder))
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr


def test_estimate_names_a_time_for_every_run_and_for_all(commands, folder):
    done = commands.make("estimate", f"O={folder}", "STEPS=V0 V6", "N_LAYER=1", "TIME=3725")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("test_V")]
    assert len(rows) == 2
    assert all("1h02m" in row for row in rows)
    assert "2 runs, 1 at a time: about 2h" in done.stdout
    assert "measured now on this CPU" in done.stdout


@pytest.mark.parametrize(("words", "said"), [(["savedefconfig"], "NAME=gpt2-mine"), (["rerun"], "rerun needs STEPS")])
def test_a_command_without_its_variable_says_which(commands, folder, words, said):
    done = commands.make(*words, f"O={folder}")
    assert done.returncode == 2
    assert said in one_line(done.stderr)


def test_rerun_of_failures_touches_nothing_when_there_are_none(commands, folder):
    done = commands.make("rerun", f"O={folder}", "STEPS=failed")
    assert done.returncode == 0, done.stderr
    assert "no run has failed" in done.stdout
    assert not (folder / "test_matrix_results_ra").exists()
