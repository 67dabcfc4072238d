"""How fast this machine trains a configuration: a few micro-batches of V0 at its real size, timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from gpt2.model import GPT2
from gpt2.size import config_of, refuse_absurd
from lib.config.fields import Value

TOKENS = {"cuda": 8192, "cpu": 1024}  # of one micro-batch, at least one sequence
SECONDS = 2.0  # of measuring


def measure(values: Mapping[str, Value], vocab_size: int) -> tuple[float, str]:
    """Training tokens per second of one device, eager, without dropout and optimizer; and the device's name."""
    cuda = str(values["GPT2_DEVICE"]) != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    refuse_absurd(values, vocab_size)
    model = GPT2(config_of(values, vocab_size)).to(device).eval()
    block, per_step = int(values["GPT2_BLOCK_SIZE"]), int(values["GPT2_TOKENS_PER_STEP"])
    x = torch.randint(vocab_size, (max(1, min(TOKENS[device.type], per_step) // block), block), device=device)
    half = str(values["GPT2_PRECISION"]) == "bf16"

    def once() -> float:
        began = time.monotonic()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = model(x, x)
        loss.backward()
        if cuda:
            torch.cuda.synchronize()
        return time.monotonic() - began

    seconds = [once()]
    if seconds[0] < SECONDS:  # the first pass is slower than the others; where passes are long that matters less
        seconds = []
        while sum(seconds) < SECONDS:
            seconds.append(once())
    return x.numel() / statistics.median(seconds), torch.cuda.get_device_name() if cuda else "this CPU"
