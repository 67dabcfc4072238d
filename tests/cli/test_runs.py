"""Whole matrices through make: done once, set aside, brought back, killed and continued."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

TINY = ["DATASET=synthetic", "SYNTHETIC_MB=1", "N_LAYER=1", "N_HEAD=2", "N_EMBD=32", "BLOCK_SIZE=32"]
TINY += ["TOKENS_PER_STEP=128", "EVAL_INTERVAL=1000", "THREADS=1"]


def results(folder: Path) -> Path:
    return folder / "test_matrix_results_ra"


def summary(folder: Path, name: str = "test_V0_adamwspam_none") -> dict:
    return json.loads((results(folder) / name / "metrics.json").read_text())


def rows(folder: Path, name: str = "test_V0_adamwspam_none") -> list[dict]:
    lines = (results(folder) / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_done_once_set_aside_by_another_and_comes_back(commands, folder):
    words = [f"O={folder}", *TINY, "STEPS=V0 V1"]
    first = commands.make(*words, "ITERS=4", "OUTPUT=test_matrix_results_ra")
    assert first.returncode == 0, first.stderr
    for name in ("test_V0_adamwspam_none", "test_V1_adamwspam_none"):
        present = {p.name for p in (results(folder) / name).iterdir()}
        assert {"config.json", "metrics.jsonl", "metrics.json", "training.log", "model.pt", "checkpoints"} <= present
    assert "V1 - V0" in first.stdout
    assert "LIMITED" in first.stdout
    written = (results(folder) / "test_V0_adamwspam_none" / "model.pt").stat().st_mtime_ns

    shorter = commands.make(*words, "ITERS=2", "STEPS=V0")
    assert shorter.returncode == 0, shorter.stderr
    assert summary(folder)["iterations"] == 2

    again = commands.make(*words, "ITERS=4")
    assert again.returncode == 0, again.stderr
    assert "brought back" in again.stdout
    assert "iter " not in again.stdout.split("Arms")[0]
    assert summary(folder)["iterations"] == 4
    assert (results(folder) / "test_V0_adamwspam_none" / "model.pt").stat().st_mtime_ns == written
    assert len(list(results(folder).glob("test_V0_adamwspam_none~*"))) == 1

    alone = commands.train(
        "--config", str(folder / ".config"), *flags(TINY), "--max-iters", "4", "--output", "test_matrix_results_ra"
    )
    assert alone.returncode == 0, alone.stderr
    assert "test_V0_adamwspam_none: done, val loss" in alone.stdout
    said = commands.make("status", *words, "ITERS=4").stdout
    assert said.count(" done ") == 2
    retrained = commands.make("rerun", *words, "ITERS=4", "STEPS=V1")
    assert retrained.returncode == 0, retrained.stderr
    assert len(list(results(folder).glob("test_V1_adamwspam_none~*.old1"))) == 1
    assert summary(folder, "test_V1_adamwspam_none")["status"] == "done"


def flags(words: list[str]) -> list[str]:
    """Make variables as flags of the training program."""
    pairs = (word.split("=", 1) for word in words)
    return [w for name, value in pairs for w in ("--" + name.lower().replace("_", "-"), value)]


def test_data_that_is_missing_exits_3_in_one_line_and_leaves_nothing(commands, folder):
    done = commands.train(
        "--config", str(folder / ".config"), "--dataset", "textfile", "--data-path", "absent.txt", "--output", "out"
    )  # fmt: skip
    assert done.returncode == 3
    assert "absent.txt" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_dry_run_works_from_any_directory_without_a_config(commands, tmp_path):
    done = commands.train(
        "--ra-mla-ablation-step", "V1", "--dry-run", "--n-layer", "1", "--n-embd", "96", "--tokenizer", "bytes",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("V1")
    assert "ok" in done.stdout
    assert list(tmp_path.iterdir()) == []


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trainer_of(folder: Path) -> int | None:
    """The pid of the process that holds the run's lock."""
    for lock in (results(folder) / "test_V0_adamwspam_none").glob("lock.*"):
        holder = json.loads(lock.read_text())
        if not holder.get("released"):
            return int(holder["pid"])
    return None


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["trainer", "make", "everything"])
def test_kill_9_in_the_middle_and_make_again_ends_with_the_same_bits(commands, folder, victim):
    words = [f"O={folder}", *TINY, "STEPS=V0", "ITERS=400", "DROPOUT=0.1", "LOG_INTERVAL=20", "CHECKPOINT_INTERVAL=1"]
    whole = commands.make(*words, "OUTPUT=whole")
    assert whole.returncode == 0, whole.stderr
    wanted = json.loads((folder / "whole" / "test_V0_adamwspam_none" / "metrics.json").read_text())

    process = commands.start(*words)
    jsonl = results(folder) / "test_V0_adamwspam_none" / "metrics.jsonl"
    wait_for(lambda: jsonl.exists() and any(r.get("iter", 0) >= 60 for r in rows(folder)), process)
    trainer = trainer_of(folder)
    if victim == "trainer":
        os.kill(trainer, signal.SIGKILL)
    elif victim == "make":
        process.kill()
    else:
        os.kill(trainer, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = commands.make(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert is_gone(trainer)
    assert summary(folder)["weights_sha256"] == wanted["weights_sha256"]
    assert summary(folder)["val_loss"] == wanted["val_loss"]
    logged = [r["iter"] for r in rows(folder) if r["kind"] == "log"]
    assert logged == list(range(20, 401, 20))


@pytest.mark.slow
def test_ctrl_c_saves_within_a_step_and_make_continues(commands, folder):
    words = [f"O={folder}", *TINY, "STEPS=V0 V1", "ITERS=400", "LOG_INTERVAL=20"]
    process = commands.start(*words)
    jsonl = results(folder) / "test_V0_adamwspam_none" / "metrics.jsonl"
    wait_for(lambda: jsonl.exists() and any(r.get("iter", 0) >= 60 for r in rows(folder)), process)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (2, -signal.SIGINT)  # make's own ways to end after a Ctrl-C
    assert "saves a checkpoint" in said
    assert f"make O={folder} continues where it stopped" in said
    assert not (results(folder) / "test_V1_adamwspam_none").exists()
    assert " stopped " in commands.make("status", *words).stdout
    done = commands.make(*words)
    assert done.returncode == 0, done.stderr
    assert "continues from step" in done.stdout


@pytest.mark.slow
def test_of_two_runners_one_works_and_the_other_says_who(commands, folder):
    words = [f"O={folder}", *TINY, "STEPS=V0", "ITERS=1000000"]
    first = commands.start(*words)
    wait_for(lambda: any(results(folder).glob("lock.*")), first)
    second = commands.make(*words)
    assert second.returncode == 2
    assert "is in use by make (process" in second.stderr
    os.killpg(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)
