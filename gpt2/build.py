"""From resolved settings to the model of an arm: vanilla weights first, then the mechanism.

The weights come from the init stream of the seed (or from a pretrained model), new parameters from a stream of their
own, so what arms share is equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.model import GPT2
from gpt2.ra_patch import patch_model, run_seed
from gpt2.size import config_of, refuse_absurd
from lib.config.errors import ConfigError
from lib.config.fields import Value, fill, sym
from lib.config.streams import stream_seed


@dataclass(frozen=True)
class StartConfig:
    """Where the weights come from: a save_pretrained folder, a name on the model hub, or empty for random ones."""

    init_from: str = sym("GPT2_INIT_FROM")


def build(values: Mapping[str, Value], seed: int, vocab_size: int, base: Path) -> GPT2:
    """The model of the arm that `values` describe; relative folders start at `base`.

    Raises ConfigError for sizes that cannot be, DataError for pretrained weights that are absent or do not fit.
    """

    def generator(stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(run_seed(seed, values), stream))

    refuse_absurd(values, vocab_size)
    config, start = config_of(values, vocab_size), fill(StartConfig, values).init_from
    if start:
        model = GPT2.from_pretrained(str(base / start) if (base / start).is_dir() else start, config)
    else:
        model = GPT2(config, generator=generator("init"))
    try:
        patch_model(model, values, generator("mechanism"))
    except ValueError as error:
        raise ConfigError(f"{error}; change the step, GPT2_N_EMBD or GPT2_N_HEAD") from error
    return model
