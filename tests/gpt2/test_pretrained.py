"""Exchange with transformers: equal logits both ways, and what is refused."""

import json

import pytest
import torch

from gpt2.model import GPT2, GPT2Config
from gpt2.ra_patch import bake, patch_model, set_ra_mlp_coupling_scale
from gpt2.size import config_of
from lib.config.errors import DataError

SIZES = [
    {},
    {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 16},
    {"n_layer": 3, "n_head": 3, "n_embd": 48, "vocab_size": 201, "n_positions": 40},
    {"n_layer": 2, "n_head": 16, "n_embd": 64},
]
WEIGHTS = "model.safetensors"


def tokens(config, rows=2, length=None):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (rows, length or config.n_positions), generator=generator)


def ours(hf, tmp_path, **options):
    hf.save_pretrained(tmp_path / "weights")
    return GPT2.from_pretrained(str(tmp_path / "weights"), **options).eval()


@torch.no_grad()
def difference(model, hf, idx):
    return (model(idx) - hf(idx).logits).abs().max().item()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_are_transformers_own(transformers_gpt2, tmp_path, sizes):
    hf = transformers_gpt2(**sizes)
    idx = tokens(hf.config)
    assert hf(idx).logits.std() > 0.1
    assert difference(ours(hf, tmp_path), hf, idx) < 1e-4


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_loss_is_transformers_own(transformers_gpt2, tmp_path, sizes):
    hf = transformers_gpt2(**sizes)
    idx = tokens(hf.config)
    theirs = hf(idx, labels=idx).loss  # shifts the labels itself
    torch.testing.assert_close(ours(hf, tmp_path)(idx[:, :-1], idx[:, 1:]), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_logits_at_124m_are_transformers_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model = ours(hf, tmp_path)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert difference(model, hf, tokens(hf.config, rows=1)) < 1e-4


def test_a_round_trip_changes_no_bit(transformers_gpt2, tmp_path):
    hf = transformers_gpt2()
    back = ours(hf, tmp_path).to_hf()
    before, after = hf.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not back.training


def test_loaded_weights_are_trainable_and_their_own(transformers_gpt2, tmp_path):
    model = ours(transformers_gpt2(), tmp_path)
    model(tokens(transformers_gpt2().config)[:, :4]).sum().backward()
    assert all(p.requires_grad and p.is_leaf and p.grad is not None for p in model.parameters())
    assert all(p.is_contiguous() for p in model.parameters())


def test_a_shorter_context_and_a_padded_vocabulary_keep_the_logits_that_remain(transformers_gpt2, tmp_path):
    hf = transformers_gpt2()
    config = GPT2Config(128, n_layer=2, n_head=4, n_embd=32, block_size=16, dropout=0.0, bias=True)
    model = ours(hf, tmp_path, config=config)
    idx = tokens(hf.config, length=16)
    with torch.no_grad():
        logits = model(idx)
        assert (logits[..., :97] - hf(idx).logits).abs().max() < 1e-4
        mean = logits[..., :97].mean(-1)
        torch.testing.assert_close(logits[..., 97:], mean[..., None].expand(-1, -1, 31), atol=1e-4, rtol=1e-4)


def lose(name):
    def damage(folder, save, load):
        weights = load(folder / WEIGHTS)
        del weights[name]
        save(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def put(name, tensor):
    def damage(folder, save, load):
        save(load(folder / WEIGHTS) | {name: tensor}, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def say(**settings):
    def damage(folder, save, load):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return damage


def rewrite(name, content):
    return lambda folder, save, load: (folder / name).write_bytes(content)


def halve(folder, save, load):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickled(folder, save, load):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")


DAMAGES = {
    "no config": (lambda folder, save, load: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder, save, load: (folder / WEIGHTS).unlink(), "no file named"),
    "broken config": (rewrite("config.json", b"{"), "not a valid JSON"),
    "broken weights": (halve, "SafetensorError"),
    "broken pickle": (pickled, "UnpicklingError"),
    "a weight missing": (lose("transformer.h.1.mlp.c_fc.weight"), "lacks transformer.h.1.mlp.c_fc.weight"),
    "a layer too many": (put("transformer.h.2.ln_1.bias", torch.zeros(32)), "also holds transformer.h.2.ln_1.bias"),
    "another shape": (put("transformer.wpe.weight", torch.zeros(9, 32)), "another shape for transformer.wpe.weight"),
    "not a number": (
        put("transformer.ln_f.bias", torch.full((32,), torch.nan)),
        "non-finite numbers in transformer.ln_f",
    ),
    "another activation": (say(activation_function="relu"), "activation_function is relu"),
    "another scale": (say(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    "another epsilon": (say(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    "untied": (say(tie_word_embeddings=False), "tie_word_embeddings is False"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_unfit_weights_are_a_data_error_of_one_line(transformers_gpt2, tmp_path, name, capfd):
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "weights"
    transformers_gpt2().save_pretrained(folder)
    capfd.readouterr()
    damage, said = DAMAGES[name]
    damage(folder, safetensors.save_file, safetensors.load_file)
    with pytest.raises(DataError, match=said) as refused:
        GPT2.from_pretrained(str(folder))
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert capfd.readouterr().err == ""


def test_an_mlp_of_another_width_is_refused(transformers_gpt2, tmp_path):
    with pytest.raises(DataError, match="n_inner is 96, GPT-2's is 128"):
        ours(transformers_gpt2(n_inner=96), tmp_path)


def test_the_masks_and_the_head_of_old_files_are_no_weights(transformers_gpt2, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    hf, folder = transformers_gpt2(), tmp_path / "weights"
    hf.save_pretrained(folder)
    for name, tensor in {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24),
        "lm_head.weight": hf.lm_head.weight,
    }.items():
        put(name, tensor.detach().clone())(folder, safetensors.save_file, safetensors.load_file)
    assert difference(GPT2.from_pretrained(str(folder)).eval(), hf, tokens(hf.config)) < 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layer": 3}, "n_layer 2, the settings say 3"),
        ({"n_head": 2}, "n_head 4, the settings say 2"),
        ({"n_embd": 64}, "n_embd 32, the settings say 64"),
        ({"bias": False}, "bias True, the settings say False"),
        ({"block_size": 25}, "block_size 24, the settings need 25"),
        ({"vocab_size": 96}, "vocab_size 97, the settings need 96"),
    ],
)
def test_weights_of_another_size_than_the_settings_are_named(transformers_gpt2, tmp_path, change, said):
    own = {"vocab_size": 97, "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "dropout": 0.0, "bias": True}
    with pytest.raises(DataError, match=said):
        ours(transformers_gpt2(), tmp_path, config=GPT2Config(**(own | change)))


def test_a_name_that_cannot_be_fetched_is_named(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no-such/model-here is neither a save_pretrained folder nor"):
        GPT2.from_pretrained("no-such/model-here")


def trained(small, step, **symbols):
    """The arm with gates, mixers and weights moved away from their start."""
    values = small(step, **symbols).values
    model = GPT2(config_of(values, 97), generator=torch.Generator().manual_seed(2))
    patch_model(model, values, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


@pytest.mark.parametrize("step", ["V0", "V1", "V3", "V4", "V7", "V8", "G2"])
def test_a_baked_arm_runs_and_generates_in_transformers(small, step, tmp_path):
    pytest.importorskip("transformers")
    model = trained(small, step)
    set_ra_mlp_coupling_scale(model, 0.7)
    hf, idx = bake(model).to_hf(), torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (model(idx) - hf(idx).logits).abs().max() < 1e-4
        greedy = idx
        for _ in range(8):
            greedy = torch.cat([greedy, model(greedy)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(hf.generate(idx, max_new_tokens=8, do_sample=False), greedy)
    hf.save_pretrained(tmp_path / "baked")
    if step != "G2":  # its MLP is no 4 C wide
        assert difference(GPT2.from_pretrained(str(tmp_path / "baked")).eval(), hf, idx) < 1e-4


def test_a_model_without_biases_has_zero_biases_in_transformers(small):
    pytest.importorskip("transformers")
    model = trained(small, "V7", GPT2_BIAS=False)
    hf, idx = bake(model).to_hf(), torch.arange(20)[None]
    assert difference(model, hf, idx) < 1e-4


@pytest.mark.parametrize("step", ["V1", "V3", "G1"])
def test_a_model_with_a_mechanism_in_it_is_not_exported(small, step):
    with pytest.raises(ValueError, match=r"layer 0 holds a (UnifiedRAttention|GatedAttention); bake"):
        trained(small, step).to_hf()


def test_mlps_of_different_widths_are_not_exported(small):
    model = trained(small, "G2", GPT2_N_LAYER=3)
    widths = {b.mlp.c_fc.out_features for b in model.h}
    if len(widths) == 1:
        model.h[0].mlp = type(model.h[0].mlp)(model.config, 256)
    with pytest.raises(ValueError, match="one MLP width"):
        model.to_hf()
