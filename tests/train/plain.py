"""A model of torch's own parts and settings without Kconfig, for programs whose imports are counted."""

import types

import numpy as np
import torch
from torch import nn

VALUES = {
    "GPT2_DEVICE": "cpu", "GPT2_NGPUS": 0, "GPT2_MICRO_BATCH": 2, "GPT2_COMPILE": False, "GPT2_THREADS": 1,
    "GPT2_DIST_TIMEOUT": 60, "GPT2_WANDB": False, "GPT2_WANDB_PROJECT": None, "GPT2_WANDB_MODE": None,
    "GPT2_TENSORBOARD": False, "GPT2_TOKENS_PER_STEP": 32, "GPT2_GRAD_CLIP": 1.0, "GPT2_COUPLING_WARMUP": 0.1,
    "GPT2_EVAL_INTERVAL": 5, "GPT2_EVAL_WINDOWS": 4, "GPT2_PRECISION": "fp32", "GPT2_LOG_INTERVAL": 1,
    "GPT2_CHECKPOINT_INTERVAL": 0, "GPT2_KEEP_CHECKPOINTS": 2, "GPT2_OPTIMIZER": "muon", "GPT2_LEARNING_RATE": 1e-2,
    "GPT2_MUON_LR": 0.02, "GPT2_WEIGHT_DECAY": 0.1, "GPT2_BETA1": 0.9, "GPT2_BETA2": 0.95, "SPAM_THETA": None,
    "SPAM_INTERVAL": None, "SPAM_WARMUP": None, "GPT2_SCHEDULE": "cosine", "GPT2_WARMUP": 0.1, "GPT2_DECAY": None,
    "GPT2_MIN_LR": 1e-3,
}  # fmt: skip


class Plain(nn.Module):
    """The next token from this one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.fc, self.head = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor, y: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        scores = self.head(torch.tanh(self.fc(self.wte(x))))
        losses = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction=reduction)
        return losses.view(y.shape) if reduction == "none" else losses


def data() -> types.SimpleNamespace:
    """Tokens that count."""
    tokens = (np.arange(400) % 16).astype(np.uint16)
    return types.SimpleNamespace(
        train=tokens, val=tokens[:100], vocab_size=16, token_bytes=np.ones(16, np.int64), fingerprint="f"
    )
