"""The axes of a matrix and what it asks, from settings."""

from __future__ import annotations

from dataclasses import dataclass

from lib.config.errors import ConfigError
from lib.config.fields import sym


@dataclass(frozen=True)
class MatrixConfig:
    """Lists are kept as written; the properties split them. Raises ConfigError for an empty or repeated axis value."""

    steps: str = sym("GPT2_STEPS")
    seeds: str = sym("GPT2_SEEDS")
    optimizers: str = sym("GPT2_OPTIMIZERS")
    contrasts: str = sym("GPT2_CONTRASTS")
    output: str = sym("GPT2_OUTPUT")
    baseline: str = sym("GPT2_BASELINE")
    parallel_runs: int = sym("GPT2_PARALLEL_RUNS")

    @property
    def step_list(self) -> list[str]:
        """Steps in the order given."""
        return _axis("GPT2_STEPS", self.steps)

    @property
    def seed_list(self) -> list[int]:
        """Seeds in the order given."""
        return [int(seed) for seed in _axis("GPT2_SEEDS", " ".join(str(int(s)) for s in words(self.seeds)))]

    @property
    def optimizer_list(self) -> list[str]:
        """Optimizers, or an empty list for the one that GPT2_OPTIMIZER names."""
        return _axis("GPT2_OPTIMIZERS", self.optimizers) if self.optimizers.strip() else []

    @property
    def contrast_list(self) -> list[tuple[str, str]]:
        """Declared pairs (arm, reference); without any, each step against the first."""
        pairs = [tuple(word.split("-")) for word in words(self.contrasts)]
        for pair in pairs:
            if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
                raise ConfigError(f"GPT2_CONTRASTS: {'-'.join(pair)!r} is no pair arm-reference, such as V1-V0")
        first, *others = self.step_list
        return [(arm, reference) for arm, reference in pairs] or [(step, first) for step in others]


def words(text: str) -> list[str]:
    """The entries of a list setting: separated by spaces or commas."""
    return text.replace(",", " ").split()


def _axis(symbol: str, text: str) -> list[str]:
    entries = words(text)
    if not entries:
        raise ConfigError(f"{symbol} is empty; name at least one, separated by spaces")
    again = next((e for e in entries if entries.count(e) > 1), None)
    if again is not None:
        raise ConfigError(f"{symbol} names {again} twice; a run exists once")
    return entries
