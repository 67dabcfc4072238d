"""What an arm costs: the closed form where there is one, else counted from the model itself.

Counting traces one sequence on the meta device: shapes only, no memory, no arithmetic. Conventions: gpt2/size.py.
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


def cost(model: GPT2, values: Mapping[str, Value]) -> Cost:
    """What the arm that `values` describe costs; `model` is that arm, for mechanisms without a closed form."""
    return size.cost(values, model.config.vocab_size) if size.has_closed_form(values) else count(model)


def count(model: GPT2) -> Cost:
    """Parameters of `model` (as it is, patched or not) and training FLOPs per token at its block_size."""
    on_meta = next(model.parameters()).device.type == "meta"
    traced = model if on_meta else copy.deepcopy(model).to("meta")
    return Cost(sum(p.numel() for p in model.parameters()), flops(traced) / model.config.block_size)


def flops(model: GPT2, backward: bool = True) -> int:
    """FLOPs of a forward (and backward) pass over one sequence of block_size tokens, on the model's own device."""
    tokens = torch.zeros(1, model.config.block_size, dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, torch.set_grad_enabled(backward):
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
