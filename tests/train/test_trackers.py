"""Trackers: whatever they do, the run neither stops nor waits."""

import importlib.util
import json
import os
import select
import subprocess
import sys
import time

import pytest

from lib.config.budget import Budget
from lib.run import checkpoints
from lib.train import tracker_process, trackers
from lib.train.trackers import Tracker
from tests.train.harness import SPEC, rows, run

SETTINGS = {"run_id": "abc123", "name": "r", "project": "p", "mode": "offline", "facts": {"seed": 0}}
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
LONG = 60.0  # seconds for what takes one or two, before a test gives up


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Stand-ins for the tracker's program: program(text) is run instead."""

    def use(text):
        path = tmp_path / "program.py"
        path.write_text(text)
        monkeypatch.setattr(trackers, "PROGRAM", path)

    return use


@pytest.fixture
def started(monkeypatch):
    """The tracker processes of a test; those that are left at its end are killed."""
    processes = []
    popen = subprocess.Popen

    def noted(command, *given, **more):
        process = popen(command, *given, **more)
        if "-P" in command:
            processes.append(process)
        return process

    monkeypatch.setattr(trackers.subprocess, "Popen", noted)
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def ended(process, seconds=LONG):
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def notes(path):
    return [row["note"] for row in rows(path, "note")]


def complete(path):
    return [row["iter"] for row in rows(path, "log")] == list(range(1, 13)) and (path / "metrics.json").exists()


# -- the run's side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; print('ModuleNotFoundError: No module'); sys.exit(1)", "ModuleNotFoundError: No module"),
        ("import os; os.kill(os.getpid(), 11)", "its process ended with -11"),
        ("import sys; sys.stdin.readline(); print('late'); sys.exit(3)", "late"),
    ],
)
def test_one_that_fails_is_one_note(tmp_path, monkeypatch, program, started, text, said):
    monkeypatch.setattr(trackers, "PATIENCE", LONG)
    program(text)
    run(tmp_path / "r", WANDB=True)
    assert complete(tmp_path / "r")
    assert notes(tmp_path / "r") == [f"wandb is off: {said}; metrics.jsonl has everything"]


HANGS = {
    "and reads nothing": "import time; time.sleep(600)",
    "and ignores the end": "import sys, time; sys.stdin.read(); time.sleep(600)",
    "and ignores signals": "import signal as s, time\nfor n in (1, 2, 15): s.signal(n, s.SIG_IGN)\ntime.sleep(600)",
}


@pytest.mark.parametrize("way", HANGS)
def test_one_that_hangs_adds_its_patience_and_no_more(tmp_path, monkeypatch, program, started, way):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    waited = []
    finish = trackers.Trackers.finish

    def timed(self):
        began = time.monotonic()
        finish(self)
        waited.append(time.monotonic() - began)

    monkeypatch.setattr(trackers.Trackers, "finish", timed)
    program(HANGS[way])
    run(tmp_path / "r", WANDB=True, TENSORBOARD=True)
    assert complete(tmp_path / "r")
    assert len(started) == 2
    assert waited[0] >= 0.2  # it was waited for ...
    assert all(process.poll() is None for process in started)  # ... and left alone
    assert notes(tmp_path / "r") == []


def test_the_pipe_to_one_that_hangs_never_blocks_and_never_grows(tmp_path, program, started):
    program("import time; time.sleep(600)")
    tracker = Tracker("wandb", SETTINGS, print)
    row = {"kind": "log", "iter": 1, "text": "x" * 100_000}
    for _ in range(200):
        tracker.log(row)
    assert trackers.WAITING_BYTES <= len(tracker._waiting) < trackers.WAITING_BYTES + 200_000
    tracker.finish(time.monotonic())


def test_a_slow_reader_gets_every_row_whole_and_in_order(tmp_path, program, started):
    program(
        f"import sys, json\nlines = list(sys.stdin)\nopen({str(tmp_path / 'seen')!r}, 'w').write("
        "repr([json.loads(line).get('iter') for line in lines]))"
    )
    tracker = Tracker("wandb", SETTINGS, print)
    for n in range(60):
        tracker.log({"kind": "log", "iter": n, "text": "x" * 50_000})
    assert tracker._waiting  # more than the pipe holds
    tracker.finish(time.monotonic() + LONG)
    assert (tmp_path / "seen").read_text() == repr([None, *range(60)])


def test_a_note_is_said_once_however_many_rows_follow(program, started):
    said = []
    program("import sys; sys.exit(4)")
    tracker = Tracker("wandb", SETTINGS, said.append)
    assert ended(started[0]) == 4
    for n in range(3):
        tracker.log({"kind": "log", "iter": n})
    tracker.finish(time.monotonic())
    assert said == ["wandb is off: its process ended with 4; metrics.jsonl has everything"]


def test_rows_that_are_not_finite_are_strict_json_there_too(tmp_path, program, started):
    program(f"import sys; open({str(tmp_path / 'seen')!r}, 'w').write(sys.stdin.read())")
    tracker = Tracker("wandb", {}, print)
    tracker.log({"iter": 1, "bits_per_byte": float("nan")})
    tracker.finish(time.monotonic() + LONG)
    assert '"bits_per_byte": null' in (tmp_path / "seen").read_text()


