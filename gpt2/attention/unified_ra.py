"""Unified reciprocal attention in GPT-2's attention slots: ra.UnifiedRAttention, with R, layers and heads as set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gpt2.model import GPT2
from gpt2.ra_patch import patch_attention
from gpt2.size import ranks, select
from lib.config.fields import Value, sym


@dataclass(frozen=True)
class Config:
    """What ra.UnifiedRAttention takes, and where it goes."""

    rank: int = sym("RA_R")
    rank_top: int = sym("RA_R_TOP")
    share: str = sym("RA_SHARE")
    per_head_gates: bool = sym("RA_PER_HEAD_GATES")
    freeze_gates: bool = sym("RA_FREEZE_GATES")
    w_rec_init: float = sym("RA_W_REC_INIT")
    self_restart: bool = sym("RA_SELF_RESTART")
    rwr_alpha: float | None = sym("RA_RWR_ALPHA")
    layers: str = sym("RA_LAYERS")
    heads: str = sym("RA_HEADS")


def patch(model: GPT2, cfg: Config, generator: torch.Generator, values: Mapping[str, Value]) -> None:
    """Replace the attention of the chosen layers. Raises ValueError for sizes that cannot be, naming the layer's R."""
    c = model.config
    rank = ranks(cfg.rank, cfg.rank_top, c.n_layer)
    for layer in select(cfg.layers, c.n_layer, "RA_LAYERS"):
        patch_attention(
            model,
            layer,
            R=rank[layer],
            share=cfg.share,
            per_head_gates=cfg.per_head_gates,
            freeze_gates=cfg.freeze_gates,
            w_rec_init=cfg.w_rec_init,
            use_self_restart=cfg.self_restart,
            rwr_alpha_init=cfg.rwr_alpha or 0.0,
            heads=select(cfg.heads, c.n_head, "RA_HEADS"),
        )
