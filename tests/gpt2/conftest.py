"""Resolved settings of any step at any size, and transformers' GPT-2 with weights far from their start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib.config.resolve import Resolver, RunSpec
from lib.config.sources import VARIABLE, Assignment

ROOT = Path(__file__).resolve().parent.parent.parent
RESOLVER = Resolver(ROOT)
# A model that trains in milliseconds and yet is wide enough for R = 16 and R_ff = 256, which steps set.
SMALL = {"GPT2_N_LAYER": 3, "GPT2_N_HEAD": 4, "GPT2_N_EMBD": 128, "GPT2_BLOCK_SIZE": 32, "GPT2_TOKENS_PER_STEP": 320}


@pytest.fixture(scope="session")
def steps() -> list[str]:
    """The names of all steps."""
    return RESOLVER.steps


@pytest.fixture(scope="session")
def specify() -> Callable[..., RunSpec]:
    """specify("V1", GPT2_N_LAYER=2): that run; Mechanism symbols may be set too."""

    def resolve(step: str = "V0", **symbols: Any) -> RunSpec:
        text = {name: ("n", "y")[value] if isinstance(value, bool) else str(value) for name, value in symbols.items()}
        given = [Assignment(RESOLVER.schema.options[name], t, VARIABLE, "test") for name, t in text.items()]
        return RESOLVER.spec(given, step=step)

    return resolve


@pytest.fixture(scope="session")
def small(specify: Callable[..., RunSpec]) -> Callable[..., RunSpec]:
    """As `specify`, at a small size without dropout."""
    return lambda step="V0", **symbols: specify(step, **(SMALL | {"GPT2_DROPOUT": "0.0"} | symbols))


@pytest.fixture(scope="session")
def transformers_gpt2() -> Callable[..., Any]:
    """transformers_gpt2(n_embd=32): a GPT2LMHeadModel in eval mode whose every weight and bias is random."""
    transformers = pytest.importorskip("transformers")

    def make(seed: int = 0, **sizes: Any) -> Any:
        sizes = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4} | sizes
        config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
        model = transformers.GPT2LMHeadModel(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                # Features of order one: where tanh and erf GELU, say, differ by more than the tests allow.
                scale = 0.1 if parameter.dim() == 1 else parameter.shape[0] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.weight.add_(1.0)
        return model.eval()

    return make
