"""Patching our model and transformers': which layers and heads change, on whose weights, and what is refused."""

import copy

import pytest
import torch

from gpt2.model import GPT2, MLP, CausalSelfAttention
from gpt2.ra_patch import (
    RESEED,
    bake,
    gate_stats,
    move_by_one_ulp,
    patch_attention,
    patch_mlp,
    patch_model,
    run_seed,
    set_ra_mlp_coupling_scale,
)
from gpt2.size import config_of
from lib.config.errors import ConfigError
from ra import ReciprocalMLP, UnifiedRAttention

IDX = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))


def build(values, seed=0):
    model = GPT2(config_of(values, 97), generator=torch.Generator().manual_seed(seed))
    patch_model(model, values, torch.Generator().manual_seed(seed + 1))
    return model


# ours -----------------------------------------------------------------------------------------------------------------


def test_a_patched_layer_trains_the_very_parameters_of_the_vanilla_one(small):
    model = GPT2(config_of(small().values, 97))
    before = dict(model.named_parameters())
    patch_attention(model, 1, R=3)
    patch_mlp(model, 1, R_ff=16, use_mixer=True)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert set(after) - set(before) == {
        "h.1.attn.w_std",
        "h.1.attn.w_rec",
        "h.1.mlp.w_std",
        "h.1.mlp.w_rec",
        "h.1.mlp.mixer",
    }


def test_only_the_chosen_layers_change(small):
    model = build(small("V3", RA_LAYERS="0,2", RMLP_LAYERS="odd").values)
    assert [type(b.attn) for b in model.h] == [UnifiedRAttention, CausalSelfAttention, UnifiedRAttention]
    assert [type(b.mlp) for b in model.h] == [MLP, ReciprocalMLP, MLP]


def test_only_the_chosen_heads_feel_their_gates(small):
    """Zeroing the values of the reciprocal heads leaves nothing that depends on the gates."""
    model = build(small("V1", RA_HEADS="1-2").values)
    attention = model.h[0].attn
    assert attention.heads == (1, 2)
    assert attention.w_std.shape == (2,)
    with torch.no_grad():
        values = attention.c_attn.weight[256:].view(4, 32, 128)
        values[1:3] = 0
        x = torch.randn(1, 9, 128)
        before = attention(x)
        attention.w_std.mul_(3)
        attention.w_rec.mul_(-2)
        assert torch.equal(attention(x), before)
        values[1:3] = 1.5 * values[[0, 3]]
        changed = attention(x)
        attention.w_std.div_(3)
        assert not torch.equal(attention(x), changed)


def test_the_rank_runs_from_the_bottom_to_the_top(small):
    model = build(small("V7", GPT2_N_LAYER=4, RA_R=2, RA_R_TOP=8).values)
    assert [b.attn.R for b in model.h] == [2, 4, 6, 8]


def test_settings_reach_the_modules(small):
    chosen = {"RA_R": 3, "RA_PER_HEAD_GATES": False, "RA_W_REC_INIT": "-0.5", "RA_RWR_ALPHA": "0.25"}
    layer = build(small("V2", **chosen, GPT2_DROPOUT="0.3").values).h[0].attn
    assert (layer.R, layer.share, layer.dropout) == (3, "untied", 0.3)
    assert (layer.w_std.tolist(), layer.w_rec.tolist(), layer.rwr_alpha.tolist()) == ([1.0], [-0.5], [0.25] * 4)
    mlp = build(small("V6", RMLP_R_FF=24, RMLP_TIE_UP_LOW=True, GPT2_DROPOUT="0.3").values).h[2].mlp
    assert (mlp.R_ff, mlp.tie_up_low, mlp.dropout, mlp.mixer.shape) == (24, True, 0.3, (24, 24))
    assert mlp.gate_alpha is not None


def test_sizes_that_cannot_be_name_the_layer_and_the_setting(small):
    for step, symbols, said in (
        ("V1", {"RA_R": 32}, "layer 0: R 32 is outside 1..31"),
        ("V7", {"RA_R": 2, "RA_R_TOP": 17}, "layer 2: R 17 is outside 1..16"),
        ("V3", {"RMLP_R_FF": 512}, "layer 0: R_ff 512 is outside 1..511"),
        ("V1", {"RA_LAYERS": "0-3"}, "RA_LAYERS '0-3': 0-3 is outside 0..2"),
        ("V1", {"RA_HEADS": "second"}, "RA_HEADS 'second': expected all, odd, even, half"),
    ):
        with pytest.raises(ValueError) as refused:
            build(small(step, **symbols).values)
        assert said in str(refused.value)


