"""Putting mechanisms into a GPT-2, and taking them out again.

`patch_model` turns a vanilla model into the arm that resolved settings describe: it looks up gpt2/attention/NAME.py and
gpt2/mlp/NAME.py by the values of the choices ATTENTION and MLP. `patch_attention` and `patch_mlp` do one layer, in our
GPT2 or in transformers' GPT2LMHeadModel. `bake` goes back: a vanilla model with the same logits.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from gpt2.model import GPT2, MLP, CausalSelfAttention
from gpt2.pretrained import unlike_gpt2
from lib.config.errors import ConfigError
from lib.config.fields import Value, fill, sym
from ra import ReciprocalMLP, UnifiedRAttention, linear_of, statistics

# What AA_PERTURB_RESEED adds to a run's seed.
RESEED = 1_000_003


@dataclass(frozen=True)
class Mechanism:
    """The two slots' contents, and how the initial weights are disturbed to measure noise."""

    attention: str = sym("ATTENTION")
    mlp: str = sym("MLP")
    perturb: str = sym("AA_PERTURB")


def patch_model(model: GPT2, values: Mapping[str, Value], generator: torch.Generator) -> None:
    """Put the mechanisms of `values` into a vanilla model, in place; new parameters are drawn from `generator`.

    Raises ConfigError for a mechanism without a module, ValueError for sizes that cannot be.
    """
    mechanism = fill(Mechanism, values)
    for slot, name, vanilla in (("attention", mechanism.attention, "sdpa"), ("mlp", mechanism.mlp, "gelu")):
        if name != vanilla:
            module = _module(slot, name)
            module.patch(model, fill(module.Config, values), generator, values)
    if mechanism.perturb == "ulp":
        move_by_one_ulp(model, generator)


def _module(slot: str, name: str) -> Any:
    path = f"gpt2.{slot}.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise ConfigError(f"{slot.upper()}_{name.upper()}: there is no gpt2/{slot}/{name}.py; write it") from None


def run_seed(seed: int, values: Mapping[str, Value]) -> int:
    """The seed that a run draws from: its own, or for the rerun floor one that no listed seed has."""
    return seed + RESEED if fill(Mechanism, values).perturb == "reseed" else seed


@torch.no_grad()
def move_by_one_ulp(model: nn.Module, generator: torch.Generator) -> None:
    """Move every entry of every parameter to the next floating-point number, up or down as `generator` says.

    A zero (a fresh bias) stays: its neighbour is 1e-45, which is no rounding error and which many machines flush to 0.
    """
    for parameter in model.parameters():
        if parameter.device.type != "meta":
            up = torch.rand(parameter.shape, generator=generator).to(parameter.device) < 0.5
            limit = torch.where(up, torch.inf, -torch.inf).to(parameter.dtype)
            parameter.copy_(torch.where(parameter == 0, parameter, torch.nextafter(parameter, limit)))


class _HFAttention(UnifiedRAttention):
    """UnifiedRAttention with the signature of transformers' GPT2Attention: whole sequences, no cache, no mask."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """[B, T, C] -> ([B, T, C], None). Raises ValueError for a cache or a padding mask."""
        given = dict(zip(("cache", "attention_mask"), args, strict=False)) | kwargs
        for name in ("cache", "past_key_values", "layer_past"):
            if given.get(name) is not None:
                raise ValueError(f"a patched GPT2LMHeadModel has no {name}: pass use_cache=False")
        if given.get("attention_mask") is not None:
            raise ValueError(
                "a patched GPT2LMHeadModel takes no attention_mask: no padding, and attn_implementation='sdpa'"
            )
        return super().forward(hidden_states), None


def _blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks of our GPT2 or of transformers' GPT2LMHeadModel or GPT2Model."""
    return model.h if hasattr(model, "h") else model.transformer.h  # type: ignore[no-any-return]


def _linear(layer: Any) -> nn.Linear:
    """A linear layer as torch stores it; transformers' Conv1D keeps the transpose."""
    if isinstance(layer, nn.Linear):
        return layer
    return linear_of(layer.weight.t().contiguous(), layer.bias)


def _refuse_unlike(config: Any, keys: tuple[str, ...]) -> None:
    """Raise ValueError when a transformers model computes something that ra.py's modules do not."""
    if unusual := unlike_gpt2(config, keys):
        raise ValueError(unusual)


