"""The run directory: what is done, what is set aside, who may write, which checkpoint counts."""

import json
import multiprocessing
import os

import pytest

from lib.config.errors import RunError
from lib.run import checkpoints, directory, lock
from lib.run.directory import RunDirectory

A, B = "a" * 64, "b" * 64


def begun(path, hash_=A):
    run = RunDirectory(path)
    run.open({"spec_hash": hash_}, {"commit": "c"})
    return run


def finished(path, hash_=A, **more):
    run = begun(path, hash_)
    run.append_metrics({"kind": "log", "iter": 1})
    run.finish({"status": "done", "spec_hash": hash_, "val_loss": 2.0, **more})
    run.close()
    return run


def test_done_is_a_summary_with_the_wanted_hash_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    assert directory.state(path, A) == "waiting"
    run = begun(path)
    assert directory.state(path, A) == "running"
    run.append_metrics({"kind": "log", "iter": 1})
    with run.new_checkpoint(1) as folder:
        (folder / "state.json").write_text("{}")
    run.close()
    assert directory.state(path, A) == "stopped"
    begun(path).close()
    run = begun(path)
    run.fail("it broke")
    run.close()
    assert directory.state(path, A) == "failed"
    finished(path)
    assert directory.state(path, A) == "done"
    assert directory.state(path, B) == "waiting"
    assert len(json.loads((path / "config.json").read_text())["attempts"]) == 4


def test_another_hash_is_set_aside_and_comes_back(tmp_path):
    path = tmp_path / "run"
    finished(path, A, val_loss=1.0)
    finished(path, B)
    assert (tmp_path / f"run~{A[:8]}" / "metrics.json").exists()
    assert directory.state(path, A) == "done"
    assert directory.make_room(path, A) == f"set aside as run~{B[:8]}; brought back from run~{A[:8]}"
    assert directory.summary_if_done(path, A)["val_loss"] == 1.0
    assert directory.state(path, B) == "done"
    begun(path, B).close()
    assert directory.holder_of(path) is None


def test_two_of_the_same_hash_never_overwrite_each_other(tmp_path):
    path = tmp_path / "run"
    for copy in ("x", "y", "z"):
        finished(tmp_path / copy)
    for copy in ("x", "y", "z"):
        (tmp_path / copy).rename(path)
        directory.set_aside(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"run~{A[:8]}", f"run~{A[:8]}.1", f"run~{A[:8]}.2"]


def test_a_retired_run_is_not_brought_back(tmp_path):
    path = tmp_path / "run"
    finished(path)
    place = directory.set_aside(path, retire=True)
    assert place.name == f"run~{A[:8]}.old1"
    assert directory.state(path, A) == "waiting"
    assert directory.make_room(path, A) == ""
    assert not path.exists()


def test_a_folder_of_somebody_elses_files_is_set_aside(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "thesis.txt").write_text("all of it")
    begun(path).close()
    assert (tmp_path / "run~unknown" / "thesis.txt").read_text() == "all of it"


def test_a_run_without_a_row_leaves_its_place_to_the_next(tmp_path):
    begun(tmp_path / "run", A).close()
    begun(tmp_path / "run", B).close()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["spec_hash"], len(config["attempts"])) == (B, 1)


def test_rows_are_strict_json_with_non_finite_values_named(tmp_path):
    run = begun(tmp_path / "run")
    run.append_metrics({"kind": "log", "iter": 1, "loss": float("nan"), "rate": 2.0})
    row = json.loads((run.path / "metrics.jsonl").read_text())
    assert row == {"kind": "log", "iter": 1, "loss": None, "rate": 2.0, "non_finite": ["loss"]}
    run.close()


def test_a_resumed_run_drops_the_rows_it_will_write_again(tmp_path):
    run = begun(tmp_path / "run")
    for row in (("log", 1), ("log", 2), ("eval", 2), ("log", 3), ("eval", 4)):
        run.append_metrics({"kind": row[0], "iter": row[1]})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "log", "it')  # a kill in the middle of a line
    run.truncate_metrics(step=2, last_eval=0)
    rows = directory.read_rows(run.path / "metrics.jsonl")
    assert [(r["kind"], r["iter"]) for r in rows] == [("log", 1), ("log", 2)]
    run.close()


