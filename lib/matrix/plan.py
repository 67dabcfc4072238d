"""From specifications to cells: which directory each run has, the command that trains it, and what must be equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.config.errors import ConfigError
from lib.config.fields import Value
from lib.config.resolve import RunSpec
from lib.run import directory
from lib.run.files import read_json


@dataclass(frozen=True)
class Cell:
    """One run of the matrix: its specification, its directory, the words after the interpreter that train it."""

    spec: RunSpec
    path: Path
    command: tuple[str, ...]

    @property
    def state(self) -> str:
        """done, running, failed, stopped or waiting."""
        return directory.state(self.path, self.spec.spec_hash)

    @property
    def place(self) -> Path:
        """Where its files are now: its own directory, or set aside."""
        return directory.find(self.path, self.spec.spec_hash)

    @property
    def summary(self) -> dict[str, Any] | None:
        """metrics.json when it is done."""
        return directory.summary_if_done(self.place, self.spec.spec_hash)


def plan(specs: Sequence[RunSpec], output: Path, command: Callable[[RunSpec], list[str]]) -> list[Cell]:
    """The cells of a matrix, in order. Raises ConfigError when its arms would not be compared fairly."""
    first = specs[0]
    for spec in specs[1:]:
        if spec.fairness_hash != first.fairness_hash:
            found = difference(first.values, spec.values)
            raise ConfigError(f"{first.name} and {spec.name} would not be compared fairly: {found}")
    return [Cell(spec, output / spec.name, tuple(command(spec))) for spec in specs]


def baseline(folder: Path, spec: RunSpec) -> dict[str, Any]:
    """metrics.json of a finished run elsewhere that stands in as reference.

    Raises ConfigError when there is none, or when its fairness hash is not this matrix's, with the difference.
    """
    summary, config = read_json(folder / directory.SUMMARY), read_json(folder / directory.CONFIG)
    if not summary or not config or summary.get("status") != "done":
        raise ConfigError(f"GPT2_BASELINE {folder}: no finished run there (a directory with config.json, metrics.json)")
    if config.get("fairness_hash") != spec.fairness_hash:
        theirs = {name: entry["value"] for name, entry in config.get("values", {}).items()}
        raise ConfigError(f"GPT2_BASELINE {folder} is no fair reference: {difference(theirs, spec.values)}")
    return {**summary, "step": config["step"], "seed": config["seed"], "optimizer": config["optimizer"]}


def difference(theirs: Mapping[str, Value], ours: Mapping[str, Value]) -> str:
    """The settings in which two runs differ, in words."""
    names = [n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n)]
    return "; ".join(f"{n} is {theirs.get(n)} against {ours.get(n)}" for n in names) or "the budget differs"
