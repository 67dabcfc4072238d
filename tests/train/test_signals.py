"""Being asked to stop: a checkpoint between two steps, and an exit code that says how it ended."""

import os
import signal

import pytest

from lib.config.budget import Budget
from lib.config.errors import Interrupted
from lib.run import checkpoints, directory
from lib.train.signals import StopSignal, asking
from lib.train.step import Stepper
from tests.train.harness import SPEC, interrupt, rows, run, send

CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGUSR2": 75, "SIGINT": 130}


@pytest.mark.parametrize("name", CODES)
def test_a_signal_is_a_checkpoint_within_one_step_and_an_exit_code(tmp_path, monkeypatch, name):
    path = tmp_path / "r"
    error = interrupt(path, monkeypatch, 4, getattr(signal, name))
    assert error.exit_code == CODES[name]
    assert str(error) == f"stopped by {name} after step 4, checkpoint saved; the same command continues"
    assert checkpoints.damage(checkpoints.listed(path / "checkpoints")[0]) == ""
    assert [row["iter"] for row in rows(path, "log")] == [1, 2, 3, 4]
    assert not (path / "failure.json").exists()
    assert directory.state(path, SPEC) == "stopped"


def test_a_signal_in_the_middle_of_a_step_lets_the_step_end(tmp_path, monkeypatch):
    original = Stepper._guard

    def guard(self, step):
        if step == 3:
            send(signal.SIGTERM)()
        original(self, step)

    monkeypatch.setattr(Stepper, "_guard", guard)
    with pytest.raises(Interrupted, match="after step 4"):
        run(tmp_path / "r")


def test_handlers_are_as_before_after_a_run_however_it_ended(tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in asking()]
    run(tmp_path / "a", budget=Budget("iters", 1))
    interrupt(tmp_path / "b", monkeypatch, 1)
    assert [signal.getsignal(number) for number in asking()] == before


def test_a_signal_after_the_last_step_does_not_keep_the_run_from_being_done(tmp_path, monkeypatch):
    from lib.train import checkpoint

    export = checkpoint.export
    monkeypatch.setattr(checkpoint, "export", lambda *given: (send(signal.SIGTERM)(), export(*given)))
    assert run(tmp_path / "r")["status"] == "done"
    assert directory.state(tmp_path / "r", SPEC) == "done"


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    from tests.train.harness import at_step

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r")
    assert checkpoints.listed(tmp_path / "r" / "checkpoints") == []
    assert not (tmp_path / "r" / "failure.json").exists()


def test_a_second_ctrl_c_during_the_checkpoint_leaves_none_half_written(tmp_path, monkeypatch):
    from lib.train import checkpoint

    save = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *given: (send(signal.SIGINT)(), save(*given)))
        with pytest.raises(KeyboardInterrupt):
            interrupt(tmp_path / "r", patch, 4, signal.SIGINT)
    assert list((tmp_path / "r" / "checkpoints").iterdir()) == []


def test_one_of_several_ranks_is_patient_with_ctrl_c():
    with StopSignal(patient=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT


def test_the_first_signal_counts():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGUSR1


def test_a_closed_terminal_asks_to_stop_unless_nohup_says_otherwise():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in asking()
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in asking()
    finally:
        signal.signal(signal.SIGHUP, before)