def test_a_mechanism_without_a_module_is_named(small):
    with pytest.raises(ConfigError, match=r"ATTENTION_LENS: there is no gpt2/attention/lens\.py"):
        patch_model(GPT2(config_of(small().values, 97)), {**small().values, "ATTENTION": "lens"}, torch.Generator())


@pytest.mark.parametrize("training", [True, False])
def test_patching_and_baking_keep_the_mode(small, steps, training):
    for step in steps:
        values = small(step).values
        model = GPT2(config_of(values, 97)).train(training)
        patch_model(model, values, torch.Generator().manual_seed(0))
        assert all(m.training == training for m in model.modules()), step
    patched = build(small("V8").values).train(training)
    assert all(m.training == training for m in bake(patched).modules())


def test_equal_generators_build_equal_arms(small, steps):
    for step in steps:
        one, two = (build(small(step).values).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one), step


@pytest.mark.parametrize("step", ["V1", "V1F", "V2", "V3", "V4", "V5", "V6", "VF32", "A1", "G1"])
def test_arms_begin_with_the_weights_that_they_share_with_v0(small, step):
    vanilla, model = (build(small(name).values).state_dict() for name in ("V0", step))
    assert all(torch.equal(model[name], vanilla[name]) for name in vanilla)


def test_the_coupling_scale_reaches_every_pathway(small):
    model = build(small("V6").values)
    set_ra_mlp_coupling_scale(model, 0.25)
    scales = [m.coupling_scale for m in model.modules() if hasattr(m, "coupling_scale")]
    assert [s.item() for s in scales] == [0.25] * 6
    assert not any("coupling_scale" in name for name in model.state_dict())


def test_gate_statistics_span_all_layers(small):
    model = build(small("V6", RA_SELF_RESTART=True).values)
    with torch.no_grad():
        model.h[0].attn.w_std[0], model.h[2].mlp.w_rec[0] = 3.0, -1.0
    stats = gate_stats(model)
    kinds = {name.rsplit("_", 1)[0] for name in stats}
    assert kinds == {f"unified_ra_{n}" for n in ("w_std", "w_rec", "rwr_alpha")} | {
        f"rmlp_{n}" for n in ("w_std", "w_rec", "mixer_distance", "gate_alpha", "gate_bias")
    }
    assert (stats["unified_ra_w_std_max"], stats["rmlp_w_rec_min"]) == (3.0, -1.0)
    assert stats["unified_ra_w_std_mean"] == pytest.approx(14 / 12)
    assert gate_stats(build(small("V0").values)) == {}


# transformers' --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"R": 3}, {"R": 7, "heads": [2]}, {"R": 4, "per_head_gates": False}], ids=str)
def test_unit_gates_reproduce_transformers_logits(transformers_gpt2, options):
    """Conv1D holds [in, out]: with weights that are not symmetric a missing transpose would show."""
    hf = transformers_gpt2()
    assert not torch.allclose(hf.transformer.h[0].attn.c_proj.weight, hf.transformer.h[0].attn.c_proj.weight.T)
    with torch.no_grad():
        before = hf(IDX).logits
        for layer in range(2):
            patch_attention(hf, layer, **options)
            patch_mlp(hf, layer, R_ff=32, use_mixer=True)
        torch.testing.assert_close(hf(IDX).logits, before, atol=1e-5, rtol=1e-5)


