"""ra.py's two modules on their own: sizes, parameters, gates, pretrained starts. The identities are in equivalence/."""

import copy
import math

import pytest
import torch

from lib.optimizers.build import spared
from ra import ReciprocalMLP, UnifiedRAttention


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd 30"),
        ({"n_embd": 32, "n_head": 4, "R": 8}, "R 8"),
        ({"n_embd": 32, "n_head": 4, "R": 0}, "R 0"),
        ({"n_embd": 32, "n_head": 4, "R": 5, "share": "tied"}, "R 5"),
        ({"n_embd": 32, "n_head": 4, "share": "both"}, "'both'"),
        ({"n_embd": 32, "n_head": 4, "dropout": 1.0}, "dropout 1.0"),
        ({"n_embd": 32, "n_head": 4, "heads": [4]}, "heads [4]"),
        ({"n_embd": 32, "n_head": 4, "heads": []}, "heads []"),
        ({"n_embd": 32, "n_head": 4, "rwr_alpha_init": 0.6}, "rwr_alpha_init 0.6"),
    ],
)
def test_attention_sizes_that_cannot_be_are_named(sizes, named):
    with pytest.raises(ValueError) as refused:
        UnifiedRAttention(**sizes)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"n_embd": 8, "R_ff": 32}, "R_ff 32"),
        ({"n_embd": 8, "R_ff": 0}, "R_ff 0"),
        ({"n_embd": 8, "R_ff": 17, "tie_up_low": True}, "R_ff 17"),
        ({"n_embd": 8, "R_ff": 4, "dropout": -0.1}, "dropout -0.1"),
    ],
)
def test_mlp_sizes_that_cannot_be_are_named(sizes, named):
    with pytest.raises(ValueError) as refused:
        ReciprocalMLP(**sizes)
    assert named in str(refused.value)


def test_parameters_have_the_names_and_shapes_of_the_design():
    def shapes(module):
        return {name: tuple(p.shape) for name, p in module.named_parameters()}

    projections = {"c_attn.weight": (96, 32), "c_attn.bias": (96,), "c_proj.weight": (32, 32), "c_proj.bias": (32,)}
    assert shapes(UnifiedRAttention(32, 4)) == {**projections, "w_std": (4,), "w_rec": (4,)}
    assert "rwr_alpha" in shapes(UnifiedRAttention(32, 4, use_self_restart=True))
    assert not hasattr(UnifiedRAttention(32, 4), "rwr_alpha")
    assert shapes(UnifiedRAttention(32, 4, per_head_gates=False))["w_std"] == (1,)
    assert shapes(UnifiedRAttention(32, 4, share="tied"))["c_attn.weight"] == (96 - 2 * 4 * 4, 32)
    assert shapes(UnifiedRAttention(32, 4, share="tied", heads=[0, 2]))["c_attn.weight"] == (96 - 2 * 4 * 2, 32)
    mlp = shapes(ReciprocalMLP(8, R_ff=6, use_mixer=True, use_gates=True, tie_up_low=True))
    assert mlp["c_fc.weight"] == (26, 8)
    assert mlp["mixer"] == (6, 6)
    assert (mlp["gate_alpha"], mlp["gate_bias"]) == ((8,), (1,))


def test_gates_start_at_the_designed_values():
    assert UnifiedRAttention(32, 4).w_rec.tolist() == [1.0] * 4
    tied = UnifiedRAttention(32, 4, share="tied", use_self_restart=True)
    assert tied.w_std.tolist() == [1.0] * 4
    assert tied.w_rec.tolist() == pytest.approx([0.1] * 4)
    assert tied.rwr_alpha.tolist() == pytest.approx([0.05] * 4)
    gate = ReciprocalMLP(8, R_ff=4, use_gates=True).token_gate(torch.randn(2, 3, 8))
    assert gate.shape == (2, 3, 1)
    assert (gate > 0.95).all()
    assert (gate < 1.0).all()


@pytest.mark.parametrize("copied", [False, True])
def test_gates_and_mixer_are_not_decayed(copied):
    attention = UnifiedRAttention(32, 4, use_self_restart=True)
    mlp = ReciprocalMLP(8, R_ff=4, use_mixer=True, use_gates=True)
    for module in copy.deepcopy([attention, mlp]) if copied else [attention, mlp]:
        without = spared(module)
        decayed = {n for n, p in module.named_parameters() if p not in without}
        assert decayed == {"c_attn.weight", "c_fc.weight", "c_proj.weight"} & dict(module.named_parameters()).keys()


def test_frozen_gates_get_no_gradient():
    layer = UnifiedRAttention(32, 4, freeze_gates=True)
    layer(torch.randn(1, 5, 32)).sum().backward()
    assert layer.w_std.grad is None
    assert layer.w_rec.grad is None
    assert layer.c_attn.weight.grad is not None


