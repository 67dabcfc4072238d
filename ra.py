"""Reciprocal attention and the reciprocal MLP: the idea itself, on torch alone.

Both mechanisms are *folded into the weights*. A gate multiplies rows (or columns) of a weight matrix, not activations,
so the forward pass is GPT-2's own: one projection, one causal SDPA, one projection. Per head, with d = D_std + R:

    Qf = [Q_std | K_low]   Kf = [K_std | Q_low]
    score_ij = w_std q_i^std . k_j^std + w_rec k_i^low . q_j^low          (two terms; there are no cross terms)

untied  K_low and Q_low have rows of their own: standard attention with renamed rows and two gates
tied    q^low = q^std[:R], k^low = k^std[:R]: the same rows used twice, which makes the second term truly reciprocal

Every reciprocal pathway carries `coupling_scale` s in [0, 1], and is absent at s = 0. Equations: docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ReciprocalMLP", "UnifiedRAttention"]


def towards(gate: Tensor, scale: Tensor) -> Tensor:
    """1 + s (w - 1): the gate grown from 1. Written so that w = 1 and s = 0 are exact in floating point."""
    return 1.0 + scale * (gate - 1.0)


class UnifiedRAttention(nn.Module):
    """Causal multi-head attention in the folded layout; [B, T, C] in and out.

    Parameters: c_attn (rows Qf | Kf | V), c_proj, w_std and w_rec ([H'], or [1] with one pair per layer), rwr_alpha
    ([H]) only with `use_self_restart`; H' is the number of reciprocal heads. `c_attn.weight` is [3C, C], out x in; the
    tied fold stores the shared rows once, so it is [3C - 2 R H', C] there.

    Shapes: B batch, T tokens, C = n_embd, H = n_head, d = C / H.
    """

    gate_prefix = "unified_ra"  # of the names of its statistics in a whole model's
    coupling_scale: Tensor
    head_index: Tensor
    row_index: Tensor | None

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        R: int = 4,
        dropout: float = 0.1,
        use_self_restart: bool = False,
        per_head_gates: bool = True,
        share: str = "untied",
        *,
        bias: bool = True,
        heads: Sequence[int] | None = None,
        w_rec_init: float | None = None,
        rwr_alpha_init: float = 0.05,
        freeze_gates: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        """`R` reciprocal dimensions per head, on `heads` (default all). `w_rec_init`: 1 untied, 0.1 tied by default.

        `device` "meta" leaves the projections without storage, for `adopt` to put others in their place.

        Raises ValueError for sizes that cannot be, naming them.
        """
        super().__init__()
        if n_head < 1 or n_embd < 1 or n_embd % n_head:
            raise ValueError(f"n_embd {n_embd} is no positive multiple of n_head {n_head}")
        d = n_embd // n_head
        if share not in ("untied", "tied"):
            raise ValueError(f"share is 'untied' or 'tied', not {share!r}")
        most = d - 1 if share == "untied" else d // 2
        if not 1 <= R <= most:
            raise ValueError(f"R {R} is outside 1..{most} for head width {d} ({share} fold)")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout {dropout} is outside [0, 1)")
        if not 0.0 <= rwr_alpha_init <= 0.5:
            raise ValueError(f"rwr_alpha_init {rwr_alpha_init} is outside [0, 0.5]")
        chosen = list(range(n_head)) if heads is None else sorted(set(heads))
        if not chosen or chosen[0] < 0 or chosen[-1] >= n_head:
            raise ValueError(f"heads {list(heads or [])} are not indices of {n_head} heads")
        self.n_embd, self.n_head, self.head_dim, self.R = n_embd, n_head, d, R
        self.share, self.heads, self.dropout = share, tuple(chosen), dropout

        index = _tied_rows(n_head, d, R, chosen) if share == "tied" else None
        self.register_buffer("row_index", index, persistent=False)
        self.register_buffer("head_index", torch.tensor(chosen), persistent=False)
        rows = 3 * n_embd if index is None else 3 * n_embd - 2 * R * len(chosen)
        self.c_attn = nn.Linear(n_embd, rows, bias=bias, device=device)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias, device=device)
        gates = len(chosen) if per_head_gates else 1
        if w_rec_init is None:
            w_rec_init = 1.0 if share == "untied" else 0.1
        self.w_std = nn.Parameter(torch.ones(gates), requires_grad=not freeze_gates)
        self.w_rec = nn.Parameter(torch.full((gates,), float(w_rec_init)), requires_grad=not freeze_gates)
        if use_self_restart:
            self.rwr_alpha = nn.Parameter(torch.full((n_head,), float(rwr_alpha_init)))
        self.register_buffer("coupling_scale", torch.ones(()), persistent=False)

    @property
    def use_self_restart(self) -> bool:
        """Whether the output mixes each token's own value back in."""
        return hasattr(self, "rwr_alpha")

    def query_scale(self) -> Tensor:
        """[C]: what multiplies each row of Qf: w_std on the first D_std dimensions of a head, w_rec on the last R."""
        s, count = self.coupling_scale, len(self.heads)
        std = towards(self.w_std, s).expand(count)
        rec = (towards(self.w_rec, s) if self.share == "untied" else s * self.w_rec).expand(count)
        per_head = torch.cat(
            [std[:, None].expand(count, self.head_dim - self.R), rec[:, None].expand(count, self.R)], dim=1
        )
        if count < self.n_head:
            whole = torch.ones(self.n_head, self.head_dim, dtype=per_head.dtype, device=per_head.device)
            per_head = whole.index_copy(0, self.head_index, per_head)
        return per_head.reshape(-1)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The effective fused projection ([3C, C], [3C]): rows gathered and scaled, O(C^2), no activation touched."""
        weight: Tensor = self.c_attn.weight
        bias: Tensor | None = self.c_attn.bias
        if self.row_index is not None:
            weight = weight.index_select(0, self.row_index)
            bias = None if bias is None else bias.index_select(0, self.row_index)
        scale = F.pad(self.query_scale(), (0, 2 * self.n_embd), value=1.0)
        return weight * scale[:, None], None if bias is None else bias * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C], causal."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, self.head_dim).transpose(1, 2)
            for part in F.linear(x, *self.folded()).chunk(3, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        if self.use_self_restart:
            y = torch.lerp(y, v, self.restart()[:, None, None].to(y.dtype))
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)

    def restart(self) -> Tensor:
        """[H]: s * alpha, alpha clamped to [0, 0.5]."""
        return self.coupling_scale * self.rwr_alpha.clamp(0.0, 0.5)

    @torch.no_grad()
    def adopt(self, c_attn: nn.Linear, c_proj: nn.Linear) -> None:
        """Work on a standard layer's projections: untied, on those very parameters; w = 1 or s = 0 changes nothing.

        The tied fold takes a copy that keeps the first D_std rows of each head's Q and K and drops the others.
        """
        if self.row_index is not None:
            kept = self._stored_rows().to(c_attn.weight.device)
            c_attn = linear_of(c_attn.weight[kept], None if c_attn.bias is None else c_attn.bias[kept])
        self.c_attn, self.c_proj = c_attn, c_proj

    def _stored_rows(self) -> Tensor:
        """Rows of a vanilla fused projection that c_attn stores, in its order."""
        if self.row_index is None:
            return torch.arange(3 * self.n_embd)
        return _kept_rows(self.n_head, self.head_dim, self.R, self.heads)

    @torch.no_grad()
    def from_pretrained_qkv(
        self,
        W_q: Tensor,
        W_k: Tensor,
        W_v: Tensor,
        b_q: Tensor | None = None,
        b_k: Tensor | None = None,
        b_v: Tensor | None = None,
    ) -> UnifiedRAttention:
        """Start from separate projections ([C, C], out x in; biases [C]) with the low block transposed on purpose.

        Qf takes W_k's low rows and Kf takes W_q's, so at w = 1 the scores differ from the baseline's by
        S_low -> S_low^T and nothing else. The tied fold has no low rows: it takes the standard ones. Returns self.
        """
        C = self.n_embd
        for name, matrix in (("W_q", W_q), ("W_k", W_k), ("W_v", W_v)):
            if matrix.shape != (C, C):
                raise ValueError(f"{name} is {tuple(matrix.shape)}, not ({C}, {C})")
        biases = [b_q, b_k, b_v]
        if self.c_attn.bias is None and any(b is not None for b in biases):
            raise ValueError("biases given to a layer that was built with bias=False")
        fused = torch.cat([W_q, W_k, W_v]).to(self.c_attn.weight)
        zero = fused.new_zeros(C)
        offset = torch.cat([zero if b is None else b.to(fused) for b in biases])
        order = self._stored_rows().to(fused.device)
        if self.share == "untied":
            low = [h * self.head_dim + i for h in self.heads for i in range(self.head_dim - self.R, self.head_dim)]
            q_low = torch.tensor(low, device=fused.device)
            order[q_low], order[q_low + C] = q_low + C, q_low
        self.c_attn.weight.copy_(fused[order])
        if self.c_attn.bias is not None:
            self.c_attn.bias.copy_(offset[order])
        return self

    @torch.no_grad()
    def bake(self) -> tuple[nn.Linear, nn.Linear]:
        """Plain c_attn [3C, C] and c_proj with which standard attention computes the same function.

        Raises ValueError with self-restart: its term alpha v is no part of standard attention.
        """
        if self.use_self_restart:
            raise ValueError("cannot bake the self-restart term alpha v into standard attention")
        return linear_of(*self.folded()), linear_of(self.c_proj.weight, self.c_proj.bias)

    def gates(self) -> dict[str, Tensor]:
        """The learned scalars: w_std, w_rec and, with self-restart, rwr_alpha as it acts (clamped)."""
        found: dict[str, Tensor] = {"w_std": self.w_std, "w_rec": self.w_rec}
        if self.use_self_restart:
            found["rwr_alpha"] = self.rwr_alpha.clamp(0.0, 0.5)
        return found

    def get_gate_stats(self) -> dict[str, float]:
        """w_std_mean, _std, _min, _max and so on for each of `gates`. Waits for the device."""
        return statistics(self.gates())


@torch.no_grad()
def statistics(gates: Mapping[str, Tensor]) -> dict[str, float]:
    """NAME_mean, NAME_std (0 for one value), NAME_min and NAME_max of each tensor, fetched in one transfer."""
    if not gates:
        return {}
    rows = [torch.stack([g.mean(), g.std(correction=0), g.min(), g.max()]) for g in gates.values()]
    names = [f"{name}_{what}" for name in gates for what in ("mean", "std", "min", "max")]
    return dict(zip(names, torch.cat(rows).float().tolist(), strict=True))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of these values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _kept_rows(n_head: int, d: int, R: int, heads: Sequence[int]) -> Tensor:
    """Rows of the vanilla [Q | K | V] that a tied layer stores: all but each reciprocal head's last R in Q and K."""
    tied = set(heads)
    one = [h * d + i for h in range(n_head) for i in range(d - R if h in tied else d)]
    C = n_head * d
    return torch.tensor(one + [C + row for row in one] + list(range(2 * C, 3 * C)))


def _tied_rows(n_head: int, d: int, R: int, heads: Sequence[int]) -> Tensor:
    """[3C]: for each row of [Qf | Kf | V] the stored row it is, low rows being the other side's first R."""
    C, tied = n_head * d, set(heads)
    place = {row: at for at, row in enumerate(_kept_rows(n_head, d, R, heads).tolist())}
    index = []
    for side, other in ((0, C), (C, 0)):
        for h in range(n_head):
            std = d - R if h in tied else d
            index += [place[side + h * d + i] for i in range(std)]
            index += [place[other + h * d + i] for i in range(d - std)]
    index += [place[2 * C + i] for i in range(C)]
    return torch.tensor(index)


class ReciprocalMLP(nn.Module):
    """GPT-2's MLP with its hidden features split [h_std | h_low], D_ff = expansion * C = D_std + R_ff.

        h = gelu(W_up x);   out = W_down [w_std h_std | w_rec g_t M h_low]

    w_std, w_rec and the mixer M (R_ff x R_ff) are folded into W_down; the per-token gate g_t = sigmoid(u . x_t + b) is
    the one term that is not a weight. Without it this is the standard MLP's function class. [..., C] in and out.
    """

    gate_prefix = "rmlp"
    no_weight_decay = ("mixer",)  # it starts at the identity, from which decay to zero would lead away
    coupling_scale: Tensor

    def __init__(
        self,
        n_embd: int,
        expansion: int = 4,
        R_ff: int = 64,
        use_mixer: bool = False,
        use_gates: bool = False,
        tie_up_low: bool = False,
        *,
        dropout: float = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        """Raises ValueError for sizes that cannot be, naming them. `device` is as in UnifiedRAttention."""
        super().__init__()
        d_ff = expansion * n_embd
        most = d_ff // 2 if tie_up_low else d_ff - 1
        if n_embd < 1 or expansion < 1 or not 1 <= R_ff <= most:
            raise ValueError(f"R_ff {R_ff} is outside 1..{most} for {d_ff} hidden features")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout {dropout} is outside [0, 1)")
        self.n_embd, self.d_ff, self.R_ff = n_embd, d_ff, R_ff
        self.tie_up_low, self.dropout = tie_up_low, dropout
        self.c_fc = nn.Linear(n_embd, d_ff - R_ff if tie_up_low else d_ff, bias=bias, device=device)
        self.c_proj = nn.Linear(d_ff, n_embd, bias=bias, device=device)
        self.w_std = nn.Parameter(torch.ones(1))
        self.w_rec = nn.Parameter(torch.ones(1))
        self.mixer = nn.Parameter(torch.eye(R_ff)) if use_mixer else None
        # sigmoid(4) = 0.98: the gate starts almost open, with a gradient.
        self.gate_alpha = nn.Parameter(torch.zeros(n_embd)) if use_gates else None
        self.gate_bias = nn.Parameter(torch.full((1,), 4.0)) if use_gates else None
        self.register_buffer("coupling_scale", torch.ones(()), persistent=False)

    def folded_up(self) -> tuple[Tensor, Tensor | None]:
        """The effective up-projection ([D_ff, C], [D_ff]); tied, its last R_ff rows are the first ones again."""
        weight: Tensor = self.c_fc.weight
        bias: Tensor | None = self.c_fc.bias
        if self.tie_up_low:
            weight = torch.cat([weight, weight[: self.R_ff]])
            bias = None if bias is None else torch.cat([bias, bias[: self.R_ff]])
        return weight, bias

    def folded_down(self) -> Tensor:
        """The effective down-projection [C, D_ff]: all columns scaled, the low ones mixed."""
        s, std = self.coupling_scale, self.d_ff - self.R_ff
        w_std, w_rec = towards(self.w_std, s), towards(self.w_rec, s)
        weight: Tensor = self.c_proj.weight * torch.cat([w_std.expand(std), w_rec.expand(self.R_ff)])
        if self.mixer is not None:
            # W M(s) = W + s W (M - I): nothing is added, to the bit, at s = 0 or M = I, whatever the precision.
            shift = self.mixer - torch.eye(self.R_ff, dtype=self.mixer.dtype, device=self.mixer.device)
            weight[:, std:].add_(s * w_rec * (self.c_proj.weight[:, std:] @ shift))
        return weight

    def token_gate(self, x: Tensor) -> Tensor:
        """[..., 1]: 1 + s (g_t - 1)."""
        assert self.gate_alpha is not None
        g = torch.sigmoid(F.linear(x, self.gate_alpha[None, :], self.gate_bias))
        return towards(g, self.coupling_scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        h = F.gelu(F.linear(x, *self.folded_up()), approximate="tanh")
        if self.gate_alpha is not None:
            # In place, and one GEMM: two would change the order of summation, and s = 0 would no longer be the standard
            # MLP to the bit; a copy would cost its memory. The GELU's backward pass needs its input, not this output.
            h[..., -self.R_ff :].mul_(self.token_gate(x).to(h.dtype))
        return F.dropout(F.linear(h, self.folded_down(), self.c_proj.bias), self.dropout, self.training)

    @torch.no_grad()
    def adopt(self, c_fc: nn.Linear, c_proj: nn.Linear) -> None:
        """Work on a standard MLP's projections, on those very parameters; tied, without up's last R_ff rows."""
        if self.tie_up_low:
            rows = self.d_ff - self.R_ff
            c_fc = linear_of(c_fc.weight[:rows], None if c_fc.bias is None else c_fc.bias[:rows])
        self.c_fc, self.c_proj = c_fc, c_proj

    @torch.no_grad()
    def bake(self) -> tuple[nn.Linear, nn.Linear]:
        """Plain c_fc and c_proj of the same function. Raises ValueError with a per-token gate."""
        if self.gate_alpha is not None:
            raise ValueError("cannot bake the per-token gate g_t of the reciprocal MLP into weights")
        return linear_of(*self.folded_up()), linear_of(self.folded_down(), self.c_proj.bias)

    def gates(self) -> dict[str, Tensor]:
        """The learned scalars: w_std, w_rec; the mixer's distance from I (Frobenius); the token gate's u and b."""
        found: dict[str, Tensor] = {"w_std": self.w_std, "w_rec": self.w_rec}
        if self.mixer is not None:
            shift = self.mixer - torch.eye(self.R_ff, dtype=self.mixer.dtype, device=self.mixer.device)
            found["mixer_distance"] = shift.norm()[None]
        if self.gate_alpha is not None and self.gate_bias is not None:
            found |= {"gate_alpha": self.gate_alpha, "gate_bias": self.gate_bias}
        return found

    def get_gate_stats(self) -> dict[str, float]:
        """w_std_mean, _std, _min, _max and so on for each of `gates`. Waits for the device."""
        return statistics(self.gates())