def patch_attention(model: nn.Module, layer: int, **options: Any) -> UnifiedRAttention:
    """Replace one layer's attention by a UnifiedRAttention on the same weights; `options` are its arguments.

    Raises ValueError for sizes that cannot be, naming them.
    """
    block, hf = _blocks(model)[layer], not isinstance(model, GPT2)
    c_attn, c_proj = _linear(block.attn.c_attn), _linear(block.attn.c_proj)
    config: Any = model.config
    sizes = {"n_embd": config.n_embd, "n_head": config.n_head, "bias": c_attn.bias is not None, "device": "meta"}
    sizes["dropout"] = config.attn_pdrop if hf else config.dropout
    try:
        if hf:
            _refuse_unlike(config, ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"))
            if "dropout" not in options and config.attn_pdrop != config.resid_pdrop:
                raise ValueError(f"attn_pdrop {config.attn_pdrop} is not resid_pdrop {config.resid_pdrop}; set dropout")
        attention = (_HFAttention if hf else UnifiedRAttention)(**(sizes | options))
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from None
    attention.adopt(c_attn, c_proj)
    block.attn = attention.to(c_attn.weight.device).train(model.training)
    if hf:
        config.use_cache = False
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.use_cache = False  # type: ignore[union-attr]
    return attention


def patch_mlp(model: nn.Module, layer: int, **options: Any) -> ReciprocalMLP:
    """Replace one layer's MLP by a ReciprocalMLP on the same weights; `options` are its arguments.

    Raises ValueError for sizes that cannot be, naming them.
    """
    block, hf = _blocks(model)[layer], not isinstance(model, GPT2)
    c_fc, c_proj = _linear(block.mlp.c_fc), _linear(block.mlp.c_proj)
    config: Any = model.config
    expansion, rest = divmod(c_fc.out_features, config.n_embd)
    if rest:
        raise ValueError(
            f"layer {layer}: {c_fc.out_features} hidden features are no multiple of n_embd {config.n_embd}"
        )
    sizes = {"n_embd": config.n_embd, "expansion": expansion, "bias": c_fc.bias is not None, "device": "meta"}
    sizes["dropout"] = config.resid_pdrop if hf else config.dropout
    try:
        if hf:
            _refuse_unlike(config, ("activation_function",))
        mlp = ReciprocalMLP(**(sizes | options))
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from None
    mlp.adopt(c_fc, c_proj)
    block.mlp = mlp.to(c_fc.weight.device).train(model.training)
    return mlp


def bake(model: GPT2) -> GPT2:
    """A vanilla GPT2 with the same logits; `model` is left as it is.

    Raises ValueError naming the layer and the term that standard attention or a standard MLP cannot express.
    """
    baked = copy.deepcopy(model)
    for layer, block in enumerate(baked.h):
        for slot, standard in (("attn", CausalSelfAttention), ("mlp", MLP)):
            module = getattr(block, slot)
            if type(module) is standard:
                continue
            if not hasattr(module, "bake"):
                raise ValueError(f"layer {layer}: {type(module).__name__} is no rearrangement of GPT-2's weights")
            try:
                first, last = module.bake()
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from None
            with torch.device("meta"):
                plain: Any = standard(model.config)
            if slot == "attn":
                plain.c_attn, plain.c_proj = first, last
            else:
                plain.c_fc, plain.c_proj = first, last
            setattr(block, slot, plain.train(model.training))
    return baked


@torch.no_grad()
def set_ra_mlp_coupling_scale(model: nn.Module, scale: float) -> None:
    """Set s of every reciprocal pathway: 0 is absent, 1 is whole. No synchronisation, no recompilation."""
    for module in model.modules():
        if isinstance(found := getattr(module, "coupling_scale", None), Tensor):
            found.fill_(scale)


def gate_stats(model: nn.Module) -> dict[str, float]:
    """Statistics of each kind of gate over all layers: unified_ra_w_std_mean, ..., rmlp_w_rec_max. One transfer."""
    collected: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if hasattr(module, "gate_prefix"):
            for name, gate in module.gates().items():
                collected.setdefault(f"{module.gate_prefix}_{name}", []).append(gate.detach().flatten())
    return statistics({name: torch.cat(gates) for name, gates in collected.items()})
