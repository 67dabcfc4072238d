"""From a model and its settings to optimizers: who is decayed, who goes to Muon, and one handle for all of them.

Matrices and embeddings decay; vectors (gates, biases, norms) do not, nor what a module names in its `no_weight_decay`
(a tuple of parameter names; an attribute of the parameter would not survive a deep copy). Under Muon (Jordan 2024)
hidden matrices go to torch.optim.Muon, everything else to AdamW.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.config.errors import ConfigError, RunError
from lib.config.fields import sym
from lib.optimizers.adamw_spam import AdamWSPAM


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and its numbers."""

    name: str = sym("GPT2_OPTIMIZER")
    learning_rate: float = sym("GPT2_LEARNING_RATE")
    muon_lr: float | None = sym("GPT2_MUON_LR")
    weight_decay: float = sym("GPT2_WEIGHT_DECAY")
    beta1: float = sym("GPT2_BETA1")
    beta2: float = sym("GPT2_BETA2")
    spam_theta: float | None = sym("SPAM_THETA")
    spam_interval: int | None = sym("SPAM_INTERVAL")
    spam_warmup: int | None = sym("SPAM_WARMUP")


class GuardedMuon(torch.optim.Muon):
    """torch's Muon that leaves weights and momentum alone when `found_inf` is 1, without asking the host."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, taken back on the device if `found_inf` says so."""
        if self.found_inf is None:
            return super().step(closure)  # type: ignore[no-untyped-call]
        touched = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # The momentum too, from the first step on: torch would begin it only inside the step.
        touched += [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in touched]
        before = [t.detach().clone() for t in touched]
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        skip = self.found_inf.bool()
        for tensor, old in zip(touched, before, strict=True):
            tensor.copy_(torch.where(skip, old, tensor))
        return loss


class Optimizers:
    """The optimizers of one model as one: step, zero, scale the learning rate, save and load by parameter name."""

    def __init__(self, parts: Sequence[tuple[AdamWSPAM | GuardedMuon, float]], names: Mapping[Any, str]) -> None:
        self.parts = parts  # each with its peak learning rate
        self.names = names

    def set_factor(self, factor: float) -> None:
        """Set every learning rate to `factor` of its peak."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor

    def step(self, skip: Tensor | None = None) -> None:
        """One update. `skip`, a float tensor of one element on the parameters' device, turns it into none where 1."""
        for optimizer, _ in self.parts:
            optimizer.found_inf = skip
            optimizer.step()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for parameter in self.names:
            parameter.grad = None

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the first optimizer (AdamW's)."""
        return float(self.parts[0][0].param_groups[0]["lr"])

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor as `<parameter>.<state>`; nothing is copied."""
        return {
            f"{self.names[p]}.{key}": value
            for optimizer, _ in self.parts
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }

    def counters(self) -> list[list[int]]:
        """Updates counted by each group of each optimizer (0 where it counts none)."""
        return [[int(g.get("updates", 0)) for g in optimizer.param_groups] for optimizer, _ in self.parts]

    def load(self, tensors: Mapping[str, Tensor], counters: list[list[int]]) -> None:
        """Take over what `tensors` and `counters` returned; no tensors at all are the state before the first step.

        Raises RunError when it belongs to other parameters.
        """
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, state = key.rpartition(".")
            by_parameter.setdefault(name, {})[state] = value
        own = {name: p for p, name in self.names.items()}
        strange = sorted(n for n, state in by_parameter.items() if n not in own or not _fits(own[n], state))
        if strange or [len(row) for row in counters] != [len(row) for row in self.counters()]:
            raise RunError(f"the checkpoint's optimizer state is of another model or optimizer ({strange[:3]})")
        for (optimizer, _), row in zip(self.parts, counters, strict=True):
            for group, updates in zip(optimizer.param_groups, row, strict=True):
                if "updates" in group:
                    group["updates"] = updates
                for p in group["params"]:
                    saved = by_parameter.get(self.names[p], {})
                    optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in saved.items()}


def _fits(parameter: Tensor, state: Mapping[str, Tensor]) -> bool:
    """Whether these are states of such a parameter: counts, or tensors of its shape."""
    return all(value.dim() == 0 or value.shape == parameter.shape for value in state.values())


def build(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers of `model`. Raises ConfigError for an unknown name."""
    named = {p: n for n, p in model.named_parameters() if p.requires_grad}
    rest: list[Tensor] = list(named)
    hidden: set[Tensor] = set()
    parts: list[tuple[AdamWSPAM | GuardedMuon, float]] = []
    if config.name == "muon":
        hidden = hidden_matrices(model)
        rest = [p for p in named if p not in hidden]
    elif config.name not in ("adamw", "adamwspam"):
        raise ConfigError(f"GPT2_OPTIMIZER is {config.name}; optimizers: adamw adamwspam muon")
    spam = config.name == "adamwspam"
    adamw = AdamWSPAM(
        groups(rest, config.weight_decay, spared(model)),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        theta=float(config.spam_theta or 0) if spam else 0.0,
        interval=int(config.spam_interval or 0) if spam else 0,
        warmup=int(config.spam_warmup or 0) if spam else 0,
    )
    parts.append((adamw, config.learning_rate))
    if config.name == "muon" and hidden:
        peak = float(config.muon_lr or config.learning_rate)
        matrices = [p for p in named if p in hidden]
        parts.append((GuardedMuon(matrices, lr=peak, weight_decay=config.weight_decay), peak))
    return Optimizers(parts, named)


def spared(model: nn.Module) -> set[Tensor]:
    """The parameters without weight decay: vectors, and those that their module lists in `no_weight_decay`."""
    listed = {getattr(m, name) for m in model.modules() for name in getattr(m, "no_weight_decay", ())}
    return {p for p in model.parameters() if p.dim() < 2 or p in listed}


def groups(parameters: Iterable[Tensor], weight_decay: float, without: Collection[Tensor]) -> list[dict[str, Any]]:
    """Parameter groups with and `without` decay, in the order given; an empty group is left out."""
    listed = list(parameters)
    decayed = [p for p in listed if p not in without]
    both = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in listed if p in without], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """The two-dimensional weights between the embeddings and the output: Muon's share.

    Weights of embeddings (and an output tied to one), of a module named lm_head, and those without decay stay out.
    """
    outside = spared(model)
    outside |= {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    outside |= {p for n, p in model.named_parameters() if "lm_head" in n.split(".")}
    return {p for p in model.parameters() if p.requires_grad and p.dim() == 2 and p not in outside}
