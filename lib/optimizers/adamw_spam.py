"""AdamW, with SPAM's two defences against gradient spikes (Huang et al. 2025, arXiv 2501.06842, algorithm 1).

Spike-aware clipping: where g² > θ·v, with v the running second moment before this step, g becomes sign(g)·√(θ·v).
Momentum reset: every `interval` steps both moments start again from zero, and the learning rate warms up behind it.
With θ = 0 and interval = 0 neither happens and this is AdamW to the bit, in the same fused kernel.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# v says nothing about a coordinate until it has seen some gradients: no clipping in the first steps after a reset
# (the authors' code waits 20).
GRACE = 20
# Where the warm-up behind a reset begins, as a share of the learning rate (the authors' code: 1 − 0.99).
WARMUP_FLOOR = 0.01


def warmup_scale(since_reset: int, warmup: int) -> float:
    """The learning rate's factor `since_reset` steps after a reset: half a cosine from 0.01 to 1."""
    if since_reset >= warmup:
        return 1.0
    return 1.0 - (1.0 - WARMUP_FLOOR) * 0.5 * (1.0 + math.cos(math.pi * since_reset / (warmup + 1)))


class AdamWSPAM(Optimizer):
    """Fused AdamW with spike-aware clipping (`theta`, 0: off) and momentum reset (`interval` steps, 0: never).

    The `warmup` steps after a reset scale the update, not the decoupled decay, as in the authors' code. Bias correction
    starts again with the moments (theirs runs on). No step synchronises with the device. `found_inf`, a one-element
    tensor that a caller may set, makes the kernel skip its update when it is 1: weights, moments and step counts stay
    (a reset that is due happens all the same). Clipping changes gradients in place.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        theta: float = 50.0,
        interval: int = 1000,
        warmup: int = 1000,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or theta < 0 or interval < 0 or warmup < 0:
            raise ValueError(
                "lr, eps, weight_decay, theta, interval and warmup must not be negative, got "
                f"{(lr, eps, weight_decay, theta, interval, warmup)}"
            )
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "updates": 0}
        defaults.update(theta=theta, interval=interval, warmup=warmup)
        without_dynamo()
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` re-evaluates the loss, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["updates"] += 1
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads: list[Tensor] = [p.grad for p in params]
        moments, squares, steps = self._state(params)
        resets, interval = group["updates"] // group["interval"] if group["interval"] else 0, group["interval"]
        since_reset = group["updates"] - resets * interval
        if resets and since_reset == 0:
            for tensors in (moments, squares, steps):
                torch._foreach_zero_(tensors)
        if group["theta"] and since_reset >= GRACE:
            clip_spikes(grads, squares, group["theta"])
        scale = warmup_scale(since_reset, group["warmup"]) if resets else 1.0
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params,
            grads,
            moments,
            squares,
            [],
            steps,
            lr=group["lr"] * scale,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"] / scale,  # the kernel multiplies it by its own, scaled lr
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf.reshape(())] * len(steps))

    def _state(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """First moments, second moments and step counts of `params`, begun at zero where there are none."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        states = [self.state[p] for p in params]
        return [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [s["step"] for s in states]


def clip_spikes(grads: list[Tensor], squares: list[Tensor], theta: float) -> None:
    """Clamp each gradient in place into ±√(θ·v): where g² > θ·v that is sign(g)·√(θ·v), elsewhere g itself."""
    bounds = torch._foreach_sqrt(squares)
    torch._foreach_mul_(bounds, math.sqrt(theta))
    torch._foreach_minimum_(grads, bounds)
    torch._foreach_neg_(bounds)
    torch._foreach_maximum_(grads, bounds)


def without_dynamo() -> None:
    """Spare an eager run the import of torch._dynamo (1.8 s of a 3.5 s start, CPU, torch 2.13).

    torch.optim.Optimizer imports it on first use only to exclude four methods from compilation; a process that has not
    imported it has compiled nothing. Without effect where torch no longer has that mark.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method