def test_only_one_process_may_write(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with lock.Lock(path, "training"), pytest.raises(RunError, match=rf"in use by training \(process {os.getpid()} on"):
        lock.Lock(path, "training", patience=0.0).take()
    with lock.Lock(path, "training") as again:
        assert again.attempt == 2


def test_a_superseded_attempt_may_not_write(tmp_path):
    run = begun(tmp_path / "run")
    newer = tmp_path / "run" / "lock.2"
    lock._write_holder(newer, 2, "training", "another")
    with pytest.raises(RunError, match="taken over"):
        run.append_metrics({"iter": 1})
    with pytest.raises(RunError, match="taken over"), run.new_checkpoint(1) as folder:
        folder.joinpath("x").write_text("x")
    with pytest.raises(RunError, match="taken over"):
        run.finish({"status": "done"})
    run.fail("nothing is written")
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "lock.1", "lock.2"]


def test_a_dead_holders_lock_is_taken_with_the_next_number(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    child = multiprocessing.get_context("fork").Process(target=lambda: (lock.Lock(path, "x").take(), os._exit(9)))
    child.start()
    child.join()
    assert lock.holder_of(path) is None
    with lock.Lock(path, "training", patience=0.0) as taken:
        assert taken.attempt == 2


def test_a_holder_elsewhere_is_judged_by_its_heartbeat(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
    lock._write_holder(path / "lock.1", 1, "training", "theirs")
    monkeypatch.undo()
    with pytest.raises(RunError, match="on elsewhere"):
        lock.Lock(path, "training", patience=0.0).take()
    old = path.joinpath("lock.1").stat().st_mtime - lock.STALE_SECONDS - 1
    os.utime(path / "lock.1", (old, old))
    with lock.Lock(path, "training", patience=0.0) as taken:
        assert taken.attempt == 2


def test_of_many_contenders_exactly_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        results, barrier = context.Queue(), context.Barrier(6)

        def contender(results=results, barrier=barrier):
            barrier.wait()
            try:
                lock.Lock(tmp_path, "x", patience=0.0).take()
                results.put(1)
            except RunError:
                results.put(0)
            barrier.wait()

        children = [context.Process(target=contender) for _ in range(6)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert sum(results.get() for _ in children) == 1


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), checkpoints.new(tmp_path, 1) as folder:  # noqa: PT012
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with checkpoints.new(tmp_path, 1) as folder:
        (folder / "a").write_text("whole")
    assert checkpoints.damage(tmp_path / "step-00000001") == ""


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, harm):
    for step in (1, 2):
        with checkpoints.new(tmp_path, step) as folder:
            (folder / "a").write_bytes(b"some weights")
    victim = tmp_path / "step-00000002"
    {
        "flip": lambda: (victim / "a").write_bytes(b"some weightt"),
        "truncate": lambda: (victim / "a").write_bytes(b"some"),
        "remove": lambda: (victim / "a").unlink(),
        "manifest": lambda: (victim / "MANIFEST.json").write_text("{"),
    }[harm]()
    found, complaints = checkpoints.newest_good(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_the_newest_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (9, 10, 100, 100):
        with checkpoints.new(tmp_path, step):
            pass
    assert [p.name for p in checkpoints.listed(tmp_path)][:2] == ["step-00000100.2", "step-00000100"]
    (tmp_path / ".step-00000101.1.tmp").mkdir()
    checkpoints.keep(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100", "step-00000100.2"]


def test_the_shell_of_a_run_without_a_row_gives_way_to_the_one_set_aside(tmp_path):
    path = tmp_path / "run"
    stopped = begun(path, A)
    stopped.append_metrics({"kind": "log", "iter": 1})
    with stopped.new_checkpoint(1):
        pass
    stopped.close()
    finished(path, B)
    path.rename(tmp_path / "elsewhere")
    for shell in (B, A, "c" * 64):  # whatever its hash
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"spec_hash": shell}))
        (path / "lock.1").write_text('{"attempt": 1, "released": true}')
        assert directory.state(path, A) == "stopped"
        assert directory.make_room(path, A) == f"brought back from run~{A[:8]}"
        assert directory.checkpoints.listed(path / "checkpoints")
        directory.set_aside(path)


EDITED = json.dumps({"status": "done", "spec_hash": A, "val_loss": "low"})


@pytest.mark.parametrize("broken", ['{"status": "done"}', EDITED, "[1]", "{"])
def test_a_summary_that_somebody_broke_is_not_done(tmp_path, broken):
    path = tmp_path / "run"
    finished(path)
    (path / "metrics.json").write_text(broken)
    assert directory.state(path, A) != "done"
    (path / "config.json").write_text(json.dumps({"spec_hash": A, "attempts": 5}))
    begun(path).close()
    (path / "metrics.jsonl").write_text('{"iter": null, "kind": "log"}\n{"iter": "x"}\n{"iter": 1e999}\n{"iter": 1}\n')
    RunDirectory(path).truncate_metrics(5, 5)
    assert [r["iter"] for r in directory.read_rows(path / "metrics.jsonl")] == [1]
