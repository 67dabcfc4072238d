"""Time budgets: what counts, when it ends, and what follows it. All clocks here are made of numbers."""

import functools
import math

import pytest

from lib.config.budget import Budget
from lib.train import session
from lib.train.clock import Clock
from lib.train.evaluation import Evaluator
from lib.train.step import Stepper
from tests.train.harness import interrupt, rows, run


class Time:
    """A clock that moves only when something is said to take time."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def takes(self, seconds, original):
        """`original`, and it takes `seconds` (a number, or a function of the call's number)."""
        calls = []

        def wrapped(*given, **more):
            self.now += seconds(len(calls)) if callable(seconds) else seconds
            calls.append(1)
            return original(*given, **more)

        return wrapped


@pytest.fixture
def time(monkeypatch):
    """Steps take 1 s, evaluations 100 s, checkpoints 1000 s, compilation 10000 s."""
    fake = Time()
    monkeypatch.setattr(session, "Clock", functools.partial(Clock, now=fake))
    monkeypatch.setattr(Stepper, "run", fake.takes(1.0, Stepper.run))
    monkeypatch.setattr(Evaluator, "run", fake.takes(100.0, Evaluator.run))
    monkeypatch.setattr(session.checkpoint, "write", fake.takes(1000.0, session.checkpoint.write))
    monkeypatch.setattr(session.engine, "prepare", fake.takes(10000.0, session.engine.prepare))
    return fake


def test_only_steps_count_and_not_evaluation_checkpoint_or_compilation(tmp_path, time):
    summary = run(tmp_path / "r", budget=Budget("time", 10), EVAL_INTERVAL=2, CHECKPOINT_INTERVAL=1e-9)
    assert (summary["iterations"], summary["seconds"]) == (10, 10.0)
    assert [row["seconds"] for row in rows(tmp_path / "r", "log")] == list(range(1, 11))
    assert [row["iter"] for row in rows(tmp_path / "r", "eval")] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("budget", [1, 7, 8, 9.5, 30])
def test_a_budget_is_passed_by_less_than_one_step(tmp_path, time, monkeypatch, budget):
    monkeypatch.setattr(Stepper, "run", time.takes(lambda call: 0.5 + call % 3, Stepper.run))  # 1.5, 2.5, 3.5 with it
    summary = run(tmp_path / "r", budget=Budget("time", budget))
    assert budget <= summary["seconds"] < budget + 3.5


def test_progress_learning_rate_and_coupling_follow_the_clock(tmp_path, time):
    scales = []
    given = {"hooks": {"on_progress": scales.append}, "COUPLING_WARMUP": 0.5, "SCHEDULE": "wsd", "DECAY": 0.5}
    run(tmp_path / "r", budget=Budget("time", 10), **given, WARMUP=0.2)
    found = rows(tmp_path / "r", "log")
    assert [row["progress"] for row in found] == pytest.approx([n / 10 for n in range(1, 11)])
    assert scales == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    rates = [row["learning_rate"] for row in found]
    assert rates[0] == pytest.approx(1e-2 * 1e-3 / 0.2)  # nothing is known yet of how long a step takes
    assert rates[1:5] == [1e-2] * 4
    assert rates[5:] == pytest.approx([1e-3 + 9e-3 * (1 - n / 5) for n in range(1, 6)])


def test_a_resume_carries_the_seconds(tmp_path, time, monkeypatch):
    path, given = tmp_path / "r", {"budget": Budget("time", 10)}
    interrupt(path, monkeypatch, 4, **given)
    time.now += 5000.0  # the time between two processes
    summary = run(path, **given)
    assert (summary["iterations"], summary["seconds"]) == (10, 10.0)
    assert [row["seconds"] for row in rows(path, "log")] == list(range(1, 11))
    assert [row["tokens_per_second"] for row in rows(path, "log")] == [64.0] * 10


def test_tokens_per_second_and_time_left_are_of_counted_time(tmp_path, time, capsys):
    run(tmp_path / "r", budget=Budget("iters", 6), EVAL_INTERVAL=2, LOG_INTERVAL=2)
    assert [row["tokens_per_second"] for row in rows(tmp_path / "r", "log")] == [64.0] * 3
    said = [line for line in capsys.readouterr().out.splitlines() if "tok/s" in line]
    assert ["4s left" in said[0], "2s left" in said[1], "0s left" in said[2]] == [True] * 3


class Device:
    """A GPU seen from its host: a step is handed over in `host` seconds, done in `device`; `ahead` may be waiting."""

    def __init__(self, host, device, ahead):
        self.now, self.host, self.device, self.ahead, self.ends = 0.0, host, device, ahead, []

    def step(self):
        self.now += self.host
        self.ends.append(max(self.now, self.ends[-1] if self.ends else 0.0) + self.device)
        if len(self.ends) > self.ahead:
            self.now = max(self.now, self.ends[-1 - self.ahead])

    def settle(self):
        self.now = max(self.now, self.ends[-1]) if self.ends else self.now


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("budget", [0.5, 1.0, 3.3, 20.0, 100.0])
def test_a_device_that_lags_behind_its_host_does_not_stretch_the_budget(budget, ahead):
    device = Device(0.01, 1.0, ahead)
    clock, step = Clock(Budget("time", budget), 1, 1.0, now=lambda: device.now, settle=device.settle), 0
    clock.start()
    while not clock.is_spent(step):
        device.step()
        step += 1
        clock.agreed = clock.read(step)
    device.settle()
    assert budget <= clock.seconds <= budget + 1.02


def test_a_device_is_waited_for_only_at_the_ends_of_a_time_budget():
    for budget, most in ((Budget("time", 100.0), 13), (Budget("iters", 100), 0)):
        device, waits = Device(0.01, 1.0, 3), []
        clock = Clock(budget, 1, 1.0, now=lambda d=device: d.now, settle=lambda d=device, w=waits: w.append(d.settle()))
        clock.start()
        step = 0
        while not clock.is_spent(step):
            device.step()
            step += 1
            clock.agreed = clock.read(step)
        assert len(waits) <= most


def test_what_is_left_is_unknown_before_the_first_step():
    clock = Clock(Budget("iters", 10), 1, 1.0)
    assert math.isnan(clock.remaining(0))
    assert Clock(Budget("time", 10), 1, 1.0, seconds=4.0).remaining(0) == 6.0


def test_every_rank_decides_by_the_same_seconds():
    """Only what is agreed counts, not this process's own clock."""
    clock = Clock(Budget("time", 10), 1, 1.0, now=lambda: 0.0)
    clock.agreed = 10.0
    assert clock.is_spent(3)
    assert clock.progress(3) == clock.ahead(3) == 1.0
    clock.agreed = 5.0
    assert not clock.is_spent(3)
    assert clock.ahead(5) == pytest.approx(0.6)
