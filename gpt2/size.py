"""What a model costs, in closed form and without torch: parameters, FLOPs, memory, for GPT-2 and every mechanism.

Conventions. A multiply-add is 2 FLOPs. Matrix products and attention count, pointwise work does not; attention is the
whole T x T square, as in PaLM (arXiv 2204.02311, appendix B: 12 L C T per token for training), not the causal half. The
backward pass is twice the forward. All is counted for one sequence of block_size tokens and divided by its tokens; what
is done once per pass (folding a mixer into weights) is charged to that one sequence, so larger batches cost less.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.config.errors import ConfigError
from lib.config.fields import Value, fill, sym

Values = Mapping[str, Value]
# Resized MLPs keep a multiple of this many features; matrix units slow down on odd widths.
WIDTH_STEP = 8
# A chunk of the loss holds at most this many logits (rows x vocabulary): 2^28 is 5336 rows at 50304.
LOSS_ELEMENTS = 1 << 28


def pad_vocab(vocab_size: int, multiple: int) -> int:
    """`vocab_size` rounded up to a multiple: 50257 becomes 50304 at 64."""
    return -(-vocab_size // multiple) * multiple


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of the unpatched model. `vocab_size` counts the embedding's rows, padding included (`pad_vocab`).

    Raises ValueError for sizes that cannot be, naming them.
    """

    vocab_size: int
    n_layer: int = sym("GPT2_N_LAYER")
    n_head: int = sym("GPT2_N_HEAD")
    n_embd: int = sym("GPT2_N_EMBD")
    block_size: int = sym("GPT2_BLOCK_SIZE")
    dropout: float = sym("GPT2_DROPOUT")
    bias: bool = sym("GPT2_BIAS")
    vocab_multiple: int = dataclasses.field(default=1, metadata={"symbol": "GPT2_VOCAB_MULTIPLE"})

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_head", "n_embd", "block_size", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        if self.vocab_size % self.vocab_multiple:
            raise ValueError(f"vocab_size {self.vocab_size} is no multiple of vocab_multiple {self.vocab_multiple}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is outside [0, 1)")


def config_of(values: Values, vocab_size: int) -> GPT2Config:
    """The model's sizes from resolved settings and a tokenizer's vocabulary, which is padded here."""
    return fill(GPT2Config, values, vocab_size=pad_vocab(vocab_size, int(values["GPT2_VOCAB_MULTIPLE"])))


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and FLOPs per token of its training (forward + backward)."""

    parameters: int
    flops_per_token: float

    @property
    def forward_flops_per_token(self) -> float:
        """A third of the training's."""
        return self.flops_per_token / 3


@dataclass(frozen=True)
class Part:
    """A module's parameters and the FLOPs of one forward pass over a sequence of block_size tokens."""

    parameters: int
    flops: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(self.parameters + other.parameters, self.flops + other.flops)


