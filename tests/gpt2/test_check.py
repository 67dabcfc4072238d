"""The dry run: sound arms pass, and a step that is broken on purpose is named with what is wrong and where."""

import dataclasses
import sys
import types

import pytest
import torch
from torch import nn

import gpt2.attention
from gpt2 import check, size
from lib.config.errors import ConfigError

SIZES = {"GPT2_BLOCK_SIZE": 144, "GPT2_TOKENS_PER_STEP": 1440, "GPT2_TOKENIZER": "bytes"}


class Broken(nn.Module):
    """An attention slot whose forward pass a test supplies."""

    forward_of = None

    def __init__(self, width):
        super().__init__()
        self.scale, self.unused = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        return type(self).forward_of(self, x)


@pytest.fixture
def broken(small, monkeypatch):
    """broken(forward): the spec of a step V9X whose attention is gpt2.attention.broken with that forward pass."""

    def spec(forward, layers=(0, 1, 2)):
        @dataclasses.dataclass(frozen=True)
        class Config:
            pass

        def patch(model, cfg, generator, values):
            for layer in layers:
                model.h[layer].attn = Broken(model.config.n_embd).to(model.wte.weight.device)

        module = types.ModuleType("gpt2.attention.broken")
        module.Config, module.patch = Config, patch
        monkeypatch.setattr(Broken, "forward_of", forward)
        monkeypatch.setitem(sys.modules, "gpt2.attention.broken", module)
        monkeypatch.setattr(gpt2.attention, "broken", module, raising=False)
        sound = small("V0", **SIZES)
        return dataclasses.replace(sound, step="V9X", values={**sound.values, "ATTENTION": "broken"})

    return spec


def lines_of(specs):
    lines = []
    return check.check(specs, lines.append), lines


def sound(module, x):
    return x * module.scale * module.unused


def test_every_step_is_sound_and_reported_once(small, steps):
    specs = [small(step, **SIZES) for step in [*steps, "V0"]]
    broken, lines = lines_of(specs)
    assert broken == []
    assert [line.split()[:2] for line in lines] == [[step, "ok"] for step in steps]
    assert all(spec.description in line for spec, line in zip(specs, lines, strict=False))


@pytest.mark.parametrize("optimizer", ["adamw", "adamwspam", "muon"])
def test_every_optimizer_is_tried(small, optimizer):
    broken, lines = lines_of([small("V6", **SIZES, GPT2_OPTIMIZER=optimizer)])
    assert broken == []
    first, second = lines[0].split("loss ")[1].split(" (")[0].split(" -> ")
    assert float(second) < float(first)


def test_layers_that_only_the_whole_model_has_can_be_chosen(small):
    assert lines_of([small("V3", **SIZES, RA_LAYERS="2", RMLP_LAYERS="1-2")])[0] == []


@pytest.mark.slow
def test_the_main_ablation_is_sound_at_its_real_size(specify):
    broken, lines = lines_of([specify(step) for step in ("V0", "V6")])
    assert broken == []
    assert "124,475,904 parameters, 854.7 MFLOP/token" in lines[0]
    assert "124,534,596 parameters, 854.9 MFLOP/token" in lines[1]


def test_a_mechanism_without_a_closed_form_is_counted(broken):
    names, lines = lines_of([broken(sound)])
    assert names == []
    assert "MFLOP/token" in lines[0]


def raises(module, x):
    raise RuntimeError("no such luck\nand more")


def without_gradient(module, x):
    return x * module.scale


def not_a_number(module, x):
    return sound(module, x) * torch.tensor(float("nan"))


def bad_gradient(module, x):
    y = sound(module, x)
    if y.requires_grad:
        y.register_hook(lambda grad: grad * torch.inf)
    return y


def bad_far_away(module, x):
    return sound(module, x) if x.shape[1] < 130 else x * float("inf")


def wrong_shape(module, x):
    return x @ torch.ones(3, 3)


@pytest.mark.parametrize(
    ("forward", "layers", "said"),
    [
        (raises, (1,), ["RuntimeError", "test_check.py:", "no such luck"]),
        (wrong_shape, (1,), ["RuntimeError", "test_check.py:", "3"]),
        (without_gradient, (2,), ["h.2.attn.unused gets no gradient"]),
        (not_a_number, (1, 2), ["the loss is not finite; h.1.attn is the first module whose output is not"]),
        (bad_gradient, (2,), ["the gradient of", "is not finite"]),
        (bad_far_away, (1,), ["the output of h.1 is not finite at the full context of 144 tokens"]),
    ],
)
def test_what_is_broken_is_named_and_the_other_arms_go_on(small, broken, forward, layers, said):
    names, lines = lines_of([small("V0", **SIZES), broken(forward, layers), small("V1", **SIZES)])
    assert names == ["V9X"]
    assert [line.split()[1] for line in lines] == ["ok", "BROKEN", "ok"]
    assert "\n" not in lines[1]
    for words in said:
        assert words in lines[1]


def test_a_module_that_raises_while_patching_is_named(small, broken, monkeypatch):
    spec = broken(sound, layers=(0, 3))
    names, lines = lines_of([spec])
    assert names == ["V9X"]
    assert "IndexError at tests/gpt2/test_check.py:" in lines[0]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (size.Part(1), "parameters, the model has"),
        (size.Part(0, 6), "FLOPs forward per sequence, the model does"),
    ],
)
def test_a_wrong_closed_form_is_named_with_both_numbers(small, monkeypatch, part, said):
    monkeypatch.setitem(size.ATTENTION, "gated", lambda *given: size._gated(*given) + part)
    names, lines = lines_of([small("G1", **SIZES)])
    assert names == ["G1"]
    assert said in lines[0]


def test_sizes_that_cannot_be_are_named(small):
    names, lines = lines_of([small("V1", **SIZES, RA_R=32)])
    assert names == ["V1"]
    assert "layer 0: R 32 is outside 1..31 for head width 32" in lines[0]


def test_a_model_beyond_this_machine_is_the_users_mistake(specify):
    spec = specify("V1", GPT2_N_LAYER=512, GPT2_N_EMBD=65536, GPT2_N_HEAD=64)
    with pytest.raises(ConfigError, match="needs 42"):
        lines_of([spec])


def test_the_vocabulary_follows_from_the_tokenizer(small):
    sizes = SIZES | {"GPT2_TOKENIZER": "trained", "GPT2_BPE_VOCAB": 300}
    broken, lines = lines_of([small("V0", **sizes)])
    assert broken == []
    parameters = size.cost(small("V0", **sizes).values, 300).parameters
    assert f"{parameters:,} parameters" in lines[0]
