"""GPT-2 exactly, with two slots per block: `attn` and `mlp`, each [B, T, C] -> [B, T, C].

Pre-norm blocks, learned positions, tanh GELU, tied head, GPT-2's initialisation (Radford et al. 2019; residual
projections scaled by 1/sqrt(2 n_layer)). Logits equal transformers' GPT2LMHeadModel on the same weights
(gpt2/pretrained.py). The names of parameters are GPT-2's without the leading "transformer.".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt2.size import LOSS_ELEMENTS, GPT2Config, pad_vocab

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

__all__ = ["GPT2", "MLP", "Block", "CausalSelfAttention", "GPT2Config", "pad_vocab", "token_loss"]


class CausalSelfAttention(nn.Module):
    """Standard causal attention; the rows of c_attn are Q | K | V."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.n_embd // config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def mix(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, H, T, d]: each head's output before the last projection."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, self.head_dim).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        y = self.c_proj(self.mix(x).transpose(1, 2).reshape(x.shape))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Standard MLP: up, GELU, down; `width` hidden features, 4 C by default."""

    def __init__(self, config: GPT2Config, width: int | None = None) -> None:
        super().__init__()
        width = width or 4 * config.n_embd
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)). A mechanism replaces `attn` or `mlp`."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn: nn.Module = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp: nn.Module = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Token and position embeddings, blocks, final norm, head tied to the token embedding."""

    def __init__(
        self,
        config: GPT2Config,
        generator: torch.Generator | None = None,
        weights_of: GPT2 | None = None,
        device: str = "cpu",
    ) -> None:
        """Weights are drawn from `generator` (seed 0 if none), or copied from an unpatched model of the same config.

        On the device "meta" there are shapes and no weights.
        """
        super().__init__()
        self.config = config
        # Built without storage, so that torch's own initialisation, which would be thrown away, costs nothing. Drawing
        # an embedding on "meta", and to_empty(), would import torch._dynamo and sympy: a second of every start.
        with torch.device("meta"):
            self.wte = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.n_embd), freeze=False)
            self.wpe = nn.Embedding.from_pretrained(torch.empty(config.block_size, config.n_embd), freeze=False)
            self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        if device == "meta":
            return
        self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
        if weights_of is not None:
            self.load_state_dict(weights_of.state_dict())
        else:
            self.init_weights(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """GPT-2's scheme: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), zero biases, unit norms."""
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name or name.startswith("ln_"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, residual if name.endswith("c_proj.weight") else 0.02, generator=generator)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, reduction: Literal["mean", "none"] = "mean"
    ) -> Tensor:
        """Logits [B, T, V] of `idx` [B, T]; with `targets` the mean loss (fp32, nats), or each token's loss [B, T].

        Raises ValueError for more than block_size tokens.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens exceed block_size {self.config.block_size}")
        x = self.wte(idx) + self.wpe.weight[:T]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return F.linear(x, self.wte.weight)
        return token_loss(x, self.wte.weight, targets, reduction)

    @classmethod
    def from_pretrained(cls, name: str, config: GPT2Config | None = None) -> GPT2:
        """The model of a save_pretrained folder or a hub name; see gpt2/pretrained.py. Raises DataError."""
        from gpt2.pretrained import from_pretrained

        return from_pretrained(name, config)

    def to_hf(self) -> GPT2LMHeadModel:
        """transformers' GPT2LMHeadModel with the same logits. Raises ValueError for a patched model: bake it first."""
        from gpt2.pretrained import to_hf

        return to_hf(self)


def token_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    reduction: Literal["mean", "none"] = "mean",
    chunk_elements: int = LOSS_ELEMENTS,
) -> Tensor:
    """Cross-entropy of the tied head in nats, fp32: x [B, T, C], weight [V, C], targets [B, T].

    One plain call while the logits are few (`chunk_elements`); beyond that the rows go in chunks, so that neither the
    logits nor their gradient ever exist whole. torch's own chunked linear_cross_entropy is left aside: it breaks the
    graph under torch.compile(fullgraph=True).
    """
    rows, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    per_chunk = max(1, chunk_elements // weight.shape[0])
    if rows.shape[0] <= per_chunk:
        losses = F.cross_entropy(F.linear(rows, weight).float(), wanted, reduction=reduction)
    elif reduction == "mean" and torch.is_grad_enabled():
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        return _ChunkedLoss.apply(rows, weight, wanted, per_chunk, dtype)  # type: ignore[no-any-return]
    else:
        parts = zip(rows.split(per_chunk), wanted.split(per_chunk), strict=True)
        losses = torch.cat([F.cross_entropy(F.linear(r, weight).float(), t, reduction="none") for r, t in parts])
        losses = losses.mean() if reduction == "mean" else losses
    return losses.view(targets.shape) if reduction == "none" else losses


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy over chunks of rows; the gradients are taken in the forward pass, while a chunk's logits live.

    No product is computed twice. The weight's gradient is summed over chunks in its own precision (fp32).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, per_chunk: int, dtype: torch.dtype) -> Tensor:
        x, w = rows.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        grad_rows, grad_weight = [], torch.zeros_like(weight)
        for part, wanted in zip(x.split(per_chunk), targets.split(per_chunk), strict=True):
            place = wanted[:, None]
            scores = F.log_softmax(part @ w.t(), dim=1, dtype=torch.float32)
            total = total - scores.gather(1, place).sum()
            # d loss / d logits = softmax - one-hot
            slope = scores.exp_().scatter_add_(1, place, -torch.ones_like(place, dtype=scores.dtype))
            slope = slope.mul_(1 / len(targets)).to(dtype)
            grad_rows.append(slope @ w)
            grad_weight += slope.t() @ part
        ctx.save_for_backward(torch.cat(grad_rows).to(rows.dtype), grad_weight)
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        grad_rows, grad_weight = ctx.saved_tensors
        return grad_rows * grad.to(grad_rows.dtype), grad_weight * grad, None, None, None
