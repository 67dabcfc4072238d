"""What a checkpoint refuses, what it merely names, and what it never does."""

import json

import pytest
import torch
from torch import nn

from lib.config.errors import ConfigError, DataError, RunError
from lib.optimizers.build import OptimizerConfig, build
from lib.run import checkpoints
from lib.train import checkpoint
from lib.train.position import Position
from lib.train.session import Session
from tests.train.harness import Corpus, corpus, interrupt, rows, run, values
from tests.train.harness import build as tiny


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped after three steps."""
    interrupt(tmp_path / "r", monkeypatch, 3)
    return tmp_path / "r"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_tokens_are_refused_as_a_data_error(stopped):
    with pytest.raises(DataError, match="the tokens changed under this checkpoint") as error:
        run(stopped, data=corpus(seed=1))
    assert error.value.exit_code == 3
    assert corpus().fingerprint in one_line(error)
    assert "step-00000003" in str(error.value)


def test_another_vocabulary_is_refused_as_a_data_error(stopped):
    data = corpus()
    with pytest.raises(DataError, match=r"the vocabulary changed under this checkpoint \(64, now 65\)") as error:
        run(stopped, data=Corpus(data.train, data.val, vocab_size=65))
    one_line(error)


def test_another_shape_is_refused_as_a_config_error_naming_the_tensor(stopped):
    with pytest.raises(ConfigError, match="the model changed under this checkpoint") as error:
        run(stopped, model=tiny(values(), width=64))
    assert error.value.exit_code == 2
    assert "h.0.attn.c_attn.bias is [96] there, [192] now" in one_line(error)


def test_another_mechanism_is_refused_naming_the_parameter(stopped):
    with pytest.raises(ConfigError, match=r"h.0.attn.w_rec is absent there, \[4\] now") as error:
        run(stopped, arm="V1")
    one_line(error)


def test_another_spec_hash_is_refused_as_a_config_error(stopped):
    """Only a folder that was moved by hand comes so far: opening a run sets another hash aside."""
    found = checkpoints.listed(stopped / "checkpoints")[0]
    state = checkpoint.read_state(found)
    with pytest.raises(ConfigError, match=r"belongs to spec aaaa.*, the run is bbbb") as error:
        checkpoint.refuse_changes(found, state, {**state, "spec_hash": "b" * 64}, tiny(values()))
    one_line(error)


def test_another_format_is_refused(stopped):
    found = checkpoints.listed(stopped / "checkpoints")[0]
    state = json.loads((found / "state.json").read_text())
    (found / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(RunError, match="checkpoint format 99, this code reads 1"):
        checkpoint.read_state(found)


def test_a_refusal_changes_nothing(stopped):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and "lock" not in p.name}
    with pytest.raises(DataError):
        run(stopped, data=corpus(seed=1))
    after = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and "lock" not in p.name}
    changed = {p.name for p in before if after.get(p) != before[p]}
    assert changed <= {"config.json"}  # the attempt is listed there
    assert run(stopped)["status"] == "done"


def test_what_may_change_is_only_noted(stopped, monkeypatch):
    fingerprint = Session.fingerprint
    monkeypatch.setattr(Session, "fingerprint", lambda self: {**fingerprint(self), "torch": "9.9"})
    summary = run(stopped, THREADS=2, MICRO_BATCH=1)
    assert summary["status"] == "done"
    notes = " ".join(row["note"] for row in rows(stopped, "note"))
    for text in ("torch was 2", "is 9.9", "threads was 1, is 2", "micro_batch was 2, is 1"):
        assert text in notes
    assert "device" not in notes
    assert "world_size" not in notes


def test_an_unchanged_resume_notes_no_change(stopped):
    run(stopped)
    assert [row["note"] for row in rows(stopped, "note")] == ["continues from step 3 (step-00000003)"]


class Tied(nn.Module):
    """Two names for one weight, a buffer, and a half-precision parameter."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.wte.weight
        self.small = nn.Parameter(torch.randn(4, 2).to(torch.bfloat16))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


CONFIG = OptimizerConfig("adamw", 1e-2, None, 0.1, 0.9, 0.95, None, None, None)


def test_a_tied_weight_is_stored_once_and_restored_in_both_places(tmp_path):
    torch.manual_seed(0)
    one, other = Tied(), Tied()
    checkpoint.write(tmp_path, one, build(one, CONFIG), {})
    assert set(checkpoint.unique_tensors(one)) == {"wte.weight", "small", "count"}
    checkpoint.restore(tmp_path, checkpoint.read_state(tmp_path), other, build(other, CONFIG))
    assert checkpoint.weights_sha256(one) == checkpoint.weights_sha256(other)
    assert other.head.weight is other.wte.weight


def test_an_export_keeps_ties_and_loads_without_pickle(tmp_path):
    model = Tied()
    checkpoint.export(model, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert state["wte.weight"].data_ptr() == state["head.weight"].data_ptr()
    Tied().load_state_dict(state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_an_export_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.export(Tied(), tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"cannot write .*model.pt: .*No space left"):
        checkpoint.export(Tied(), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_the_hash_of_weights_sees_names_types_shapes_and_bits():
    def of(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return checkpoint.weights_sha256(module)

    a = torch.arange(6.0)
    seen = [of(x=a), of(y=a), of(x=a.reshape(2, 3)), of(x=a.half()), of(x=-a), of(x=a, y=-a)]
    assert len(set(seen)) == len(seen)
    assert of(x=a) == of(x=torch.arange(12.0)[::2] / 2)  # however it lies in memory


def test_a_position_survives_strict_json():
    at = Position(step=3, last_eval=2, last_row={"val_loss": 1.5, "bits_per_byte": float("nan")}, seconds=0.1)
    back = Position.of(json.loads(json.dumps(at.state(), allow_nan=False)))
    assert (back.step, back.last_eval, back.best_val_loss, back.seconds) == (3, 2, float("inf"), 0.1)
    assert back.run_id == at.run_id
    assert back.last_row["val_loss"] == 1.5
    assert back.last_row["bits_per_byte"] != back.last_row["bits_per_byte"]
