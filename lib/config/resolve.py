"""From sources to run specifications: who wins, what was overridden, and the hashes that decide "equal" and "done".

Precedence: flag > make variable or environment > step > .config > default. Each source is checked when it is laid on:
every assignment must take its value, or it is named with the dependency that hides it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib.config.budget import ORDER, SHORT_WINDOWS, Budget
from lib.config.errors import ConfigError
from lib.config.fields import Value
from lib.config.schema import Schema, suggest
from lib.config.sources import AXIS, CONFIG, DEFAULT, STEP, VARIABLE, Assignment, read_file

STEP_SYMBOL, SEED_SYMBOL, OPTIMIZER_SYMBOL = "RA_MLA_ABLATION_STEP", "GPT2_SEED", "GPT2_OPTIMIZER"
_AXES = {STEP_SYMBOL: "GPT2_STEPS", OPTIMIZER_SYMBOL: "GPT2_OPTIMIZERS", SEED_SYMBOL: "GPT2_SEEDS"}
_BUDGET_SYMBOLS = {symbol for _, symbol in ORDER}


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides one run: one step × optimizer × seed."""

    step: str
    description: str
    optimizer: str
    seed: int
    values: Mapping[str, Value]
    sources: Mapping[str, str]
    budget: Budget
    fairness_hash: str
    spec_hash: str
    overrides: tuple[Assignment, ...] = field(repr=False)  # what make variables and the environment set

    @property
    def name(self) -> str:
        """The run directory's name: test_V0_adamwspam_none, with _s<seed> for seeds other than 0."""
        return f"test_{self.step}_{self.optimizer}_none" + (f"_s{self.seed}" if self.seed else "")


