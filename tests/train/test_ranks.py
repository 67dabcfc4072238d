"""Several processes are one run: the same numbers, one voice, one end."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from lib.config.budget import Budget
from lib.config.errors import ConfigError, RunError, UserError
from lib.run import checkpoints
from lib.train import checkpoint, launch
from lib.train.distributed import World
from lib.train.signals import interrupted
from lib.train.step import Stepper
from tests.train.harness import ROOT, at_step, interrupt, rows, run, send, untimed

PATIENCE = 20.0  # seconds for what takes milliseconds, before a test gives up


def ranks(count, path, act=lambda rank: None, **given):
    """Train in `count` forked gloo processes; their exit codes. act(rank) runs first in each."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
                act(rank)
                run(path, **given)
                code = 0
            except UserError as error:
                (path.parent / f"said.{rank}").write_text(str(error))
                code = error.exit_code
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def program(count, path, **given):
    """The worker program with `count` ranks: its exit code and what it said, into files that an orphan may keep."""
    command = [sys.executable, "tests/train/worker.py", str(count), str(path), json.dumps(given)]
    out, err = path.parent / "out", path.parent / "err"
    with open(out, "w") as stdout, open(err, "w") as stderr:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=stdout, stderr=stderr, timeout=60
        )
    return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())


def assert_gone(path, count=2):
    """All ranks have ended; those that have not are ended here."""
    alive = []
    for rank in range(count):
        pid = int((path.parent / f"pid.{rank}").read_text())
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if not select.select([handle], [], [], 5.0)[0]:
            alive.append(rank)
            os.kill(pid, signal.SIGKILL)
        os.close(handle)
    assert alive == []


