"""Each step is what docs and steps say it is: what it changes against V0, and in the model it builds."""

import pytest
import torch

from gpt2.attention.gated import GatedAttention
from gpt2.model import GPT2, MLP, CausalSelfAttention
from gpt2.ra_patch import patch_model
from gpt2.size import config_of
from lib.config.fields import fill
from lib.optimizers.build import OptimizerConfig, spared
from lib.optimizers.build import build as optimizers_of
from ra import ReciprocalMLP, UnifiedRAttention

RA = {"ATTENTION": "unified_ra"}
TIED = RA | {"RA_SHARE": "tied", "RA_W_REC_INIT": 0.1}
RMLP = RA | {"MLP": "reciprocal"}
MIXER, GATE = {"RMLP_MIXER": True}, {"RMLP_TOKEN_GATES": True}
# The settings in which a step differs from V0, where it is not a mechanism's default.
DIFFERS = {
    "V0": {},
    "V1": RA,
    "V1F": RA | {"RA_FREEZE_GATES": True},
    "V2": RA | {"RA_SELF_RESTART": True, "RA_RWR_ALPHA": 0.05},
    "V3": RMLP,
    "V4": RMLP | MIXER,
    "V5": RMLP | GATE,
    "V6": RMLP | MIXER | GATE,
    "V7": TIED,
    "V8": TIED | {"MLP": "reciprocal"},
    "VR2": TIED | {"RA_R": 2},
    "VR8": TIED | {"RA_R": 8},
    "VR16": TIED | {"RA_R": 16},
    "VF32": RMLP | {"RMLP_R_FF": 32},
    "VF128": RMLP | {"RMLP_R_FF": 128},
    "VF256": RMLP | {"RMLP_R_FF": 256},
    "A0": {"AA_PERTURB": "ulp"},
    "A1": {"AA_PERTURB": "reseed"},
    "G1": {"ATTENTION": "gated"},
    "G2": {"MLP": "matched", "MATCHED_STEP": "V7", "MATCHED_COST": "parameters"},
    "G3": {"MLP": "matched", "MATCHED_STEP": "V6", "MATCHED_COST": "flops"},
}
# A mechanism's own settings, which V0 does not have, at their defaults.
DEFAULTS = {
    "RA_R": 4,
    "RA_R_TOP": 0,
    "RA_SHARE": "untied",
    "RA_PER_HEAD_GATES": True,
    "RA_FREEZE_GATES": False,
    "RA_W_REC_INIT": 1.0,
    "RA_SELF_RESTART": False,
    "RA_LAYERS": "all",
    "RA_HEADS": "all",
    "RMLP_R_FF": 64,
    "RMLP_MIXER": False,
    "RMLP_TOKEN_GATES": False,
    "RMLP_TIE_UP_LOW": False,
    "RMLP_LAYERS": "all",
}
ATTENTION = {"sdpa": CausalSelfAttention, "unified_ra": UnifiedRAttention, "gated": GatedAttention}
MLPS = {"gelu": MLP, "reciprocal": ReciprocalMLP, "matched": MLP}


