"""Gated attention (arXiv 2505.06708, the head-wise gate after SDPA), a control: y_h <- sigmoid(W_g x + b)_h y_h.

W_g is an ordinary projection [H, C]: drawn like the others, decayed like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt2.model import GPT2, CausalSelfAttention, GPT2Config
from lib.config.fields import Value


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


class GatedAttention(CausalSelfAttention):
    """Standard attention, each head's output times a gate in (0, 1) of the layer's input."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.n_embd, config.n_head, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        y = self.mix(x).transpose(1, 2) * torch.sigmoid(self.gate(x))[..., None]
        return F.dropout(self.c_proj(y.reshape(x.shape)), self.dropout, self.training)


def patch(model: GPT2, cfg: Config, generator: torch.Generator, values: Mapping[str, Value]) -> None:
    """Gate every layer; the projections stay what they are, the gates are drawn from `generator`."""
    for block in model.h:
        vanilla = block.attn
        device = vanilla.c_proj.weight.device
        with torch.device("meta"):
            gated = GatedAttention(model.config)
        gated.c_attn, gated.c_proj = vanilla.c_attn, vanilla.c_proj
        gated.gate.to_empty(device=device)
        if device.type != "meta":
            nn.init.normal_(gated.gate.weight, std=0.02, generator=generator)
            if gated.gate.bias is not None:
                nn.init.zeros_(gated.gate.bias)
        block.attn = gated.train(vanilla.training)