ENDLESS = {"budget": ["iters", 10**6], "LOG_INTERVAL": 1000, "EVAL_INTERVAL": 10**6}
SETTINGS = {"dropout": 0.1, "GRAD_CLIP": 0.5, "arm": "V3"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "r"
    return run(path, **SETTINGS), untimed(path)


def test_two_launched_ranks_are_one_process_with_two_micro_batches_bit_for_bit(tmp_path, alone):
    path = tmp_path / "r"
    done = program(2, path, **SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((path / "metrics.json").read_text())
    assert summary["world_size"] == 2
    assert summary["weights_sha256"] == alone[0]["weights_sha256"]
    assert untimed(path) == alone[1]
    assert (path / "training.log").read_text() == done.stdout  # one voice
    assert_gone(path)


def test_four_ranks_see_the_same_rows_as_one_process(tmp_path):
    """Sums of four in another order: equal curves, not equal bits. Evaluation is the same to the bit."""
    given = {"MICRO_BATCH": 1, "LEARNING_RATE": 1e-4, "MIN_LR": 0.0}
    run(tmp_path / "one", **given)
    assert ranks(4, tmp_path / "four", **given) == [0] * 4
    one, four = (rows(tmp_path / name, "log", "eval") for name in ("one", "four"))
    first = [{k: v for k, v in r[0].items() if "loss" in k} for r in (one, four)]
    assert first[0] == first[1]  # the evaluation before the first step
    for a, b in zip(one, four, strict=True):
        key = "train_loss_step" if a["kind"] == "log" else "val_loss"
        assert a[key] == pytest.approx(b[key], abs=1e-5)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_the_number_of_ranks_may_change_at_a_resume(tmp_path, monkeypatch, alone, before, after):
    path = tmp_path / "r"
    if before == 1:
        interrupt(path, monkeypatch, 5, **SETTINGS)
        assert ranks(2, path, **SETTINGS) == [0, 0]
    else:
        asked = lambda rank: rank or at_step(monkeypatch, 5, send(signal.SIGTERM))  # noqa: E731
        assert ranks(2, path, asked, **SETTINGS) == [75, 75]
        run(path, **SETTINGS)
    summary = json.loads((path / "metrics.json").read_text())
    assert summary["weights_sha256"] == alone[0]["weights_sha256"]
    assert untimed(path) == alone[1]
    notes = [row["note"] for row in rows(path, "note")]
    assert f"since the checkpoint, world_size was {before}, is {after}: equal results, not equal bits" in notes


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, monkeypatch):
    path = tmp_path / "r"
    codes = ranks(2, path, lambda rank: rank and at_step(monkeypatch, 4, send(signal.SIGINT)), **SETTINGS)
    assert codes == [130, 130]
    # Rank 0 may have begun the next step when the signal came.
    assert checkpoints.listed(path / "checkpoints")[0].name in ("step-00000004", "step-00000005")
    assert (tmp_path / "said.0").read_text() == (tmp_path / "said.1").read_text()


def test_no_rank_leaves_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    """Or a launcher that ends the others when one has left (torchrun) would end the writer."""

    def note(name):
        (tmp_path / name).write_text(str(time.monotonic_ns()))

    def act(rank):
        at_step(monkeypatch, 4, send(signal.SIGTERM))
        if rank == 0:
            write = checkpoint.write
            monkeypatch.setattr(checkpoint, "write", lambda *given: (write(*given), note("written")))
        else:
            monkeypatch.setattr("lib.train.loop.interrupted", lambda *given: (note("left"), interrupted(*given))[1])

    assert ranks(2, tmp_path / "r", act, **SETTINGS) == [75, 75]
    assert int((tmp_path / "left").read_text()) > int((tmp_path / "written").read_text())


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_nan_on_one_rank_fails_all_and_names_the_step(tmp_path, monkeypatch, culprit):
    def poison(rank):
        if rank == culprit:
            original = Stepper._backward

            def backward(self, step, batches, *rest, **more):
                original(self, step, batches, *rest, **more)
                if step == 3:
                    self.losses.fill_(float("nan"))

            monkeypatch.setattr(Stepper, "_backward", backward)

    assert ranks(2, tmp_path / "r", poison, **SETTINGS) == [1, 1]
    for rank in range(2):
        assert "step 4: the loss is not finite" in (tmp_path / f"said.{rank}").read_text()
    assert "step 4" in json.loads((tmp_path / "r" / "failure.json").read_text())["error"]


def test_when_a_rank_is_killed_the_others_and_the_launcher_end_with_1(tmp_path):
    path = tmp_path / "r"
    done = program(2, path, act=[1, 3, "kill me"], **ENDLESS)
    assert_gone(path)
    assert done.returncode == 1
    assert "rank 0 lost another process of this run" in done.stderr
    assert "Traceback" not in done.stderr
    assert "lost another process" in json.loads((path / "failure.json").read_text())["error"]


def test_when_the_launcher_is_killed_no_rank_lives_on(tmp_path):
    path = tmp_path / "r"
    done = program(2, path, act=[0, 3, "kill launcher"], **ENDLESS)
    assert_gone(path)
    assert done.returncode == -signal.SIGKILL


def test_a_signal_to_the_launcher_is_a_checkpoint_and_75(tmp_path, alone):
    path = tmp_path / "r"
    done = program(2, path, act=[0, 3, "terminate launcher"], **{**SETTINGS, "budget": ["iters", 10**6]})
    assert_gone(path)
    assert done.returncode == 75
    (said,) = done.stderr.splitlines()  # both ranks say it; it is shown once
    newest = checkpoints.listed(path / "checkpoints")[0].name
    assert f"SIGTERM after step {int(newest[-8:])}, checkpoint saved" in said


@pytest.mark.slow
def test_torchrun_may_stand_in_the_launchers_place(tmp_path, alone):
    path = tmp_path / "r"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "tests/train/worker.py", "2", str(path), json.dumps(SETTINGS)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((path / "metrics.json").read_text())["weights_sha256"] == alone[0]["weights_sha256"]


@pytest.mark.slow
def test_when_a_rank_hangs_the_others_end_after_the_timeout(tmp_path):
    path = tmp_path / "r"
    done = program(2, path, act=[1, 3, "stop me"], **ENDLESS, DIST_TIMEOUT=5)
    assert_gone(path)
    assert done.returncode == 1
    assert "rank 0 lost another process" in done.stderr


# -- the launcher, on programs that only end -------------------------------------------------------------------------


def small(tmp_path, text):
    script = tmp_path / "small.py"
    script.write_text("import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + text)
    return [str(script)]


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [((0, 0), 0), ((1, 2), 2), ((3, 1), 3), ((75, 75), 75), ((130, 130), 130), ((1, 75), 1), ((0, 7), 1), ((0, -9), 1)],
)
def test_the_exit_code_of_a_launch_is_the_one_that_says_most(tmp_path, codes, wanted):
    text = f"code = {codes}[rank]\nos.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    assert launch.launch(2, small(tmp_path, text)) == wanted


def test_a_rank_that_outlives_a_failed_one_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    assert launch.launch(2, small(tmp_path, "sys.exit(1) if rank else time.sleep(600)")) == 1


def test_a_rank_that_was_stopped_first_leaves_the_others_the_time_to_save():
    assert not launch.has_failed([75, None, None], 0)
    assert not launch.has_failed([130, 0, None], signal.SIGINT)
    assert not launch.has_failed([-15, 0, None], signal.SIGTERM)
    assert launch.has_failed([-15, 0, None], 0)
    assert launch.has_failed([None, None, -9], signal.SIGTERM)


@pytest.mark.parametrize(("number", "wanted"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130), ("SIGHUP", 75)])
def test_signals_reach_ranks_that_have_not_begun_to_listen(tmp_path, number, wanted):
    """Rank 0 sends the launcher a signal; neither rank handles what comes back (SIGINT is Python's 130 or a death)."""
    text = f"""
signal.signal(signal.SIGINT, signal.SIG_DFL)
if rank == 0:
    os.kill(os.getppid(), signal.{number})
time.sleep(600)
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as it is without nohup
    try:
        assert launch.launch(2, small(tmp_path, text)) == wanted
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_kills_the_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 600.0)
    text = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
open({str(tmp_path)!r} + f"/ready.{{rank}}", "w").close()
while not os.path.exists({str(tmp_path)!r} + "/ready.1"):
    pass
for _ in range(2):
    if rank == 0:
        os.kill(os.getppid(), signal.SIGINT)
    signal.sigwait([signal.SIGINT])
while True:
    signal.pause()
"""
    assert launch.launch(2, small(tmp_path, text)) == 130


