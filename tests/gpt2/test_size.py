"""The closed forms against the models themselves: parameters, FLOPs, memory."""

import subprocess
import sys
import time

import pytest
import torch

from gpt2 import count, size
from gpt2.model import GPT2
from gpt2.ra_patch import patch_model
from lib.config.errors import ConfigError

VOCAB = 97
# Symbols that hold for any arm; each line is one size.
SIZES = [
    {},
    {"GPT2_BIAS": False, "GPT2_VOCAB_MULTIPLE": 1},
    {"GPT2_N_LAYER": 1, "GPT2_N_HEAD": 2, "GPT2_BLOCK_SIZE": 8, "GPT2_DROPOUT": "0.1"},
    {"GPT2_N_LAYER": 4, "GPT2_N_HEAD": 3, "GPT2_N_EMBD": 192, "GPT2_BLOCK_SIZE": 40, "GPT2_BIAS": False},
]
# Settings that no step makes, laid over one that makes them available.
OPTIONS = [
    ("V7", {"RA_LAYERS": "odd"}),
    ("V7", {"RA_HEADS": "half"}),
    ("V7", {"RA_LAYERS": "0-1", "RA_HEADS": "0,2-3", "RA_R": 3}),
    ("V7", {"RA_R": 2, "RA_R_TOP": 8}),
    ("V7", {"RA_R": 8, "RA_R_TOP": 2, "RA_LAYERS": "even", "GPT2_BIAS": False}),
    ("V7", {"RA_PER_HEAD_GATES": False}),
    ("V2", {"RA_HEADS": "1", "RA_LAYERS": "2"}),
    ("V2", {"RA_PER_HEAD_GATES": False}),
    ("V6", {"RMLP_TIE_UP_LOW": True, "RMLP_LAYERS": "odd"}),
    ("V6", {"RMLP_TIE_UP_LOW": True, "GPT2_BIAS": False}),
    ("V8", {"RMLP_TIE_UP_LOW": True, "RMLP_R_FF": 16}),
    ("G2", {"MATCHED_STEP": "V6"}),
    ("G2", {"MATCHED_STEP": "VR16", "GPT2_BIAS": False}),
    ("G3", {"MATCHED_STEP": "G1"}),
    ("G3", {"MATCHED_COST": "parameters", "MATCHED_STEP": "V8"}),
]


