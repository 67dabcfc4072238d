"""The dry run: build every arm at its real width and depth, train it for one step, and say what is broken.

One process on the CPU, without data: tokens are random. Width and depth are real at batch 1 and a short context; what
depends on position runs once more at the full context, in one block of each kind. FLOPs are counted on the meta device.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2 import size
from gpt2.count import count, flops
from gpt2.model import GPT2, GPT2Config
from gpt2.ra_patch import patch_model, set_ra_mlp_coupling_scale
from lib.config.errors import UserError
from lib.config.fields import Value, fill
from lib.config.resolve import RunSpec
from lib.data.config import DataConfig, vocab_size_of
from lib.optimizers.build import OptimizerConfig, build

SHORT_CONTEXT = 128
ROOT = Path(__file__).resolve().parent.parent
Report = Callable[[str], None]


def check(specs: Sequence[RunSpec], report: Report = print) -> list[str]:
    """Try every distinct arm among `specs`; report a line for each and return the names of the broken ones.

    Raises UserError for what a person can mend, such as a model beyond this machine's memory.
    """
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
            said = f"BROKEN  {what_and_where(error)}"
        report(f"{spec.step:<6} {said}  ({time.monotonic() - began:.1f} s)  {spec.description}")
    return broken


def what_and_where(error: Exception) -> str:
    """One line: the error's first line, and the innermost line of this project that it came through."""
    first = (str(error).splitlines() or [""])[0]
    own = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename)]
    place = own[-1] if own else None
    at = f" at {Path(place.filename).relative_to(ROOT)}:{place.lineno}" if place else ""
    return f"{type(error).__name__}{at}: {first}"


def _is_own(filename: str) -> bool:
    """Whether a source file is of this project, and not this module, whose own findings need no line number."""
    path = Path(filename)
    inside = path.is_relative_to(ROOT) and not path.relative_to(ROOT).parts[0].startswith(".")
    return inside and path != Path(__file__).resolve()


def check_step(values: Mapping[str, Value], vanilla: dict[GPT2Config, GPT2]) -> str:
    """Build, patch, train one step. Raises whatever is wrong; `vanilla` keeps the unpatched model for the next arm."""
    vocab = vocab_size_of(fill(DataConfig, values))
    config = size.config_of(values, vocab)
    if config not in vanilla:
        size.refuse_absurd(values, vocab)
        vanilla.clear()
        vanilla[config] = GPT2(config, generator=torch.Generator().manual_seed(0))
    model = GPT2(config, weights_of=vanilla[config])
    patch_model(model, values, torch.Generator().manual_seed(1))
    cost = _cost(values, vocab, model)
    losses = _one_step(model, values, min(SHORT_CONTEXT, config.block_size))
    _full_context(model)
    return f"ok  {cost.parameters:,} parameters, {cost.flops_per_token / 1e6:,.1f} MFLOP/token, loss {losses}"


def _cost(values: Mapping[str, Value], vocab_size: int, model: GPT2) -> size.Cost:
    """The closed form where there is one (the model must agree with it), else the count."""
    traced = GPT2(model.config, device="meta")
    patch_model(traced, values, torch.Generator().manual_seed(1))
    if not size.has_closed_form(values):
        return count(traced)
    cost = size.cost(values, vocab_size)
    parameters = sum(p.numel() for p in model.parameters())
    if cost.parameters != parameters:
        raise ValueError(f"gpt2/size.py says {cost.parameters:,} parameters, the model has {parameters:,}")
    # The backward pass is twice the forward; to trace it too would take three times as long.
    said, counted = round(cost.forward_flops_per_token * model.config.block_size), flops(traced, backward=False)
    if said != counted:
        raise ValueError(f"gpt2/size.py says {said:,} FLOPs forward per sequence, the model does {counted:,}")
    return cost


def _one_step(model: GPT2, values: Mapping[str, Value], context: int) -> str:
    tokens = torch.randint(model.config.vocab_size, (1, context + 1), generator=torch.Generator().manual_seed(2))
    x, y = tokens[:, :-1], tokens[:, 1:]
    set_ra_mlp_coupling_scale(model, 0.5)
    torch.manual_seed(3)
    before = _loss(model, x, y, "the loss")
    before.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                raise ValueError(f"{name} gets no gradient")
            if not is_finite(parameter.grad):
                raise ValueError(f"the gradient of {name} is not finite")
    optimizer = build(model, fill(OptimizerConfig, values))
    optimizer.step()
    with torch.no_grad():
        after = _loss(model, x, y, "the loss after one step")
    return f"{before.item():.3f} -> {after.item():.3f}"


def _loss(model: GPT2, x: Tensor, y: Tensor, what: str) -> Tensor:
    """The loss; ValueError naming the first module whose output is not finite when it is not."""
    loss: Tensor = model(x, y)
    if is_finite(loss):
        return loss
    names = {module: name for name, module in model.named_modules()}
    culprits: list[str] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and not is_finite(output):
            culprits.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names if module is not model]
    with torch.no_grad():
        model(x, y)
    for hook in hooks:
        hook.remove()
    first = f"; {culprits[0]} is the first module whose output is not" if culprits else ""
    raise ValueError(f"{what} is not finite{first}")


def _full_context(model: GPT2) -> None:
    """What depends on position: one block of each kind over as many tokens as the model takes."""
    if model.config.block_size <= SHORT_CONTEXT:
        return
    kinds = {(type(block.attn), type(block.mlp)): block for block in reversed(model.h)}
    with torch.no_grad():
        x = torch.randn(1, *model.wpe.weight.shape, generator=torch.Generator().manual_seed(4)) + model.wpe.weight
        for block in kinds.values():
            if not is_finite(block(x)):
                name = next(name for name, module in model.named_modules() if module is block)
                raise ValueError(f"the output of {name} is not finite at the full context of {x.shape[1]} tokens")


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is; by their sum, which needs no memory."""
    return math.isfinite(float(tensor.detach().sum()))