def test_gate_statistics_say_what_the_gates_are():
    layer = UnifiedRAttention(32, 4, use_self_restart=True)
    with torch.no_grad():
        layer.w_std.copy_(torch.tensor([1.0, 2.0, 3.0, 6.0]))
        layer.rwr_alpha.copy_(torch.tensor([-1.0, 0.0, 0.5, 9.0]))
    stats = layer.get_gate_stats()
    assert set(stats) == {f"{g}_{k}" for g in ("w_std", "w_rec", "rwr_alpha") for k in ("mean", "std", "min", "max")}
    assert (stats["w_std_mean"], stats["w_std_min"], stats["w_std_max"]) == (3.0, 1.0, 6.0)
    assert stats["w_std_std"] == pytest.approx(math.sqrt(3.5))
    assert (stats["rwr_alpha_min"], stats["rwr_alpha_max"]) == (0.0, 0.5)
    mlp = ReciprocalMLP(8, R_ff=4, use_mixer=True, use_gates=True)
    with torch.no_grad():
        mlp.mixer[0, 1] = 2.0
    stats = mlp.get_gate_stats()
    assert stats["mixer_distance_mean"] == 2.0
    assert stats["gate_bias_mean"] == 4.0
    assert stats["w_rec_std"] == 0.0


def plain_scores(q, k, n_head):
    """[B, H, T, T] of standard attention, before the softmax, unscaled."""
    B, T, C = q.shape
    q, k = (z.view(B, T, n_head, C // n_head).transpose(1, 2) for z in (q, k))
    return q @ k.transpose(2, 3)


def folded_scores(layer, x):
    """[B, H, T, T] of a folded layer, from its effective projection."""
    weight, bias = layer.folded()
    q, k, _ = torch.nn.functional.linear(x, weight, bias).chunk(3, dim=-1)
    return plain_scores(q, k, layer.n_head)


def test_from_pretrained_transposes_the_low_scores_and_changes_nothing_else():
    torch.manual_seed(0)
    layer, C, d, R = UnifiedRAttention(32, 4, R=3).double(), 32, 8, 3
    W = [torch.randn(C, C, dtype=torch.double) for _ in range(3)]
    b = [torch.randn(C, dtype=torch.double) for _ in range(3)]
    x = torch.randn(2, 6, C, dtype=torch.double)
    assert layer.from_pretrained_qkv(*W, *b) is layer
    q, k = (x @ W[i].T + b[i] for i in range(2))
    low = torch.arange(C) % d >= d - R
    expected = plain_scores(q * ~low, k, 4) + plain_scores(q * low, k, 4).transpose(2, 3)
    torch.testing.assert_close(folded_scores(layer, x), expected)
    assert torch.equal(layer.c_attn.weight[2 * C :], W[2])
    assert torch.equal(layer.c_attn.bias[2 * C :], b[2])


def test_from_pretrained_without_biases_sets_them_to_zero():
    layer = UnifiedRAttention(32, 4)
    layer.from_pretrained_qkv(*torch.randn(3, 32, 32))
    assert not layer.c_attn.bias.any()


def test_from_pretrained_tied_takes_the_standard_rows():
    layer, W = UnifiedRAttention(32, 4, R=3, share="tied"), torch.randn(3, 32, 32)
    layer.from_pretrained_qkv(*W)
    kept = W.view(3, 4, 8, 32)[:2, :, :5].reshape(-1, 32)
    assert torch.equal(layer.c_attn.weight, torch.cat([kept, W[2]]))


def test_from_pretrained_refuses_wrong_shapes_and_unwanted_biases():
    with pytest.raises(ValueError, match=r"W_k is \(32, 16\)"):
        UnifiedRAttention(32, 4).from_pretrained_qkv(torch.zeros(32, 32), torch.zeros(32, 16), torch.zeros(32, 32))
    with pytest.raises(ValueError, match="bias=False"):
        UnifiedRAttention(32, 4, bias=False).from_pretrained_qkv(*torch.zeros(3, 32, 32), b_v=torch.zeros(32))


def test_bake_names_the_terms_that_standard_layers_lack():
    with pytest.raises(ValueError, match="self-restart"):
        UnifiedRAttention(32, 4, use_self_restart=True).bake()
    with pytest.raises(ValueError, match="per-token gate"):
        ReciprocalMLP(8, R_ff=4, use_gates=True).bake()


@pytest.mark.parametrize("module", [UnifiedRAttention(32, 4, dropout=0.5), ReciprocalMLP(32, R_ff=4, dropout=0.5)])
def test_dropout_acts_in_training_only(module):
    x = torch.randn(1, 4, 32)
    module.eval()
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