def test_gates_act_in_transformers_as_in_ours(transformers_gpt2, tmp_path):
    hf = transformers_gpt2()
    hf.save_pretrained(tmp_path)
    model = GPT2.from_pretrained(str(tmp_path)).eval()
    with torch.no_grad():
        for patched in (hf, model):
            generator = torch.Generator().manual_seed(3)
            for layer, share in enumerate(("untied", "tied")):
                gates = [patch_attention(patched, layer, R=3, share=share, use_self_restart=True)]
                gates += [patch_mlp(patched, layer, R_ff=32, use_mixer=True, use_gates=True, tie_up_low=layer == 1)]
                for module in gates:
                    for parameter in module.parameters(recurse=False):
                        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
            set_ra_mlp_coupling_scale(patched, 0.6)
        torch.testing.assert_close(hf(IDX).logits, model(IDX), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_one_layer_of_transformers_can_be_patched_alone(transformers_gpt2, layer):
    hf = transformers_gpt2()
    with torch.no_grad():
        before = hf(IDX).logits
        attention = patch_attention(hf, layer, R=3, heads=[1])
        assert isinstance(hf.transformer.h[layer].attn, UnifiedRAttention)
        assert not isinstance(hf.transformer.h[1 - layer].attn, UnifiedRAttention)
        torch.testing.assert_close(hf(IDX).logits, before, atol=1e-5, rtol=1e-5)
        attention.w_rec.fill_(-2.0)
        assert (hf(IDX).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=str)
def test_patched_transformers_generate_what_unpatched_ones_do(transformers_gpt2, options):
    hf = transformers_gpt2()
    expected = hf.generate(IDX, max_new_tokens=8, do_sample=False)
    for layer in range(2):
        patch_attention(hf, layer, R=3)
    assert torch.equal(hf.generate(IDX, max_new_tokens=8, do_sample=False, **options), expected)


def test_a_cache_and_padding_are_refused_in_words(transformers_gpt2):
    hf = transformers_gpt2()
    patch_attention(hf, 0, R=3)
    with pytest.raises(ValueError, match="use_cache=False"):
        hf(IDX, use_cache=True)
    with pytest.raises(ValueError, match="no padding"):
        hf(IDX, attention_mask=torch.cat([torch.zeros(2, 3), torch.ones(2, 9)], dim=1).long())


@pytest.mark.parametrize(
    ("sizes", "patch", "said"),
    [
        ({"activation_function": "relu"}, patch_mlp, "layer 0: activation_function is relu, GPT-2's is gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, patch_attention, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, patch_attention, "scale_attn_weights is False"),
        ({"attn_pdrop": 0.2}, patch_attention, "attn_pdrop 0.2 is not resid_pdrop 0.1; set dropout"),
        ({"n_inner": 100}, patch_mlp, "layer 0: 100 hidden features are no multiple of n_embd 32"),
    ],
)
def test_transformers_models_that_compute_something_else_are_refused(transformers_gpt2, sizes, patch, said):
    with pytest.raises(ValueError, match=said):
        patch(transformers_gpt2(**sizes), 0)


# noise ----------------------------------------------------------------------------------------------------------------


def test_one_ulp_moves_every_weight_to_a_neighbour_and_leaves_zeros(small):
    vanilla, moved = build(small("V0").values), build(small("A0").values)
    ups = downs = 0
    for (name, a), b in zip(vanilla.named_parameters(), moved.parameters(), strict=True):
        up, down = (torch.nextafter(a, torch.full_like(a, limit)) for limit in (torch.inf, -torch.inf))
        assert torch.where(a == 0, b == 0, (b == up) | (b == down)).all(), name
        ups, downs = ups + int((b > a).sum()), downs + int((b < a).sum())
    total = sum(int((p != 0).sum()) for p in vanilla.parameters())
    assert ups + downs == total
    assert 0.49 < ups / total < 0.51


def test_one_ulp_moves_norms_and_trained_biases_too():
    layer = torch.nn.LayerNorm(64)
    with torch.no_grad():
        layer.bias.fill_(0.3)
    before = copy.deepcopy(layer)
    move_by_one_ulp(layer, torch.Generator().manual_seed(0))
    assert (layer.weight != before.weight).all()
    assert (layer.bias != before.bias).all()
    torch.testing.assert_close(layer.weight, before.weight, rtol=2e-7, atol=0)


def test_the_rerun_floor_changes_the_seed_and_nothing_else(small):
    assert run_seed(5, small("A1").values) == 5 + RESEED == 1_000_008
    assert run_seed(5, small("V0").values) == run_seed(5, small("A0").values) == 5
    one, two = build(small("A1").values), build(small("V0").values)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    differ = {k for k, v in small("V0").values.items() if small("A1").values[k] != v}
    assert differ == {"AA_PERTURB", "RA_MLA_ABLATION_STEP"}
