"""How fast this machine trains a configuration: a few micro-batches of V0 at its real size, timed."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from gpt2.model import GPT2
from gpt2.size import config_of, refuse_absurd
from lib.config.fields import Value

TOKENS = 8192  # of one micro-batch
SECONDS = 3.0  # of measuring, at least two passes


def measure(values: Mapping[str, Value], vocab_size: int) -> tuple[float, str]:
    """Training tokens per second of one device, eager, without the optimizer; and the device's name."""
    cuda = str(values["GPT2_DEVICE"]) != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    refuse_absurd(values, vocab_size)
    model = GPT2(config_of(values, vocab_size)).to(device)
    block, per_step = int(values["GPT2_BLOCK_SIZE"]), int(values["GPT2_TOKENS_PER_STEP"])
    rows = max(1, min(TOKENS, per_step) // block)
    x = torch.randint(vocab_size, (rows, block), device=device)
    half = str(values["GPT2_PRECISION"]) == "bf16"

    def once() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = model(x, x)
        loss.backward()
        if cuda:
            torch.cuda.synchronize()

    once()
    passes, began = 0, time.monotonic()
    while passes < 2 or time.monotonic() - began < SECONDS:
        once()
        passes += 1
    rate = passes * x.numel() / (time.monotonic() - began)
    return rate, torch.cuda.get_device_name() if cuda else "this CPU"
