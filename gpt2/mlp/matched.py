"""A control: the standard MLP, widened or narrowed until the model costs what another arm costs (gpt2/size.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn as nn

from gpt2.model import GPT2, MLP
from gpt2.size import matched_widths
from lib.config.fields import Value, sym


@dataclass(frozen=True)
class Config:
    """Which step's cost, counted in what."""

    step: str = sym("MATCHED_STEP")
    cost: str = sym("MATCHED_COST")


def patch(model: GPT2, cfg: Config, generator: torch.Generator, values: Mapping[str, Value]) -> None:
    """Resize every layer's MLP: features that stay keep their weights, new ones are drawn as the model's own were.

    `values` may hold the other step's Mechanism values as MATCHED_VALUES; otherwise they are read from its fragment.
    Raises ValueError when no width fits.
    """
    widths = matched_widths(model.config, {**values, "MATCHED_STEP": cfg.step, "MATCHED_COST": cfg.cost})
    for block, width in zip(model.h, widths, strict=True):
        vanilla = block.mlp
        device = vanilla.c_proj.weight.device
        with torch.device("meta"):
            resized = MLP(model.config, width)
        resized.to_empty(device=device)
        if device.type != "meta":
            _fill(resized, vanilla, model.config.n_layer, generator)
        block.mlp = resized.train(vanilla.training)


@torch.no_grad()
def _fill(resized: MLP, vanilla: nn.Module, n_layer: int, generator: torch.Generator) -> None:
    """Draw what is new, then lay what is kept over it."""
    nn.init.normal_(resized.c_fc.weight, std=0.02, generator=generator)
    nn.init.normal_(resized.c_proj.weight, std=0.02 / (2 * n_layer) ** 0.5, generator=generator)
    kept = min(resized.c_fc.out_features, vanilla.c_fc.out_features)
    resized.c_fc.weight[:kept] = vanilla.c_fc.weight[:kept]
    resized.c_proj.weight[:, :kept] = vanilla.c_proj.weight[:, :kept]
    if resized.c_fc.bias is not None:
        nn.init.zeros_(resized.c_fc.bias)
        resized.c_fc.bias[:kept] = vanilla.c_fc.bias[:kept]
        resized.c_proj.bias.copy_(vanilla.c_proj.bias)
