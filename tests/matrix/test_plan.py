"""What a matrix consists of, what it refuses to compare, and where each run stands."""

from pathlib import Path

import pytest

from lib.config.errors import ConfigError
from lib.config.resolve import Resolver
from lib.config.sources import CONFIG, Assignment
from lib.matrix import plan, status
from lib.matrix.config import MatrixConfig
from lib.run import provenance
from lib.run.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver(ROOT)


def given(resolver, **settings):
    return [Assignment(resolver.schema.options[name], text, CONFIG, "test") for name, text in settings.items()]


def matrix(**fields):
    plain = {"steps": "V0", "seeds": "0", "optimizers": "", "contrasts": "", "output": "o", "baseline": ""}
    return MatrixConfig(**{**plain, "parallel_runs": 1, **fields})


def test_lists_are_split_at_spaces_and_commas():
    m = matrix(steps="V0, V1  V3", seeds="2,0", optimizers="adamw muon")
    assert (m.step_list, m.seed_list, m.optimizer_list) == (["V0", "V1", "V3"], [2, 0], ["adamw", "muon"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": " "}, "GPT2_STEPS is empty"),
        ({"steps": "V0 V1 V0"}, "GPT2_STEPS names V0 twice"),
        ({"seeds": "1 1"}, "GPT2_SEEDS names 1 twice"),
        ({"seeds": "0 00"}, "GPT2_SEEDS names 0 twice"),
        ({"contrasts": "V1-V1"}, "no pair arm-reference"),
        ({"contrasts": "V1"}, "no pair arm-reference"),
        ({"contrasts": "V1-"}, "no pair arm-reference"),
    ],
)
def test_axes_that_cannot_be_are_refused(fields, said):
    m = matrix(**fields)
    with pytest.raises(ConfigError, match=said):
        _ = (m.step_list, m.seed_list, m.contrast_list)


def test_without_declared_contrasts_each_step_is_set_against_the_first():
    assert matrix(steps="V2 V0 V1").contrast_list == [("V0", "V2"), ("V1", "V2")]


def test_arms_with_different_budgets_are_no_matrix(resolver, tmp_path):
    one = resolver.spec(given(resolver, GPT2_N_LAYER="2"), "V0")
    other = resolver.spec(given(resolver, GPT2_N_LAYER="3"), "V1")
    with pytest.raises(ConfigError, match="would not be compared fairly: GPT2_N_LAYER is 2 against 3"):
        plan.plan([one, other], tmp_path, lambda spec: [])


def finished(path, spec, **more):
    run = RunDirectory(path)
    run.open(provenance.config(spec), provenance.attempt(ROOT))
    run.append_metrics({"kind": "log", "iter": 7, "progress": 1.0})
    run.finish({"status": "done", "spec_hash": spec.spec_hash, "val_loss": 1.5, "iterations": 7, **more})
    run.close()


def test_a_baseline_elsewhere_must_share_what_is_compared(resolver, tmp_path):
    mine = resolver.spec(given(resolver, GPT2_N_LAYER="2"), "V1")
    finished(tmp_path / "fair", resolver.spec(given(resolver, GPT2_N_LAYER="2"), "V0"))
    finished(tmp_path / "unfair", resolver.spec(given(resolver, GPT2_N_LAYER="3"), "V0"))
    assert plan.baseline(tmp_path / "fair", mine)["step"] == "V0"
    with pytest.raises(ConfigError, match="no fair reference: GPT2_N_LAYER is 3 against 2"):
        plan.baseline(tmp_path / "unfair", mine)
    with pytest.raises(ConfigError, match="no finished run there"):
        plan.baseline(tmp_path / "nowhere", mine)


def test_status_says_where_each_run_stands(resolver, tmp_path):
    specs = [resolver.spec(given(resolver, GPT2_N_LAYER="2"), step) for step in ("V0", "V1", "V2", "V3", "V4")]
    cells = plan.plan(specs, tmp_path, lambda spec: ["train", spec.step])
    finished(cells[0].path, specs[0])
    broken, stopped, running = (RunDirectory(cell.path) for cell in cells[1:4])
    for run, spec in zip((broken, stopped, running), specs[1:4], strict=True):
        run.open(provenance.config(spec), {})
        run.append_metrics({"kind": "eval", "iter": 3, "progress": 0.25, "val_loss": 2.0})
    with stopped.new_checkpoint(3):
        pass
    broken.fail("the loss is not finite")
    broken.close()
    stopped.close()
    rows = status.rows(cells)
    running.close()
    assert rows[0][:5] == ["test_V0_adamwspam_none", "done", "100 %", "7", "1.5000"]
    assert rows[1][1] == "failed"
    assert rows[1][5] == "the loss is not finite"
    assert rows[2][1] == "stopped"
    assert rows[2][2:5] == ["25 %", "3", "2.0000"]
    assert rows[3][1] == "running"
    assert "process" in rows[3][5]
    assert rows[4] == ["test_V4_adamwspam_none", "waiting", "", "", "", ""]


def test_a_run_set_aside_is_still_found(resolver, tmp_path):
    spec = resolver.spec([], "V0")
    cell = plan.Cell(spec, tmp_path / spec.name, ())
    finished(cell.path, spec)
    cell.path.rename(tmp_path / f"{spec.name}~{spec.spec_hash[:8]}")
    assert cell.state == "done"
    assert "brings it back" in status.rows([cell])[0][5]
