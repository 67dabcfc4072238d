"""Whole models: what each arm equals before its mechanism acts (mathematics, sections 1, 3 and 4)."""

import copy

import pytest
import torch

from gpt2.model import GPT2, GPT2Config
from gpt2.ra_patch import bake, patch_attention, patch_mlp, set_ra_mlp_coupling_scale
from ra import ReciprocalMLP, UnifiedRAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = {"R_ff": 24, "use_mixer": True, "use_gates": True}
# (attention's options, MLP's options): the arms as gpt2/steps has them, at a width of 32.
ARMS = {
    "V1": ({}, None),
    "V1F": ({"freeze_gates": True}, None),
    "V1 on two heads, R = 7": ({"R": 7, "heads": [1, 3]}, None),
    "V1 with one gate pair per layer": ({"R": 1, "per_head_gates": False}, None),
    "V2": ({"use_self_restart": True}, None),
    "V3": ({}, {"R_ff": 24}),
    "V4": ({}, {"R_ff": 24, "use_mixer": True}),
    "V5": ({}, {"R_ff": 24, "use_gates": True}),
    "V6": ({}, MIXED),
    "V7": ({"share": "tied"}, None),
    "V8": ({"share": "tied"}, {"R_ff": 24}),
}
UNTIED = [name for name in ARMS if name not in ("V7", "V8")]
UNIT_GATES = [name for name in UNTIED if name not in ("V2", "V5", "V6")]


def vanilla(bias=True, dropout=0.0):
    config = GPT2Config(96, n_layer=2, n_head=4, n_embd=32, block_size=16, dropout=dropout, bias=bias)
    model = GPT2(config, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():  # far from the start, where attention is uniform and biases are zero
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model.to(DEVICE)


def arm(name, **of):
    """The arm patched into vanilla(**of), with gates that a training might have reached."""
    model = vanilla(**of)
    attention, mlp = ARMS[name]
    for layer in range(2):
        patch_attention(model, layer, **attention)
        if mlp is not None:
            patch_mlp(model, layer, **mlp)
    return model


def train_gates(model):
    """Move every gate away from its start, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, UnifiedRAttention | ReciprocalMLP):
                for name, p in module.named_parameters(recurse=False):
                    shift = torch.randn(p.shape, generator=generator).to(p)
                    p.add_(0.1 * (shift.abs() if name == "rwr_alpha" else shift))
    return model


def batch():
    tokens = torch.randint(96, (3, 17), generator=torch.Generator().manual_seed(6)).to(DEVICE)
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model):
    torch.manual_seed(7)
    loss = model(*batch())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_to_the_bit(model, reference):
    loss, gradients = loss_and_gradients(model)
    expected_loss, expected = loss_and_gradients(reference)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(model(batch()[0]), reference(batch()[0])) or reference.config.dropout
    for name, gradient in expected.items():
        assert torch.equal(gradients[name], gradient), name
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("of", [{}, {"bias": False}, {"dropout": 0.1}], ids=str)
@pytest.mark.parametrize("name", UNIT_GATES)
def test_unit_gates_are_vanilla_to_the_bit(name, of):
    """w = 1 and M = I, which is how these arms begin, whatever s is."""
    for s in (1.0, 0.37):
        model = arm(name, **of)
        set_ra_mlp_coupling_scale(model, s)
        assert_same_to_the_bit(model, vanilla(**of))


@pytest.mark.parametrize("of", [{}, {"bias": False}, {"dropout": 0.1}], ids=str)
@pytest.mark.parametrize("name", UNTIED)
def test_no_coupling_is_vanilla_to_the_bit_with_finite_gradients(name, of):
    model = train_gates(arm(name, **of))
    assert not torch.equal(model(batch()[0]), vanilla(**of)(batch()[0]))
    set_ra_mlp_coupling_scale(model, 0.0)
    assert_same_to_the_bit(model, vanilla(**of))


def test_no_coupling_is_vanilla_to_the_bit_under_bf16():
    for name in UNTIED:
        model, reference = train_gates(arm(name)), vanilla()
        set_ra_mlp_coupling_scale(model, 0.0)
        with torch.autocast(DEVICE, torch.bfloat16):
            assert_same_to_the_bit(model, reference)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["V7", "V8"])
def test_tied_arms_without_coupling_have_no_reciprocal_term(name, dtype, tolerance):
    model = train_gates(arm(name)).to(dtype)
    without = copy.deepcopy(model)
    for block in without.h:
        with torch.no_grad():
            block.attn.w_std.fill_(1.0)
            block.attn.w_rec.zero_()
            if isinstance(block.mlp, ReciprocalMLP):
                block.mlp.w_std.fill_(1.0)
                block.mlp.w_rec.fill_(1.0)
    set_ra_mlp_coupling_scale(model, 0.0)
    difference = (model(batch()[0]) - without(batch()[0])).abs().max()
    assert difference <= tolerance
    _, gradients = loss_and_gradients(model)
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("name", [n for n in ARMS if n not in ("V2", "V5", "V6")])
def test_a_baked_model_has_the_unbaked_logits(name):
    for s in (1.0, 0.4):
        model = train_gates(arm(name)).double()
        set_ra_mlp_coupling_scale(model, s)
        before = copy.deepcopy(model.state_dict())
        baked = bake(model)
        assert {k: v.shape for k, v in baked.state_dict().items()} == {
            k: v.shape for k, v in vanilla().state_dict().items()
        }
        torch.testing.assert_close(baked(batch()[0]), model(batch()[0]), rtol=1e-11, atol=1e-11)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "term"), [("V2", "self-restart"), ("V5", "per-token gate"), ("V6", "per-token gate")])
def test_arms_that_cannot_be_baked_name_the_term(name, term):
    with pytest.raises(ValueError, match=f"layer 0: .*{term}"):
        bake(arm(name))


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_causal(name):
    model, (x, _) = train_gates(arm(name)).double(), batch()
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 96
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.equal(a[:, 9:], b[:, 9:])


def test_every_new_parameter_learns():
    for name in ARMS:
        model = arm(name)
        set_ra_mlp_coupling_scale(model, 0.5)
        _, gradients = loss_and_gradients(model)
        for key, p in model.named_parameters():
            if p.requires_grad:
                assert gradients[key].abs().sum() > 0, (name, key)