class Resolver:
    """Resolves runs against one tree of Kconfig files and one folder of steps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.schema = Schema(root)

    @property
    def steps(self) -> list[str]:
        """Names of all steps, in natural order (V2 before V10)."""
        names = [p.stem for p in (self.root / "gpt2" / "steps").glob("*.config")]
        return sorted(names, key=lambda n: (n.rstrip("0123456789F"), len(n), n))

    def read_step(self, name: str) -> tuple[str, list[Assignment]]:
        """The description and the assignments of a step. Raises ConfigError for an unknown or overreaching one."""
        path = self.root / "gpt2" / "steps" / f"{name}.config"
        if name not in self.steps:
            known = self.steps
            listed = suggest(name, known) or "; steps: " + " ".join(known)
            raise ConfigError(f"step {name or '(empty)'}: no such step{listed}")
        shown = str(path.relative_to(self.root))
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        if not first.startswith("# ") or not first[2:].strip():
            raise ConfigError(f"{shown}:1: the first line is the step's description, as `# text`")
        found = read_file(self.schema, path, STEP, shown)
        for assignment in found:
            if not assignment.option.is_mechanism:
                raise ConfigError(
                    f"{assignment.where}: {assignment.option.name} is no Mechanism setting; a step sets only those"
                )
        return first[2:].strip(), found

    def step_values(self, name: str) -> dict[str, Value]:
        """The Mechanism values of a step alone, typed; unavailable ones are absent."""
        self.schema.kconf.unset_values()
        self._lay(self.read_step(name)[1])
        return {
            o.name: v for o in self.schema.options.values() if o.is_mechanism and (v := self._value(o.name)) is not None
        }

    def spec(
        self,
        given: Iterable[Assignment],
        step: str | None = None,
        optimizer: str | None = None,
        seed: int | None = None,
    ) -> RunSpec:
        """The run that `given` describes, at one point of the matrix's axes (None: what `given` itself says)."""
        given = sorted(given, key=lambda a: a.rank)
        axes = {STEP_SYMBOL: step, OPTIMIZER_SYMBOL: optimizer, SEED_SYMBOL: seed}
        on_axes = [
            Assignment(self.schema.options[name], str(value), AXIS, _AXES[name])
            for name, value in axes.items()
            if value is not None
        ]
        named = [a.text for a in [*given, *on_axes] if a.option.name == STEP_SYMBOL]
        step = named[-1] if named else str(self._default(STEP_SYMBOL))
        description, from_step = self.read_step(step)
        layers = [*given, *from_step, *on_axes]
        values, sources = self.resolve(layers)
        matched = values.get("MATCHED_STEP")
        extra: dict[str, object] = {}
        if matched is not None:
            extra["MATCHED_VALUES"] = self.step_values(str(matched))
        ranks = self._ranks(layers)
        budget = self._budget(values, ranks)
        if budget.is_short:
            windows = int(values["GPT2_EVAL_WINDOWS"])
            if windows == 0 or windows > SHORT_WINDOWS:
                values["GPT2_EVAL_WINDOWS"] = SHORT_WINDOWS
                sources["GPT2_EVAL_WINDOWS"] = f"budget under 300 s (asked: {windows or 'all'})"
        _check_together(values)
        return RunSpec(
            step=step,
            description=description,
            optimizer=str(values[OPTIMIZER_SYMBOL]),
            seed=int(values[SEED_SYMBOL]),
            values={**values, **extra},  # type: ignore[dict-item]
            sources=sources,
            budget=budget,
            fairness_hash=self._hash(values, budget, ("compared",)),
            spec_hash=self._hash(values, budget, ("compared", "varied"), extra),
            overrides=tuple(a for a in given if a.rank == VARIABLE),
        )

    def resolve(self, assignments: Iterable[Assignment]) -> tuple[dict[str, Value], dict[str, str]]:
        """All values and where each comes from, after laying the sources on from the lowest rank to the highest."""
        self.schema.kconf.unset_values()
        winners: dict[str, str] = {}
        ordered = sorted(assignments, key=lambda a: a.rank)
        for rank in sorted({a.rank for a in ordered}):
            layer = [a for a in ordered if a.rank == rank]
            if rank == CONFIG:
                self._refuse_mechanism(layer)
            self._lay(layer)
            winners.update({a.option.name: a.where for a in layer})
        values = {name: v for name in self.schema.options if (v := self._value(name)) is not None}
        return values, {name: winners.get(name, "default") for name in values}

    def _lay(self, layer: list[Assignment]) -> None:
        for assignment in layer:
            assignment.check()
            self.schema.set(assignment.option, assignment.text)
        last = {a.option.name: a for a in layer}
        for assignment in last.values():
            unmet = self.schema.unmet(assignment.option)
            if unmet is not None:
                raise ConfigError(f"{assignment.where}: {assignment.option.name} needs {unmet}, which is not so here")
            took = self.schema.text(assignment.option)
            if took != assignment.text and (
                took is None or assignment.option.parse(took) != assignment.option.parse(assignment.text)
            ):
                raise ConfigError(
                    f"{assignment.where}: {assignment.option.name} did not take {assignment.text}; it is {took}"
                )

    def _refuse_mechanism(self, layer: list[Assignment]) -> None:
        """A .config holds the harness; a mechanism set there would change every arm, the baseline too."""
        for a in layer:
            if a.option.is_mechanism and a.text != self.schema.text(a.option):
                raise ConfigError(
                    f"{a.where}: {a.option.name} is a Mechanism setting; put it into a step, gpt2/steps/NAME.config"
                )

    def _value(self, name: str) -> Value | None:
        option = self.schema.options[name]
        text = self.schema.text(option)
        if text is None:
            return None
        try:
            return option.parse(text)
        except ValueError:
            raise ConfigError(f"Kconfig: the default of {name} is {option.allowed()}, not {text!r}") from None

    def _default(self, name: str) -> Value | None:
        self.schema.kconf.unset_values()
        return self._value(name)

    @staticmethod
    def _ranks(assignments: Iterable[Assignment]) -> dict[str, int]:
        ranks: dict[str, int] = {}
        for a in assignments:
            ranks[a.option.name] = max(a.rank, ranks.get(a.option.name, DEFAULT))
        return ranks

    @staticmethod
    def _budget(values: Mapping[str, Value], ranks: Mapping[str, int]) -> Budget:
        amounts = [(ranks.get(symbol, DEFAULT), kind, float(values[symbol])) for kind, symbol in ORDER]
        given = [entry for entry in amounts if entry[2] > 0]
        if not given:
            raise ConfigError("no budget: set one of " + ", ".join(symbol for _, symbol in ORDER))
        # max() keeps the first of equals, and ORDER lists iterations first.
        _, kind, amount = max(given, key=lambda entry: entry[0])
        return Budget(kind, amount)

    def _hash(
        self,
        values: Mapping[str, Value],
        budget: Budget,
        classes: tuple[str, ...],
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """sha256 over the values of some classes; of the budget only the one that counts."""
        chosen: dict[str, object] = {
            name: value
            for name, value in values.items()
            if self.schema.options[name].cls in classes and name not in _BUDGET_SYMBOLS
        }
        chosen["budget"] = [budget.kind, budget.amount]
        chosen.update(extra or {})
        return hashlib.sha256(json.dumps(chosen, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _check_together(values: Mapping[str, Value]) -> None:
    """Rules that bind two settings; each would otherwise fail deep inside a run."""
    embd, heads = int(values["GPT2_N_EMBD"]), int(values["GPT2_N_HEAD"])
    if embd % heads:
        raise ConfigError(f"GPT2_N_EMBD {embd} is no multiple of GPT2_N_HEAD {heads}; the heads share the width")
    block, batch = int(values["GPT2_BLOCK_SIZE"]), int(values["GPT2_TOKENS_PER_STEP"])
    if batch % block:
        near = max(1, round(batch / block)) * block
        raise ConfigError(
            f"GPT2_TOKENS_PER_STEP {batch} is no multiple of GPT2_BLOCK_SIZE {block}; the nearest is {near}"
        )
    if float(values["GPT2_MIN_LR"]) > float(values["GPT2_LEARNING_RATE"]):
        raise ConfigError(
            f"GPT2_MIN_LR {values['GPT2_MIN_LR']} is above GPT2_LEARNING_RATE {values['GPT2_LEARNING_RATE']}"
        )