def select(text: str, count: int, what: str) -> tuple[int, ...]:
    """The indices below `count` that `text` names: all, odd, even, half (the first half), or "0-5,8".

    Raises ValueError naming `what` (the setting) when the text names nothing or something that is not there.
    """
    named = {"all": range(count), "odd": range(1, count, 2), "even": range(0, count, 2), "half": range(count // 2)}
    chosen: set[int] = set(named.get(text, ()))
    if text not in named:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise ValueError(f"{what} {text!r}: expected all, odd, even, half, or indices and ranges such as 0-5,8")
            begin, end = int(first), int(last or first)
            if end >= count or begin > end:
                raise ValueError(f"{what} {text!r}: {part.strip()} is outside 0..{count - 1}")
            chosen.update(range(begin, end + 1))
    if not chosen:
        raise ValueError(f"{what} {text!r} names none of {count}")
    return tuple(sorted(chosen))


def ranks(bottom: int, top: int, n_layer: int) -> tuple[int, ...]:
    """R of each layer: linear from `bottom` in the first to `top` in the last, rounded; `top` 0: the same in all."""
    if not top or n_layer == 1:
        return (bottom,) * n_layer
    return tuple(int(bottom + (top - bottom) * layer / (n_layer - 1) + 0.5) for layer in range(n_layer))


def cost(values: Values, vocab_size: int) -> Cost:
    """Exact parameters and training FLOPs per token of the arm that `values` describe.

    Raises KeyError for a mechanism without a closed form (gpt2/count.py counts those), ValueError for impossible sizes.
    """
    return _total(config_of(values, vocab_size), values)


def _total(c: GPT2Config, values: Values) -> Cost:
    attention, mlp = ATTENTION[str(values["ATTENTION"])], MLP[str(values["MLP"])]
    norm = Part(c.n_embd * (2 if c.bias else 1))
    # Embeddings are look-ups; the head is the token embedding again, as a matrix product.
    total = Part(c.vocab_size * c.n_embd + c.block_size * c.n_embd, 2 * c.block_size * c.n_embd * c.vocab_size) + norm
    for layer in range(c.n_layer):
        total += norm + attention(c, values, layer) + norm + mlp(c, values, layer)
    return Cost(total.parameters, 3 * total.flops / c.block_size)


def _linear(c: GPT2Config, inputs: int, outputs: int) -> Part:
    return Part(inputs * outputs + (outputs if c.bias else 0), 2 * c.block_size * inputs * outputs)


def _sdpa(c: GPT2Config, values: Values, layer: int) -> Part:
    scores_and_mix = Part(0, 4 * c.block_size**2 * c.n_embd)
    return _linear(c, c.n_embd, 3 * c.n_embd) + _linear(c, c.n_embd, c.n_embd) + scores_and_mix


def _unified_ra(c: GPT2Config, values: Values, layer: int) -> Part:
    part = _sdpa(c, values, layer)
    if layer not in select(str(values["RA_LAYERS"]), c.n_layer, "RA_LAYERS"):
        return part
    heads = len(select(str(values["RA_HEADS"]), c.n_head, "RA_HEADS"))
    extra = 2 * heads if values["RA_PER_HEAD_GATES"] else 2
    if values["RA_SELF_RESTART"]:
        extra += c.n_head
    if values["RA_SHARE"] == "tied":
        rank = ranks(int(values["RA_R"]), int(values["RA_R_TOP"]), c.n_layer)[layer]
        extra -= 2 * rank * heads * (c.n_embd + c.bias)
    return part + Part(extra)


def _gated(c: GPT2Config, values: Values, layer: int) -> Part:
    return _sdpa(c, values, layer) + _linear(c, c.n_embd, c.n_head)


def _mlp(c: GPT2Config, width: int) -> Part:
    return _linear(c, c.n_embd, width) + _linear(c, width, c.n_embd)


def _gelu(c: GPT2Config, values: Values, layer: int) -> Part:
    return _mlp(c, 4 * c.n_embd)


def _reciprocal(c: GPT2Config, values: Values, layer: int) -> Part:
    part = _gelu(c, values, layer)
    if layer not in select(str(values["RMLP_LAYERS"]), c.n_layer, "RMLP_LAYERS"):
        return part
    low = int(values["RMLP_R_FF"])
    part += Part(2)
    if values["RMLP_TIE_UP_LOW"]:
        part += Part(-low * (c.n_embd + c.bias))
    if values["RMLP_MIXER"]:
        part += Part(low * low, 2 * c.n_embd * low * low)
    if values["RMLP_TOKEN_GATES"]:
        part += Part(c.n_embd + 1, 2 * c.block_size * c.n_embd)
    return part


def _matched(c: GPT2Config, values: Values, layer: int) -> Part:
    return _mlp(c, matched_widths(c, values)[layer])


# By the values of the choices ATTENTION and MLP.
Formula = Callable[[GPT2Config, Values, int], Part]
ATTENTION: dict[str, Formula] = {"sdpa": _sdpa, "unified_ra": _unified_ra, "gated": _gated}
MLP: dict[str, Formula] = {"gelu": _gelu, "reciprocal": _reciprocal, "matched": _matched}


def has_closed_form(values: Values) -> bool:
    """Whether `cost` knows the mechanisms of `values`."""
    return values["ATTENTION"] in ATTENTION and values["MLP"] in MLP


def unpatched(values: Values) -> Values:
    """`values` with GPT-2's own attention and MLP."""
    return {**values, "ATTENTION": "sdpa", "MLP": "gelu"}


def matched_widths(c: GPT2Config, values: Values) -> tuple[int, ...]:
    """Hidden features of each layer's MLP so that the model costs what MATCHED_STEP's does, in MATCHED_COST's unit.

    Exact to half of WIDTH_STEP features in the whole model; what does not divide goes to the first layers. The other
    step's Mechanism values are values["MATCHED_VALUES"], or else read from its fragment.
    Raises ValueError when that step is matched itself, or when no width is left.
    """
    name = str(values["MATCHED_STEP"])
    other = values.get("MATCHED_VALUES") or _step_values(name)
    assert isinstance(other, Mapping)
    if not has_closed_form(other):
        raise ValueError(f"MATCHED_STEP {name} has a mechanism without a closed form in gpt2/size.py; name another")
    if other["MLP"] == "matched":
        raise ValueError(f"MATCHED_STEP {name} has a matched MLP itself; name a step with a cost of its own")
    plain, target = _total(c, {**values, "MLP": "gelu"}), _total(c, {**values, **other})
    if values["MATCHED_COST"] == "parameters":
        missing = (target.parameters - plain.parameters) / (2 * c.n_embd + c.bias)
    else:
        missing = (target.flops_per_token - plain.flops_per_token) / (12 * c.n_embd)
    each, first = divmod(round(missing / WIDTH_STEP), c.n_layer)
    widths = tuple(4 * c.n_embd + WIDTH_STEP * (each + (layer < first)) for layer in range(c.n_layer))
    if min(widths) < 1:
        raise ValueError(f"MATCHED_STEP {name} is so much smaller that the MLP would be {min(widths)} wide")
    return widths


def _step_values(name: str) -> Values:
    from lib.config.resolve import Resolver

    return Resolver(Path(__file__).resolve().parent.parent).step_values(name)


def memory_bytes(
    values: Values, vocab_size: int, micro_batch: int, activation_bytes: int = 2, on_cpu: bool = False
) -> int:
    """An estimate of what training needs at `micro_batch` sequences: weights, gradients, two moments, activations.

    `activation_bytes` is 2 under bf16 autocast (which also keeps a bf16 copy of the weights), 4 in fp32. Per layer and
    token a backward pass needs two fp32 residuals and 14 C elements (norm outputs, q, k, v, attention output, both
    sides of the GELU). With dropout a CPU (`on_cpu`) has no fused attention: it keeps three T x T fp32 matrices
    per head, and dropout masks as wide as what they mask, where a GPU keeps a byte.
    """
    c = config_of(values, vocab_size)
    parameters = _total(c, values if has_closed_form(values) else unpatched(values)).parameters
    tokens = micro_batch * c.block_size
    layers = tokens * c.n_layer * c.n_embd * (2 * 4 + 14 * activation_bytes)
    if c.dropout:
        layers += tokens * c.n_embd * (2 * c.n_layer + 1) * (4 if on_cpu else 1)
        if on_cpu:
            layers += 3 * 4 * tokens * c.block_size * c.n_head * c.n_layer
    loss = min(tokens * c.vocab_size, LOSS_ELEMENTS) * (4 + 2 * activation_bytes)
    return parameters * (16 + (2 if activation_bytes == 2 else 0)) + layers + loss


def refuse_absurd(values: Values, vocab_size: int) -> None:
    """Raise ConfigError when weights, gradients and moments alone exceed this machine's memory."""
    c = config_of(values, vocab_size)
    needed = 16 * _total(c, unpatched(values)).parameters
    present = _memory_here()
    if needed > present:
        raise ConfigError(
            f"GPT2_N_LAYER {c.n_layer} x GPT2_N_EMBD {c.n_embd} needs {needed / 1e9:,.0f} GB to train one step; "
            f"this machine has {present / 1e9:,.0f} GB; choose a smaller model"
        )


def _memory_here() -> int:
    """Bytes of memory that this process may have: the machine's, or its control group's when that is less."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(present, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return present