def arm(values, device="meta"):
    model = GPT2(size.config_of(values, VOCAB), device=device)
    patch_model(model, values, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_closed_forms_are_the_models_own_counts_for_every_step(small, steps, sizes):
    compared = 0
    for step in steps:
        values = small(step, **sizes).values
        if values["ATTENTION"] in size.ATTENTION and values["MLP"] in size.MLP:
            assert size.cost(values, VOCAB) == count.count(arm(values)), step
            compared += 1
    assert compared >= 21


@pytest.mark.parametrize(("step", "options"), OPTIONS, ids=str)
def test_closed_forms_are_the_models_own_counts_for_every_option(small, step, options):
    values = small(step, **options).values
    assert size.cost(values, VOCAB) == count.count(arm(values))


@pytest.mark.parametrize("dropout", ["0.0", "0.1"])
@pytest.mark.parametrize("step", ["V0", "V2", "V6", "V8", "G1"])
def test_the_meta_device_counts_what_the_cpu_does(small, step, dropout):
    model = arm(small(step, GPT2_DROPOUT=dropout).values, device="cpu")
    assert count.flops(model) == count.flops(model.to("meta"))


def test_the_backward_pass_is_twice_the_forward(small):
    for step in ("V0", "V6", "V7", "G1", "G3"):
        model = arm(small(step).values)
        assert count.flops(model) == 3 * count.flops(model, backward=False)


def test_a_mechanism_without_a_closed_form_is_counted(small):
    values = small("V0").values
    model = arm(values)
    assert count.cost(model, {**values, "ATTENTION": "lens"}) == count.cost(model, values) == size.cost(values, VOCAB)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "parameters"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_parameters_are_the_published_ones(specify, layers, heads, width, parameters):
    sizes = {"GPT2_N_LAYER": layers, "GPT2_N_HEAD": heads, "GPT2_N_EMBD": width, "GPT2_VOCAB_MULTIPLE": 1}
    assert size.cost(specify("V0", **sizes).values, 50257).parameters == parameters


def test_flops_at_124m_are_those_of_the_literature(specify):
    """6 N + 12 L C T per token (PaLM, appendix B), N without position embeddings and vectors, which only add."""
    cost = size.cost(specify("V0", GPT2_VOCAB_MULTIPLE=1).values, 50257)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert cost.flops_per_token == 6 * matrices + 12 * 12 * 768 * 1024
    assert cost.forward_flops_per_token == cost.flops_per_token / 3


def test_arms_cost_what_the_mathematics_says_at_124m(specify):
    """Section 3: parameters and FLOPs beyond V0's, term by term."""
    layers, heads, width, low, tokens = 12, 12, 768, 64, 1024
    cost = {
        n: size.cost(specify(n).values, 50257) for n in ("V0", "V1", "V1F", "V2", "V3", "V4", "V5", "V6", "V7", "V8")
    }
    more = {n: c.parameters - cost["V0"].parameters for n, c in cost.items()}
    mixer, gate = low**2, width + 1
    assert more["V1"] == more["V1F"] == layers * 2 * heads
    assert more["V2"] == more["V1"] + layers * heads
    assert more["V3"] == more["V1"] + layers * 2
    assert more["V4"] == more["V3"] + layers * mixer
    assert more["V5"] == more["V3"] + layers * gate
    assert more["V6"] == more["V3"] + layers * (mixer + gate)
    assert more["V7"] == more["V1"] - layers * 2 * 4 * heads * (width + 1)
    assert more["V8"] == more["V7"] + layers * 2

    flops = {n: c.flops_per_token - cost["V0"].flops_per_token for n, c in cost.items()}
    assert [flops[n] for n in ("V1", "V1F", "V2", "V3", "V7", "V8")] == [0] * 6
    mixing, gating = 3 * layers * 2 * width * low**2 / tokens, 3 * layers * 2 * width
    assert flops["V4"] == mixing
    assert flops["V5"] == gating
    assert flops["V6"] == mixing + gating
    assert all(flops[n] < 1e-3 * cost["V0"].flops_per_token for n in flops)


@pytest.mark.parametrize(("step", "of"), [("G2", "V7"), ("G2", "V6"), ("G3", "V6"), ("G3", "G1")])
def test_matched_models_cost_what_they_match_to_half_a_width_step(specify, step, of):
    values = specify(step, MATCHED_STEP=of).values
    ours, theirs = size.cost(values, 50257), size.cost(specify(of).values, 50257)
    if values["MATCHED_COST"] == "parameters":
        assert abs(ours.parameters - theirs.parameters) <= size.WIDTH_STEP / 2 * (2 * 768 + 1)
    else:
        assert abs(ours.flops_per_token - theirs.flops_per_token) <= size.WIDTH_STEP / 2 * 12 * 768


def test_a_matched_step_cannot_match_a_matched_step_or_something_without_room(small):
    with pytest.raises(ValueError, match="G3 has a matched MLP itself"):
        size.cost(small("G2", MATCHED_STEP="G3").values, VOCAB)
    values = small("G2").values
    unknown = {**values, "MATCHED_VALUES": {**values["MATCHED_VALUES"], "ATTENTION": "newcomer"}}
    with pytest.raises(ValueError, match="MATCHED_STEP V7 has a mechanism without a closed form"):
        size.cost(unknown, VOCAB)
    other = {**values["MATCHED_VALUES"], "RA_HEADS": "all", "RA_R": 2000}
    with pytest.raises(ValueError, match="MATCHED_STEP V7 is so much smaller"):
        size.cost({**values, "MATCHED_VALUES": other}, VOCAB)


@pytest.mark.parametrize(
    ("text", "count_", "chosen"),
    [
        ("all", 3, (0, 1, 2)),
        ("odd", 5, (1, 3)),
        ("even", 5, (0, 2, 4)),
        ("half", 5, (0, 1)),
        ("3, 0-1,1", 4, (0, 1, 3)),
    ],
)
def test_selections_name_indices(text, count_, chosen):
    assert size.select(text, count_, "RA_LAYERS") == chosen


@pytest.mark.parametrize("text", ["", "4", "0-4", "2-1", "-1", "1-", "one", "0,,1", "0-9999999999999", "1.5"])
def test_selections_that_name_nothing_there_are_refused(text):
    began = time.process_time()
    with pytest.raises(ValueError, match="RA_LAYERS"):
        size.select(text, 4, "RA_LAYERS")
    assert time.process_time() - began < 1
    with pytest.raises(ValueError, match="RA_HEADS 'half' names none"):
        size.select("half", 1, "RA_HEADS")


def test_ranks_run_from_bottom_to_top():
    assert size.ranks(4, 0, 3) == (4, 4, 4)
    assert size.ranks(2, 8, 12) == (2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8)
    assert size.ranks(8, 2, 3) == (8, 5, 2)
    assert size.ranks(2, 8, 1) == (2,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_embd": 30}, "n_embd 30 is no multiple of n_head 4"),
        ({"n_layer": 0}, "n_layer 0"),
        ({"dropout": 1.0}, "dropout 1"),
    ],
)
def test_impossible_sizes_are_named(change, said):
    sizes = {"vocab_size": 9, "n_layer": 1, "n_head": 4, "n_embd": 32, "block_size": 8, "dropout": 0.0, "bias": True}
    with pytest.raises(ValueError, match=said):
        size.GPT2Config(**(sizes | change))


