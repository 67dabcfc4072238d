"""The runner: what is run, what is not, what a signal does, and what is left behind."""

import os
import signal
import threading
import time

import pytest

from lib.matrix.runner import Runner, visible_devices

WAITS = (
    "stop = []\n"
    "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, lambda n, f: stop.append(n))\n"
    "(run / 'ready').touch()\n"
    "while not stop: time.sleep(0.01)\n"
    "(run / 'saved').write_text(str(stop[0])); sys.exit(130 if stop[0] == signal.SIGINT else 75)\n"
)


def said_by(runner):
    said = []
    runner.say = said.append
    return said


def test_what_is_done_is_not_run_again(cell, tmp_path):
    count = "p = run / 'count'; p.write_text(str(int(p.read_text() if p.exists() else 0) + 1)); finish()"
    cells = [cell("a", count), cell("b", count)]
    for _ in range(2):
        runner = Runner(tmp_path, cells)
        said_by(runner)
        assert runner.run() == 0
    assert [(tmp_path / name / "count").read_text() for name in "ab"] == ["1", "1"]


def test_a_failed_run_does_not_stop_the_others_and_decides_the_exit_code(cell, tmp_path):
    runner = Runner(tmp_path, [cell("a", "sys.exit(1)"), cell("b", "finish()")])
    said = said_by(runner)
    assert runner.run() == 1
    assert runner.codes == {"a": 1, "b": 0}
    assert any("a: failed (exit 1)" in line for line in said)


@pytest.mark.parametrize(("codes", "whole"), [((2, 0), 2), ((2, 1), 1), ((0, 0), 0), ((75, 1), 75)])
def test_the_exit_code_of_the_whole(cell, tmp_path, codes, whole):
    runner = Runner(tmp_path, [cell(str(i), f"sys.exit({code})") for i, code in enumerate(codes)])
    said_by(runner)
    assert runner.run() == whole


def test_missing_data_stops_the_matrix(cell, tmp_path):
    runner = Runner(tmp_path, [cell("a", "sys.exit(3)"), cell("b", "finish()")])
    said_by(runner)
    assert runner.run() == 3
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_the_first_signal_lets_each_run_save_and_starts_no_other(cell, tmp_path, parallel, number, code):
    cells = [cell(name, WAITS) for name in "abc"]
    send_when_ready(tmp_path, "ab"[:parallel], [number])
    runner = Runner(tmp_path, cells, parallel)
    said_by(runner)
    assert runner.run() == code
    asked = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    assert [(tmp_path / n / "saved").read_text() for n in "ab"[:parallel]] == [str(int(asked))] * parallel
    assert not (tmp_path / "c").exists()


def test_the_second_ctrl_c_kills_a_run_that_does_not_end(cell, tmp_path):
    stubborn = (
        "signal.signal(signal.SIGINT, lambda n, f: (run / 'heard').touch())\n"
        "(run / 'ready').touch()\n"
        "while True: time.sleep(0.01)"
    )
    send_when_ready(tmp_path, "a", [signal.SIGINT, signal.SIGINT], then="heard")
    runner = Runner(tmp_path, [cell("a", stubborn)])
    said_by(runner)
    assert runner.run() == 130
    assert runner.codes == {"a": 128 + 9}


def send_when_ready(folder, names, numbers, then=None):
    """Send `numbers` to this process once every named run is ready (and the second once `then` exists)."""

    def work():
        wait_for(*(folder / name / "ready" for name in names))
        os.kill(os.getpid(), numbers[0])
        for number in numbers[1:]:
            wait_for(folder / names[0] / then)
            os.kill(os.getpid(), number)

    threading.Thread(target=work, daemon=True).start()


def wait_for(*paths):
    deadline = time.monotonic() + 30
    while not all(p.exists() for p in paths):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_parallel_runs_share_the_gpus_and_the_threads(cell, tmp_path):
    tell = (
        "(run / 'said').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', '') + ' ' + ' '.join(sys.argv[1:]))\n"
        "(run / 'ready').touch()\n"
        "while len(list(run.parent.glob('*/ready'))) < 2: time.sleep(0.01)\n"
        "finish()"
    )
    runner = Runner(tmp_path, [cell("a", tell), cell("b", tell)], parallel=2, devices=["0", "1", "2"], threads=3)
    said = said_by(runner)
    assert runner.run() == 0
    assert (tmp_path / "a" / "said").read_text() == "0,2 --threads 3"
    assert (tmp_path / "b" / "said").read_text() == "1 --threads 3"
    assert sum("val loss 1.0" in line for line in said) == 2


def test_a_parallel_runs_last_words_are_shown(cell, tmp_path):
    runner = Runner(tmp_path, [cell("a", "print('error: too wide', file=sys.stderr); sys.exit(2)")], parallel=2)
    said = said_by(runner)
    assert runner.run() == 2
    assert "error: too wide" in said


def test_a_longer_run_comes_back_without_training(cell, tmp_path):
    tell = "(run / 'ran').touch(); finish()"
    long, short = cell("a", tell, "a" * 64), cell("a", tell, "b" * 64)
    for each in (long, short):
        runner = Runner(tmp_path, [each])
        said_by(runner)
        assert runner.run() == 0
    (tmp_path / "a~aaaaaaaa" / "ran").unlink()
    runner = Runner(tmp_path, [long])
    said = said_by(runner)
    assert runner.run() == 0
    assert not (tmp_path / "a" / "ran").exists()
    assert (tmp_path / "a~bbbbbbbb" / "metrics.json").exists()
    assert "brought back from a~aaaaaaaa" in said[0]


def test_visible_devices_are_those_the_environment_names():
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "3, 5"}) == ["3", "5"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "-1"}) == []
