"""The summary: pairs, means, notes, and the three forms it is written in."""

import json

import pytest

from lib.analysis import summary, table
from lib.analysis.summary import Run


def metrics(loss, **more):
    plain = {"val_loss": loss, "bits_per_byte": loss / 2, "val_perplexity": 2.0, "tokens": 1000, "flops": 5e9}
    plain |= {"seconds": 1.0, "parameters": 10, "peak_memory_bytes": 2e6, "fairness_hash": "f", "data_fingerprint": "d"}
    return plain | more


def run(step, loss, seed=0, optimizer="adamw", **more):
    done = loss is not None
    return Run(step, optimizer, seed, "done" if done else "failed", metrics(loss, **more) if done else None)


LOSSES = {("V0", 0): 2.0, ("V0", 1): 2.2, ("V0", 2): 2.4, ("V1", 0): 1.9, ("V1", 1): 2.15, ("V1", 2): 2.3}
RUNS = [run(step, loss, seed) for (step, seed), loss in LOSSES.items()]


def test_differences_are_paired_by_seed():
    found = summary.summarise("t", RUNS, [("V1", "V0")]).contrasts[0]
    assert list(found.loss.values()) == pytest.approx([-0.1, -0.05, -0.1])
    assert found.mean == pytest.approx(-0.25 / 3)
    assert found.spread == pytest.approx(0.0288675)
    assert list(found.bits.values()) == pytest.approx([-0.05, -0.025, -0.05])


def test_a_run_without_its_partner_is_in_no_pair():
    found = summary.summarise("t", [*RUNS[:2], *RUNS[4:]], [("V1", "V0")])
    assert list(found.contrasts[0].loss) == [1]


def test_pairs_are_within_one_optimizer():
    runs = [run("V0", 2.0), run("V1", 1.0), run("V0", 3.0, optimizer="muon"), run("V1", 2.5, optimizer="muon")]
    found = summary.summarise("t", runs, [("V1", "V0")])
    assert [(c.optimizer, dict(c.loss)) for c in found.contrasts] == [("adamw", {0: -1.0}), ("muon", {0: -0.5})]
    assert [row[0] for row in summary.contrast_rows(found.contrasts)] == ["V1 - V0 adamw", "V1 - V0 muon"]
    assert any("LIMITED" in note for note in found.notes)
    rows = {row[0]: row[2] for row in summary.arm_rows(found)}
    assert rows["V1 adamw"] == "-1.0000"
    assert rows["V1 muon"] == "-0.5000"


def test_contrasts_of_steps_outside_the_matrix_are_left_out():
    assert summary.summarise("t", RUNS, [("V1", "V0"), ("V6", "V4")]).contrasts[0].arm == "V1"
    assert len(summary.summarise("t", RUNS, [("V1", "V0"), ("V6", "V4")]).contrasts) == 1


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([run("V0", 2.0), run("V1", None)], "1 of 2 runs are not done (1 failed)"),
        ([run("V0", 2.0), run("V1", 2.0)], "LIMITED: one or two seeds"),
        ([run("V0", 2.0), run("V1", 2.0, fairness_hash="g")], "INVALID: these runs have different fairness hashes"),
        ([run("V0", 2.0), run("V1", 2.0, data_fingerprint="e")], "INVALID: these runs have different data"),
        ([run("V0", 2.0, threads=1), run("V1", 2.0, threads=2)], "threads differs between runs: 1, 2"),
        ([run("V0", 2.0, eval_reduced=True, eval_windows=20)], "validation on 20 windows, not on the whole split"),
        ([run("V0", 2.0), run("V1", 2.0, tokens=1100)], "runs saw 1k to 1.1k tokens"),
    ],
)
def test_what_makes_a_comparison_less_than_fair_is_said(runs, said):
    notes = summary.summarise("t", runs, [("V1", "V0")]).notes
    assert any(said in note for note in notes), notes


def test_three_fair_pairs_need_no_note():
    assert summary.summarise("t", RUNS, [("V1", "V0")]).notes == []


def test_the_three_forms_agree(tmp_path):
    found = summary.summarise("a title", [*RUNS, run("V2", None)], [("V1", "V0")])
    summary.write(found, tmp_path)
    data = json.loads((tmp_path / "summary.json").read_text())
    page = (tmp_path / "summary.md").read_text()
    text = summary.as_text(found)
    assert data["contrasts"][0]["mean"] == pytest.approx(-0.25 / 3)
    assert [p["seed"] for p in data["contrasts"][0]["pairs"]] == [0, 1, 2]
    assert len(data["runs"]) == 7
    for form in (page, text):
        assert "a title" in form
        assert "-0.0833 nats" in form
        assert "V0 (3 of 3 seeds)" in form
        assert "2.2000" in form
        assert "failed" in form


def test_a_number_that_is_missing_breaks_nothing():
    found = summary.summarise("t", [run("V0", 2.0), run("V1", 1.0, bits_per_byte=None)], [("V1", "V0")])
    assert found.contrasts[0].bits == {}
    assert summary.as_text(found)


def test_numbers_are_aligned_to_the_right_and_words_to_the_left():
    lines = table.text(["name", "n"], [["a", "1"], ["long", "-20"]]).splitlines()
    assert lines == ["name    n", "----  ---", "a       1", "long  -20"]


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (2048, "2.05k"), (4.5e9, "4.5B"), (1e13, "10T")])
def test_counts_are_short(value, text):
    assert summary.count_text(value) == text