def saved_bytes(model, rows, half):
    """Bytes that autograd keeps between the forward and the backward pass, beyond the parameters."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    x = torch.zeros(rows, model.config.block_size, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = model(x, x)
    assert torch.isfinite(loss)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", ["0.0", "0.1"])
@pytest.mark.parametrize("step", ["V0", "V2", "V6", "V8", "G1"])
def test_the_memory_estimate_is_near_what_autograd_keeps(small, step, dropout, half):
    rows, sizes = 4, {"GPT2_N_EMBD": 256, "GPT2_BLOCK_SIZE": 128, "GPT2_DROPOUT": dropout, "GPT2_TOKENS_PER_STEP": 1280}
    values = small(step, **sizes).values
    weights, whole = (size.memory_bytes(values, VOCAB, n, 2 if half else 4, on_cpu=True) for n in (0, rows))
    cast = 2 * size.cost(values, VOCAB).parameters if half else 0
    kept = saved_bytes(arm(values, device="cpu"), rows, half)
    assert 0.75 < (whole - weights + cast) / kept < 1.1
    if step == "V0":
        assert 0.9 < (whole - weights + cast) / kept < 1.1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the high-water mark")
def test_the_memory_estimate_is_near_what_a_training_step_takes(root, specify):
    """In a process of its own: the high-water mark of resident memory over two steps, less what it began with."""
    sizes = {"GPT2_N_LAYER": 6, "GPT2_N_HEAD": 8, "GPT2_N_EMBD": 512, "GPT2_BLOCK_SIZE": 512, "GPT2_DROPOUT": "0.0"}
    values, rows = specify("V0", **sizes, GPT2_TOKENS_PER_STEP=2048).values, 4
    code = f"""
import torch
from gpt2.model import GPT2, GPT2Config
from lib.optimizers.build import OptimizerConfig, build
torch.set_num_threads(1)
def peak():  # of this program: ru_maxrss would begin at what pytest has used
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
torch.nn.functional.linear(torch.ones(9, 9), torch.ones(9, 9))
before = peak()
model = GPT2({size.config_of(values, 8000)!r})
optimizers = build(model, OptimizerConfig("adamw", 1e-3, None, 0.1, 0.9, 0.95, None, None, None))
x = torch.zeros({rows}, 512, dtype=torch.long)
for _ in range(2):
    model(x, x).backward()
    optimizers.step()
    optimizers.zero_grad()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert 0.7 < size.memory_bytes(values, 8000, rows, 4, on_cpu=True) / int(done.stdout) < 1.4


def test_the_memory_estimate_grows_with_everything(specify):
    least = size.memory_bytes(specify("V0").values, 50257, 1)
    assert size.memory_bytes(specify("V0").values, 50257, 2) > least
    assert size.memory_bytes(specify("V0").values, 50257, 1, activation_bytes=4) > least
    assert size.memory_bytes(specify("V0").values, 50257, 1, on_cpu=True) > least
    for symbol, value in (("GPT2_N_LAYER", 13), ("GPT2_N_EMBD", 780), ("GPT2_BLOCK_SIZE", 2048)):
        assert (
            size.memory_bytes(specify("V0", **{symbol: value, "GPT2_TOKENS_PER_STEP": 2048}).values, 50257, 1) > least
        )
    assert size.memory_bytes(specify("V0", GPT2_DROPOUT="0.0").values, 50257, 1) < least
    assert 2.3e9 < least < 3.1e9  # 18 bytes a parameter, and 1024 tokens


def test_a_mechanism_without_a_closed_form_gets_the_estimate_of_v0(specify):
    values = specify("V0").values
    assert size.memory_bytes({**values, "MLP": "lens"}, 50257, 3) == size.memory_bytes(values, 50257, 3)


def test_an_absurd_size_is_refused_at_once(specify):
    absurd = specify("V0", GPT2_N_LAYER=512, GPT2_N_EMBD=65536, GPT2_N_HEAD=64).values
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"GPT2_N_LAYER 512 x GPT2_N_EMBD 65536 needs 42[0-9],[0-9]{3} GB"):
        size.refuse_absurd(absurd, 50257)
    assert time.process_time() - began < 1
    size.refuse_absurd(specify("V0", GPT2_N_LAYER=1, GPT2_N_EMBD=12).values, 257)
