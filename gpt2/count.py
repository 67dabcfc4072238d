"""Counting what has no closed form: a model's parameters, and its training FLOPs by tracing one sequence.

The trace runs on the meta device: shapes only, no memory, no arithmetic. Conventions are those of gpt2/size.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2 import size
from gpt2.model import GPT2
from gpt2.size import Cost
from lib.config.fields import Value


def count(model: GPT2, block_size: int) -> Cost:
    """Parameters of `model` (as it is, patched or not) and training FLOPs per token at `block_size` tokens."""
    traced = copy.deepcopy(model).to("meta") if next(model.parameters()).device.type != "meta" else model
    return Cost(sum(p.numel() for p in model.parameters()), training_flops(traced, block_size) / block_size)


def cost(model: GPT2, values: Mapping[str, Value]) -> Cost:
    """The closed form of gpt2/size.py where there is one, else the count.

    Raises ValueError when the closed form's parameters are not the model's: one of the two is wrong.
    """
    try:
        found = size.cost(values, model.config.vocab_size)
    except KeyError:
        return count(model, model.config.block_size)
    parameters = sum(p.numel() for p in model.parameters())
    if found.parameters != parameters:
        raise ValueError(f"gpt2/size.py says {found.parameters:,} parameters, the model has {parameters:,}")
    return found


def training_flops(model: GPT2, block_size: int, backward: bool = True) -> int:
    """FLOPs of a forward (and backward) pass over one sequence of `block_size` tokens, on the model's own device."""
    tokens = torch.zeros(1, block_size, dtype=torch.long, device=next(model.parameters()).device)
    with (
        FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter,
        torch.set_grad_enabled(backward),
    ):
        loss = model(tokens, tokens)
        if backward:
            loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


def _attention(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object) -> int:
    B, H, T, d = q
    return 2 * B * H * T * k[2] * (d + v[3])


def _attention_backward(
    grad: object, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object
) -> int:
    return 2 * _attention(q, k, v)


# torch's counter knows the GPU's fused attention, and counts the scores' recomputation in its backward pass; the CPU's
# it does not know at all.
_aten = torch.ops.aten
_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
