"""The reciprocal MLP in GPT-2's MLP slots: ra.ReciprocalMLP with its options and layers from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gpt2.model import GPT2
from gpt2.ra_patch import patch_mlp
from gpt2.size import select
from lib.config.fields import Value, sym


@dataclass(frozen=True)
class Config:
    """What ra.ReciprocalMLP takes, and where it goes."""

    rank: int = sym("RMLP_R_FF")
    mixer: bool = sym("RMLP_MIXER")
    token_gates: bool = sym("RMLP_TOKEN_GATES")
    tie_up_low: bool = sym("RMLP_TIE_UP_LOW")
    layers: str = sym("RMLP_LAYERS")


def patch(model: GPT2, cfg: Config, generator: torch.Generator, values: Mapping[str, Value]) -> None:
    """Replace the MLP of the chosen layers. Raises ValueError for sizes that cannot be, naming them."""
    for layer in select(cfg.layers, model.config.n_layer, "RMLP_LAYERS"):
        patch_mlp(
            model,
            layer,
            R_ff=cfg.rank,
            use_mixer=cfg.mixer,
            use_gates=cfg.token_gates,
            tie_up_low=cfg.tie_up_low,
        )
