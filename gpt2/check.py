"""The dry run: build every arm at its real width and depth, train it for one step, and say what is broken.

One process on the CPU. Width and depth are real at batch 1 and a short context; what depends on position runs once more
on two layers at the full context. No data is read: tokens are random.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from gpt2 import size
from gpt2.count import count
from gpt2.model import GPT2, GPT2Config, pad_vocab
from gpt2.ra_patch import patch_model, set_ra_mlp_coupling_scale
from lib.config.errors import UserError
from lib.config.fields import Value, fill
from lib.config.resolve import RunSpec
from lib.optimizers.build import OptimizerConfig, build

SHORT_CONTEXT = 128
Report = Callable[[str], None]


def check(specs: Sequence[RunSpec], report: Report = print) -> list[str]:
    """Try every distinct arm among `specs`; report a line for each and return the names of the broken ones."""
    broken: list[str] = []
    vanilla: dict[GPT2Config, GPT2] = {}
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        key = (spec.step, spec.optimizer)
        if key in seen:
            continue
        seen.add(key)
        began = time.monotonic()
        try:
            said = check_step(spec.values, vanilla)
        except UserError:
            raise
        except Exception as error:
            broken.append(spec.step)
            said = f"BROKEN  {error.__class__.__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        report(f"{spec.step:<6} {said}  ({time.monotonic() - began:.1f} s)  {spec.description}")
    return broken


def check_step(values: Mapping[str, Value], vanilla: dict[GPT2Config, GPT2]) -> str:
    """Build, patch, train one step. Raises whatever is wrong; `vanilla` keeps the unpatched model for the next arm."""
    vocabulary = {"gpt2": 50257, "bytes": 257}.get(str(values["GPT2_TOKENIZER"])) or int(values["GPT2_BPE_VOCAB"])
    config = fill(GPT2Config, values, vocab_size=pad_vocab(vocabulary, int(values["GPT2_VOCAB_MULTIPLE"])))
    if config not in vanilla:
        size.refuse_absurd(values, config.vocab_size)
        vanilla.clear()
        vanilla[config] = GPT2(config, generator=torch.Generator().manual_seed(0))
    model = GPT2(config, weights_of=vanilla[config])
    patch_model(model, values, torch.Generator().manual_seed(1))
    cost = _cost(values, config, model)
    losses = _one_step(model, values, min(SHORT_CONTEXT, config.block_size))
    _full_context(config, values)
    return f"ok  {cost.parameters:,} parameters, {cost.flops_per_token / 1e6:,.1f} MFLOP/token, loss {losses}"


def _cost(values: Mapping[str, Value], config: GPT2Config, model: GPT2) -> size.Cost:
    """The closed form where there is one (it must agree with the model), else the count."""
    parameters = sum(p.numel() for p in model.parameters())
    try:
        cost = size.cost(values, config.vocab_size)
    except KeyError:
        return count(model, config.block_size)
    if cost.parameters != parameters:
        raise ValueError(f"gpt2/size.py says {cost.parameters:,} parameters, the model has {parameters:,}")
    return cost


def _one_step(model: GPT2, values: Mapping[str, Value], context: int) -> str:
    tokens = torch.randint(model.config.vocab_size, (1, context + 1), generator=torch.Generator().manual_seed(2))
    x, y = tokens[:, :-1], tokens[:, 1:]
    set_ra_mlp_coupling_scale(model, 0.5)
    torch.manual_seed(3)
    before = _finite(model(x, y), "the loss")
    before.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                raise ValueError(f"{name} gets no gradient")
            _finite(parameter.grad, f"the gradient of {name}")
    optimizer = build(model, fill(OptimizerConfig, values))
    optimizer.step()
    with torch.no_grad():
        after = _finite(model(x, y), "the loss after one step")
    return f"{before.item():.3f} -> {after.item():.3f}"


def _full_context(config: GPT2Config, values: Mapping[str, Value]) -> None:
    """Two narrow-vocabulary layers at the full context: what depends on position."""
    if config.block_size <= SHORT_CONTEXT:
        return
    small = dataclasses.replace(config, n_layer=min(2, config.n_layer), vocab_size=256)
    with torch.no_grad():
        model = GPT2(small, generator=torch.Generator().manual_seed(4))
        two = {**values, "GPT2_N_LAYER": small.n_layer}
        patch_model(model, two, torch.Generator().manual_seed(5))
        x = torch.randint(256, (1, config.block_size), generator=torch.Generator().manual_seed(6))
        _finite(model(x, x), "the loss at the full context")


def _finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    if not math.isfinite(float(tensor.detach().sum())):
        raise ValueError(f"{what} is not finite")
    return tensor