def build(values):
    model = GPT2(config_of(values, 97), generator=torch.Generator().manual_seed(0))
    patch_model(model, values, torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("step", DIFFERS)
def test_a_step_sets_what_the_design_says_and_nothing_else(specify, step):
    vanilla, values = specify("V0").values, specify(step).values
    skipped = ("RA_MLA_ABLATION_STEP", "MATCHED_VALUES")
    differs = {k: v for k, v in values.items() if vanilla.get(k) != v and DEFAULTS.get(k) != v and k not in skipped}
    assert differs == DIFFERS[step]
    assert all(k in values or k.startswith(("RA_", "RMLP_", "MATCHED_")) for k in vanilla)


@pytest.mark.parametrize("step", DIFFERS)
def test_every_layer_of_a_step_holds_its_modules(small, step):
    values = small(step).values
    for block in build(values).h:
        assert type(block.attn) is ATTENTION[values["ATTENTION"]]
        assert type(block.mlp) is MLPS[values["MLP"]]


def test_every_step_of_the_design_is_there(steps):
    assert set(DIFFERS) <= set(steps)


def test_g1_gates_each_head_by_its_own_projection_of_x(small):
    """y_h <- sigmoid(W_g x + b)_h y_h, one extra row of C weights and a bias per head."""
    layer = build(small("G1").values).h[0].attn
    assert layer.gate.weight.shape == (4, 128)
    assert layer.gate.weight.std().item() == pytest.approx(0.02, rel=0.15)
    vanilla = build(small("V0").values).h[0].attn
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.gate.weight.mul_(50)
        heads = layer.mix(x)
        gates = torch.sigmoid(torch.einsum("hc,btc->bht", layer.gate.weight, x) + layer.gate.bias[:, None])
        expected = layer.c_proj((heads * gates[..., None]).transpose(1, 2).reshape(2, 9, 128))
        torch.testing.assert_close(layer(x), expected)
        layer.gate.weight.zero_()
        layer.gate.bias.fill_(1e4)
        torch.testing.assert_close(layer(x), vanilla(x))


@pytest.mark.parametrize("step", ["G2", "G3"])
def test_a_matched_mlp_keeps_the_features_that_it_shares_with_v0(small, step):
    matched, vanilla = build(small(step).values), build(small("V0").values)
    for wide, plain in zip(matched.h, vanilla.h, strict=True):
        kept = min(wide.mlp.c_fc.out_features, plain.mlp.c_fc.out_features)
        assert wide.mlp.c_fc.out_features % 8 == 0
        assert torch.equal(wide.mlp.c_fc.weight[:kept], plain.mlp.c_fc.weight[:kept])
        assert torch.equal(wide.mlp.c_proj.weight[:, :kept], plain.mlp.c_proj.weight[:, :kept])
        assert torch.equal(wide.attn.c_attn.weight, plain.attn.c_attn.weight)


def test_new_features_of_a_matched_mlp_are_drawn_as_the_old_ones_were(small):
    model = build(small("G3", MATCHED_STEP="G1", GPT2_N_EMBD=256, GPT2_N_HEAD=64).values)
    for block in model.h:
        up, down = block.mlp.c_fc.weight[1024:], block.mlp.c_proj.weight[:, 1024:]
        assert up.shape[0] > 0
        assert up.std().item() == pytest.approx(0.02, rel=0.1)
        assert down.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.1)


def test_weight_decay_falls_on_matrices_alone_in_every_step(small):
    for step in DIFFERS:
        model = build(small(step).values)
        names = dict(model.named_parameters())
        decayed = {name for name, parameter in names.items() if parameter not in spared(model)}
        assert decayed == {n for n in names if n.endswith("weight") and ".ln_" not in n and n != "ln_f.weight"}, step
        assert not any(part in n for n in decayed for part in ("bias", "w_std", "w_rec", "alpha", "mixer")), step


def test_the_frozen_arm_trains_as_v0_to_the_bit(small):
    """V1F, the harness's self-test: ten steps of the real optimizer with clipping leave the very weights of V0."""
    ends = []
    for step in ("V0", "V1F"):
        values = small(step, GPT2_DROPOUT="0.1").values
        model = build(values)
        optimizers = optimizers_of(model, fill(OptimizerConfig, values))
        for number in range(10):
            torch.manual_seed(number)
            idx = torch.randint(97, (4, 33), generator=torch.Generator().manual_seed(number))
            model(idx[:, :-1], idx[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizers.step(skip=torch.zeros(1))
            optimizers.zero_grad()
        ends.append(dict(model.named_parameters()))
    vanilla, frozen = ends
    assert all(torch.equal(frozen[name], parameter) for name, parameter in vanilla.items())
    assert {n for n in frozen if n not in vanilla} == {f"h.{i}.attn.w_{g}" for i in range(3) for g in ("std", "rec")}