def test_what_several_ranks_say_alike_is_shown_once_and_the_rest_in_full(tmp_path, capfd):
    text = "print('to', rank)\nfor word in ('a', 'b', 'b', f'rank {rank}'): print(word, file=sys.stderr, flush=True)"
    launch.launch(2, small(tmp_path, text))
    out, err = capfd.readouterr()
    assert out == "to 0\n"
    assert sorted(err.splitlines()) == ["a", "b", "b", "rank 0", "rank 1"]


def test_ranks_that_say_much_are_not_held_up_when_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert launch.launch(2, small(tmp_path, "sys.stderr.write('x' * 1_000_000)")) == 0


@pytest.mark.parametrize(
    ("device", "wanted", "visible", "expected"),
    [
        ("cpu", 0, 8, (1, "")),
        ("cpu", 2, 0, (2, "")),
        ("auto", 0, 0, (1, "")),
        ("auto", 4, 0, (1, "no GPU is visible: one process on the CPU instead of 4 GPUs")),
        ("auto", 0, 4, (4, "")),
        ("cuda", 2, 4, (2, "")),
        ("auto", 8, 4, (4, "4 GPU(s) instead of 8: same tokens per step, more micro-batches")),
    ],
)
def test_a_run_gets_the_processes_that_the_machine_has(monkeypatch, device, wanted, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert launch.processes(device, wanted) == expected


def test_cuda_where_there_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        launch.processes("cuda", 0)
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        run(tmp_path / "r", DEVICE="cuda")


def test_a_rank_that_finds_another_parent_than_its_launcher_ends(tmp_path):
    code = "from lib.train import distributed; distributed.join('cpu', 5)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1", "RANKS_LAUNCHER": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")


def test_alone_all_collectives_give_back_what_they_got():
    world = World(0, 1, 1, torch.device("cpu"))
    assert world.agree(3.0, -1.0) == [3.0, -1.0]
    assert world.from_main("x") == "x"
    assert torch.equal(world.gather(torch.ones(2))[0], torch.ones(2))


def test_a_failure_that_is_no_lost_rank_keeps_its_own_words():
    from lib.train.distributed import losses_of_ranks

    two = World(0, 2, 2, torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError), losses_of_ranks(two):
        raise torch.OutOfMemoryError("CUDA out of memory: peer")
    with pytest.raises(RuntimeError, match="shape"), losses_of_ranks(two):
        raise RuntimeError("shape mismatch")
    with pytest.raises(RunError, match="rank 0 lost another process"), losses_of_ranks(two):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")


def test_ranks_that_do_not_come_are_a_run_error(tmp_path, monkeypatch):
    from lib.train import distributed

    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "die_with_parent", lambda: None)
    with pytest.raises(RunError, match="rank 0 of 2 cannot reach the others"):
        distributed.join("cpu", 1)


def test_rows_that_do_not_divide_among_the_ranks_are_refused_by_all(tmp_path):
    assert ranks(3, tmp_path / "r", budget=Budget("iters", 1)) == [2, 2, 2]