def test_the_process_stands_apart_from_the_terminals_signals(program, started):
    program("import sys; sys.stdin.read()")
    tracker = Tracker("wandb", SETTINGS, print)
    assert os.getsid(started[0].pid) != os.getsid(0)
    tracker.finish(time.monotonic() + LONG)
    assert ended(started[0]) == 0


def test_without_trackers_no_process_is_started(tmp_path, started):
    run(tmp_path / "r", budget=Budget("iters", 1))
    assert started == []


# -- the process's side ----------------------------------------------------------------------------------------------


def process(kind, text, **more):
    command = [sys.executable, "-P", str(trackers.PROGRAM), kind]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=LONG, **more)


def test_a_tracker_that_is_not_installed_is_one_line_and_exit_1(tmp_path):
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")")
    done = process("wandb", "{}\n", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, "ModuleNotFoundError: No module named 'wandb'\n")


@pytest.mark.parametrize("raises", ["init", "log", "finish"])
def test_a_tracker_that_raises_anywhere_is_one_line(tmp_path, raises):
    """A module called wandb that prints, and raises in one of its functions."""
    (tmp_path / "wandb.py").write_text(
        "print('a banner')\n"
        "def act(name):\n"
        f"    if name == {raises!r}: raise RuntimeError(name + ' failed\\nand more')\n"
        "class Settings:\n    def __init__(self, **more): pass\n"
        "class Run:\n    def log(self, row, step): act('log')\n    def finish(self): act('finish')\n"
        "def init(**more):\n    act('init')\n    return Run()\n"
    )
    rows = json.dumps({**SETTINGS, "folder": str(tmp_path)}) + '\n{"kind": "log", "iter": 1, "x": 1}\n'
    done = process("wandb", rows, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, f"RuntimeError: {raises} failed\n")


def test_a_hang_ends_after_the_run_however_deep_it_is(tmp_path):
    """The alarm is set when the input ends, and nothing in Python is needed to die of it."""
    (tmp_path / "wandb.py").write_text("import signal\nwhile True: signal.pause()\n")
    source = trackers.PROGRAM.read_text().replace("LINGER = 60", "LINGER = 1")
    copy = tmp_path / "copy.py"
    copy.write_text(source)
    command = [sys.executable, "-P", str(copy), "wandb"]
    done = subprocess.run(
        command, input="{}\n", text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=LONG
    )
    assert done.returncode == -14


def test_only_finite_numbers_reach_a_tracker():
    row = {"kind": "log", "iter": 3, "loss": 1.5, "mfu": None, "note": "x", "step": 2}
    assert tracker_process.numbers(row) == {"loss": 1.5, "step": 2.0}


def test_tensorboard_writes_event_files_without_torch(tmp_path, monkeypatch, started):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(trackers, "PATIENCE", LONG)
    run(tmp_path / "r", TENSORBOARD=True)
    assert ended(started[0]) == 0
    assert notes(tmp_path / "r") == []
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    logged = [(row["iter"], row["train_loss_step"]) for row in rows(tmp_path / "r", "log")]
    found = [(event.step, event.value) for event in events.Scalars("log/train_loss_step")]
    assert [step for step, _ in found] == [step for step, _ in logged]
    assert [value for _, value in found] == pytest.approx([value for _, value in logged])
    assert [event.step for event in events.Scalars("eval/val_loss")] == [0, 5, 10, 12]


@needs_wandb
def test_wandb_offline_keeps_the_rows_and_leaves_no_process(tmp_path, monkeypatch, started):
    monkeypatch.setattr(trackers, "PATIENCE", LONG)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run(tmp_path / "r", WANDB=True, budget=Budget("iters", 3))
    assert ended(started[0]) == 0
    assert notes(tmp_path / "r") == []
    (offline,) = (tmp_path / "r" / "wandb").glob("offline-run-*")
    data = b"".join(path.read_bytes() for path in offline.glob("*.wandb"))
    for word in (b"train_loss_step", b"val_loss", SPEC.encode()):
        assert word in data
    assert offline.name.endswith(rows_id(tmp_path / "r"))
    assert children_of_session(started[0].pid) == []


def rows_id(path):
    state = json.loads((checkpoints.listed(path / "checkpoints")[0] / "state.json").read_text())
    return state["run_id"]


def children_of_session(session):
    """The processes that live on in a session, after a moment to end."""

    def members():
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                if os.getsid(pid) == session:
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found

    for pid in members():
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([handle], [], [], 10.0)
        os.close(handle)
    return members()


@needs_wandb
def test_wandb_that_cannot_reach_its_server_does_not_hold_the_run_up(tmp_path, monkeypatch, started):
    """Online, with a server on a closed port of this machine."""
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    for key, value in {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run(tmp_path / "r", WANDB=True, WANDB_MODE="online")
    assert complete(tmp_path / "r")
    os.killpg(started[0].pid, 9)
    ended(started[0])
    assert children_of_session(started[0].pid) == []
