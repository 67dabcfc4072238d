"""Whole runs of arms that must be the same run: the trainer adds no difference of its own."""

import pytest
import torch

from gpt2.ra_patch import set_ra_mlp_coupling_scale
from lib.config.budget import Budget
from lib.train.step import seed_dropout, total_norm
from tests.train.harness import build, rows, run, values

SAME = {"train_loss_step", "learning_rate", "grad_norm", "val_loss", "train_loss", "best_val_loss", "bits_per_byte"}


def trained(path, arm, **given):
    run(path, arm=arm, budget=Budget("iters", 10), dropout=0.1, GRAD_CLIP=0.5, **given)
    numbers = [{k: row[k] for k in SAME & row.keys()} for row in rows(path, "log", "eval")]
    return numbers, torch.load(path / "model.pt", weights_only=True)


@pytest.mark.parametrize("optimizer", ["adamw", "adamwspam", "muon"])
def test_with_frozen_gates_the_whole_run_is_the_baselines_bit_for_bit(tmp_path, optimizer):
    base, base_weights = trained(tmp_path / "V0", "V0", OPTIMIZER=optimizer, COUPLING_WARMUP=0.5)
    frozen, frozen_weights = trained(tmp_path / "V1F", "V1F", OPTIMIZER=optimizer, COUPLING_WARMUP=0.5)
    assert frozen == base
    assert all(torch.equal(frozen_weights[name], weight) for name, weight in base_weights.items())


@pytest.mark.parametrize("arm", ["V1", "V2", "V3", "V4", "V6"])
def test_while_the_coupling_is_zero_an_arm_is_the_baseline_bit_for_bit(tmp_path, arm):
    """The coupling grows over the whole run: the first step trains at s = 0, with gates that get no gradient."""
    given = {"RMLP_R_FF": 16, "COUPLING_WARMUP": 1.0, "EVAL_INTERVAL": 1}
    base, _ = trained(tmp_path / "V0", "V0", **given)
    coupled, _ = trained(tmp_path / arm, arm, **given)
    assert coupled[:2] == base[:2]  # the evaluation before it, and the first step
    assert coupled[-1] != base[-1]


def test_held_at_zero_it_is_the_baseline_to_the_end(tmp_path):
    model = build(values("V6", RMLP_R_FF=16), dropout=0.1)
    set_ra_mlp_coupling_scale(model, 0.0)
    base, base_weights = trained(tmp_path / "V0", "V0")
    held, held_weights = trained(
        tmp_path / "s0", "V6", RMLP_R_FF=16, model=model, hooks={"on_progress": lambda scale: None}
    )
    assert held == base
    assert all(torch.equal(held_weights[name], weight) for name, weight in base_weights.items())


def test_zero_gradients_do_not_change_how_the_others_are_clipped():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        grads = [torch.randn(5, generator=generator) for _ in range(40)]
        norm = total_norm(grads)
        assert norm == total_norm([*grads[:7], torch.zeros(3), *grads[7:30], torch.zeros(2, 2), *grads[30:]])
        assert norm.item() == pytest.approx(torch.cat(grads).double().norm().item(), rel=1e-6)


def test_dropout_depends_on_seed_step_and_micro_batch_alone():
    def drawn(*key):
        seed_dropout(*key, torch.device("cpu"))
        return torch.rand(4).tolist()

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    keys = [(s, n, m) for s in range(3) for n in range(3) for m in range(3)]
    assert len({tuple(drawn(*key)) for key in keys}) == len(keys)


def test_an_arm_that_draws_more_dropout_leaves_the_next_micro_batch_its_masks(tmp_path):
    class Greedy(torch.nn.Module):
        """The same model, which also wastes random numbers."""

        def __init__(self):
            super().__init__()
            self.inner = build(values(), dropout=0.1)

        def forward(self, x, y, **more):
            loss = self.inner(x, y, **more)
            torch.rand(7)
            return loss

    base, _ = trained(tmp_path / "V0", "V0")
    greedy, _ = trained(tmp_path / "greedy", "V0", model=Greedy())
    assert greedy == base
