"""What every command starts from: the checkout, the folder of .config (O=dir), and the settings given so far."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.config import flags, sources
from lib.config.errors import ConfigError, exit_with
from lib.config.fields import fill
from lib.config.resolve import OPTIMIZER_SYMBOL, SEED_SYMBOL, STEP_SYMBOL, Resolver, RunSpec
from lib.config.schema import suggest
from lib.config.sources import Assignment
from lib.matrix import plan
from lib.matrix.config import MatrixConfig
from lib.matrix.plan import Cell

__all__ = ["ROOT", "Workspace", "exit_with"]

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = Path("gpt2") / "train_ra_mla.py"
# Settings of the matrix itself: the axes reach a run by its own flags, the rest does not concern it.
_MATRIX = {STEP_SYMBOL, SEED_SYMBOL, OPTIMIZER_SYMBOL, "GPT2_STEPS", "GPT2_SEEDS", "GPT2_OPTIMIZERS"} | {
    "GPT2_CONTRASTS",
    "GPT2_BASELINE",
    "GPT2_PARALLEL_RUNS",
}


class Workspace:
    """One checkout and one folder that holds .config and results."""

    def __init__(self) -> None:
        self.root = ROOT
        self.base = Path(os.environ.get("CONFIG_DIR") or ROOT).resolve()
        self.config_path = self.base / ".config"
        self.resolver = Resolver(ROOT)

    @cached_property
    def variables(self) -> list[Assignment]:
        """Make variables and GPT2_ environment names; misspelt ones stop every command."""
        return sources.variables(self.resolver.schema, os.environ)

    @cached_property
    def given(self) -> list[Assignment]:
        """The .config and the variables. Raises ConfigError where there is no .config."""
        if not self.config_path.exists():
            raise ConfigError(
                f"{self.shown(self.config_path)}: no such file; start with `make defconfig-gpt2-ra-ablation`,"
                " or `make list-defconfigs`"
            )
        found = sources.read_file(self.resolver.schema, self.config_path, shown=self.shown(self.config_path))
        return found + self.variables

    @property
    def where(self) -> str:
        """What a command needs on top to work on this folder: " O=dir", or nothing in the checkout itself."""
        return "" if self.base == ROOT else f" O={self.shown(self.base)}"

    def shown(self, path: Path) -> str:
        """A path as the user would type it."""
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    @cached_property
    def matrix(self) -> MatrixConfig:
        """The axes of the matrix."""
        for a in self.variables:
            axis = {STEP_SYMBOL: "STEPS", SEED_SYMBOL: "SEEDS"}.get(a.option.name)
            if axis:
                raise ConfigError(f"{a.where}: a matrix has its own axis; write {axis}={a.text}")
        values, _ = self.resolver.resolve(self.given)
        found = fill(MatrixConfig, values)
        for step in {name for pair in found.contrast_list for name in pair}:
            if step not in self.resolver.steps:
                near = suggest(step, self.resolver.steps)
                raise ConfigError(f"GPT2_CONTRASTS names {step}: no such step{near}")
        return found

    @cached_property
    def output(self) -> Path:
        """The results folder."""
        return self.base / self.matrix.output

    @cached_property
    def specs(self) -> list[RunSpec]:
        """One specification per step × optimizer × seed; seeds vary slowest: all arms have their first seed early."""
        m = self.matrix
        return [
            self.resolver.spec(self.given, step, optimizer, seed)
            for seed in m.seed_list
            for optimizer in m.optimizer_list or [None]
            for step in m.step_list
        ]

    @cached_property
    def cells(self) -> list[Cell]:
        """The runs of the matrix with their directories and commands. Raises ConfigError for an unfair one."""
        return plan.plan(self.specs, self.output, self.command)

    @cached_property
    def reference(self) -> dict[str, Any] | None:
        """metrics.json of the finished run that GPT2_BASELINE names, if it does."""
        return plan.baseline(self.base / self.matrix.baseline, self.specs[0]) if self.matrix.baseline else None

    def command(self, spec: RunSpec) -> list[str]:
        """The words after the interpreter that train `spec` in a process of its own, from the checkout's root."""
        inside = self.config_path.is_relative_to(ROOT)
        config = str(self.config_path.relative_to(ROOT) if inside else self.config_path)
        words = [str(PROGRAM), "--config", config, "--expect", spec.spec_hash[:16]]
        words += ["--ra-mla-ablation-step", spec.step, "--optimizer", spec.optimizer, "--seed", str(spec.seed)]
        for a in spec.overrides:
            if a.option.name not in _MATRIX:
                words += flags.as_flags(a.option, a.text)
        return words
