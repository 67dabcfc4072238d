"""Who is decayed, who goes to Muon, and the round trip of all optimizers together."""

import copy
import math

import pytest
import torch
from torch import nn

from lib.config.errors import ConfigError, RunError
from lib.optimizers.build import OptimizerConfig, build, hidden_matrices


class Toy(nn.Module):
    """An embedding, a hidden matrix with bias, a norm, gates, a spared matrix and a tied output."""

    no_weight_decay = ("mix", "absent_here")
    absent_here = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(11, 6)
        self.fc = nn.Linear(6, 6)
        self.ln = nn.LayerNorm(6)
        self.gate = nn.Parameter(torch.ones(6))
        self.mix = nn.Parameter(torch.eye(6))
        self.lm_head = nn.Linear(6, 11, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.ln(torch.tanh(self.fc(self.wte(idx)) * self.gate) @ self.mix)
        return nn.functional.cross_entropy(self.lm_head(x).flatten(0, 1), idx.flatten())


def config(name: str) -> OptimizerConfig:
    return OptimizerConfig(name, 1e-2, 0.02, 0.1, 0.9, 0.95, 50.0, 30, 10)


def train(model: Toy, optimizers, first: int, last: int) -> None:
    for step in range(first, last):
        g = torch.Generator().manual_seed(step)
        model(torch.randint(11, (3, 4), generator=g)).backward()
        optimizers.step(skip=torch.zeros(1))
        optimizers.zero_grad()


def test_only_matrices_decay_and_every_parameter_has_one_place() -> None:
    model = Toy()
    for name in ("adamw", "adamwspam", "muon"):
        built = build(model, config(name))
        placed = [p for o, _ in built.parts for g in o.param_groups for p in g["params"]]
        assert {id(p) for p in placed} == {id(p) for p in model.parameters()}
        assert len(placed) == len(set(map(id, placed)))
        decayed = {id(p) for o, _ in built.parts for g in o.param_groups if g["weight_decay"] for p in g["params"]}
        assert decayed == {id(model.wte.weight), id(model.fc.weight)}


def test_muon_takes_hidden_matrices_and_not_embeddings_or_what_is_spared() -> None:
    model = Toy()
    assert {id(p) for p in hidden_matrices(model)} == {id(model.fc.weight)}
    built = build(model, config("muon"))
    built.set_factor(0.5)
    assert [o.param_groups[0]["lr"] for o, _ in built.parts] == [0.005, 0.01]
    assert built.learning_rate == 0.005


@pytest.mark.parametrize("name", ["adamw", "adamwspam", "muon"])
def test_saving_and_loading_by_name_changes_no_bit(name: str) -> None:
    straight, broken = Toy(), Toy()
    train(straight, build(straight, config(name)), 0, 50)
    first = build(broken, config(name))
    train(broken, first, 0, 33)
    tensors, counters = {k: v.clone() for k, v in first.tensors().items()}, first.counters()
    second = build(broken, config(name))
    second.load(tensors, counters)
    train(broken, second, 33, 50)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), broken.parameters(), strict=True))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["adamw", "adamwspam", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_state(name: str, steps: int) -> None:
    model = Toy()
    built = build(model, config(name))
    train(model, built, 0, steps)
    before = copy.deepcopy(model.state_dict())
    state = {k: v.clone() for k, v in built.tensors().items()}
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    built.step(skip=torch.ones(1))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    # The state that the very first step begins is zero.
    assert all(torch.equal(state.get(k, torch.zeros_like(v)), v) for k, v in built.tensors().items())


@pytest.mark.parametrize("name", ["adamw", "adamwspam", "muon"])
def test_state_is_named_after_parameter_and_moment(name: str) -> None:
    model = Toy()
    built = build(model, config(name))
    assert built.tensors() == {}
    train(model, built, 0, 1)
    adam, muon = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
    expected = {
        f"{parameter}.{moment}"
        for parameter, _ in model.named_parameters()
        for moment in (muon if name == "muon" and parameter == "fc.weight" else adam)
    }
    assert set(built.tensors()) == expected


def test_state_of_another_model_or_optimizer_is_refused() -> None:
    built = build(Toy(), config("adamw"))
    for strange in (
        {"other.weight.step": torch.zeros(())},
        {"fc.weight.exp_avg": torch.zeros(6, 7)},
    ):
        with pytest.raises(RunError, match="another model"):
            built.load(strange, built.counters())
    with pytest.raises(RunError, match="another model"):
        built.load({}, build(Toy(), config("muon")).counters())


def test_loading_no_state_begins_afresh() -> None:
    fresh, used = Toy(), Toy()
    optimizers = build(used, config("adamwspam"))
    counters = optimizers.counters()
    train(used, optimizers, 0, 3)
    used.load_state_dict(fresh.state_dict())
    optimizers.load({}, counters)
    train(used, optimizers, 3, 9)
    train(fresh, build(fresh, config("adamwspam")), 3, 9)
    assert all(torch.equal(a, b) for a, b in zip(used.parameters(), fresh.parameters(), strict=True))


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ConfigError, match="adamw adamwspam muon"):
        build(Toy(), config("sgd"))
