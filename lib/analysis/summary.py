"""The table of a matrix: each arm's mean over seeds, its paired difference to the baseline, every declared contrast.

The unit is a pair: two runs that share seed and optimizer. A difference is arm minus reference in validation loss
(nats); below zero is better. One or two pairs are a number, never a claim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.analysis import table
from lib.run.files import write_json, write_text

BASELINE = "V0"
ENOUGH_SEEDS = 3
UNEQUAL = 1.02  # runs of one matrix whose tokens differ by more are pointed out
Metrics = Mapping[str, Any]
Table = tuple[str, Sequence[str], list[list[str]]]


@dataclass(frozen=True)
class Run:
    """One run of the matrix: where it stands on the axes, and its metrics.json when it is done."""

    step: str
    optimizer: str
    seed: int
    state: str
    metrics: Metrics | None


@dataclass(frozen=True)
class Contrast:
    """Paired differences arm - reference under one optimizer, by seed."""

    arm: str
    reference: str
    optimizer: str
    loss: Mapping[int, float]  # nats
    bits: Mapping[int, float]  # bits per byte

    @property
    def mean(self) -> float | None:
        """Mean difference in nats."""
        return statistics.fmean(self.loss.values()) if self.loss else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the differences, from two pairs on."""
        return statistics.stdev(self.loss.values()) if len(self.loss) > 1 else None


@dataclass
class Summary:
    """Everything that a summary prints or writes."""

    title: str
    runs: Sequence[Run]
    contrasts: Sequence[Contrast]
    against_baseline: Sequence[Contrast]
    notes: list[str] = field(default_factory=list)


def summarise(title: str, runs: Sequence[Run], contrasts: Sequence[tuple[str, str]]) -> Summary:
    """Pair what can be paired, and note what makes a comparison less than fair."""
    done = {(r.step, r.optimizer, r.seed): r.metrics for r in runs if r.metrics is not None}
    steps = list(dict.fromkeys(r.step for r in runs))
    optimizers = list(dict.fromkeys(r.optimizer for r in runs))

    def all_of(pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
        return [_contrast(done, arm, reference, o) for arm, reference in pairs for o in optimizers]

    declared = all_of([pair for pair in contrasts if set(pair) <= set(steps)])
    baseline = all_of([(step, BASELINE) for step in steps if step != BASELINE and BASELINE in steps])
    found = Summary(title, runs, declared, baseline)
    found.notes = _notes(found, list(done.values()))
    return found


def _contrast(done: Mapping[tuple[str, str, int], Metrics], arm: str, reference: str, optimizer: str) -> Contrast:
    def differences(key: str) -> dict[int, float]:
        return {
            seed: float(metrics[key]) - float(done[reference, optimizer, seed][key])
            for (step, o, seed), metrics in done.items()
            if (step, o) == (arm, optimizer) and _both(metrics, done.get((reference, o, seed), {}), key)
        }

    return Contrast(arm, reference, optimizer, differences("val_loss"), differences("bits_per_byte"))


def _both(one: Metrics, other: Metrics, key: str) -> bool:
    return one.get(key) is not None and other.get(key) is not None


def _notes(summary: Summary, done: Sequence[Metrics]) -> list[str]:
    notes = []
    missing = [r for r in summary.runs if r.metrics is None]
    if missing:
        states = ", ".join(sorted({f"{sum(r.state == s for r in missing)} {s}" for s in (r.state for r in missing)}))
        notes.append(f"{len(missing)} of {len(summary.runs)} runs are not done ({states})")
    for key, what in (("fairness_hash", "fairness hashes"), ("data_fingerprint", "data")):
        if len({m.get(key) for m in done}) > 1:
            notes.append(f"INVALID: these runs have different {what}; their losses are not comparable")
    for key in ("device", "threads", "world_size", "torch", "compiled", "micro_batch"):
        values = list(dict.fromkeys(str(m.get(key)) for m in done))
        if len(values) > 1:
            notes.append(f"{key} differs between runs: {', '.join(values)}")
    if any(m.get("eval_reduced") for m in done):
        counts = sorted({int(m["eval_windows"]) for m in done})
        notes.append(f"validation on {', '.join(map(str, counts))} windows, not on the whole split")
    tokens = [float(m["tokens"]) for m in done if m.get("tokens")]
    if tokens and max(tokens) > UNEQUAL * min(tokens):
        notes.append(
            f"runs saw {count_text(min(tokens))} to {count_text(max(tokens))} tokens: under a time budget a difference"
            " is the mechanism and the machine's speed together; ITERS=n compares at equal tokens"
        )
    pairs = [len(c.loss) for c in (*summary.contrasts, *summary.against_baseline) if c.loss]
    if pairs and min(pairs) < ENOUGH_SEEDS:
        notes.append('LIMITED: one or two seeds are a number, never a claim; SEEDS="0 1 2" adds pairs')
    return notes


# -- how it looks ----------------------------------------------------------------------------------------------------

ARM_HEADER = [
    "step",
    "val loss",
    "vs V0",
    "perplexity",
    "bits/byte",
    "tokens",
    "FLOPs",
    "seconds",
    "parameters",
    "memory",
]
CONTRAST_HEADER = ["contrast", "mean difference", "sd", "bits/byte", "pairs", "by seed"]


def arm_rows(summary: Summary) -> list[list[str]]:
    """One row per step (and optimizer, where there are several): means over its finished seeds."""
    baseline = {(c.arm, c.optimizer): c for c in summary.against_baseline}
    several = len({r.optimizer for r in summary.runs}) > 1
    rows = []
    for step, optimizer in dict.fromkeys((r.step, r.optimizer) for r in summary.runs):
        found = [r.metrics for r in summary.runs if (r.step, r.optimizer) == (step, optimizer) and r.metrics]
        contrast = baseline.get((step, optimizer))
        label = f"{step} {optimizer}" if several else step
        count = sum((r.step, r.optimizer) == (step, optimizer) for r in summary.runs)
        if not found:
            states = {r.state for r in summary.runs if (r.step, r.optimizer) == (step, optimizer)}
            rows.append([label, "/".join(sorted(states)), *[""] * (len(ARM_HEADER) - 2)])
            continue
        if count > 1:
            label += f" ({len(found)} of {count} seeds)"
        rows.append([label, *_cells(found, contrast.mean if contrast else None)])
    return rows


def _cells(found: Sequence[Metrics], difference: float | None) -> list[str]:
    def mean(key: str, show: Callable[[float], str]) -> str:
        values = [float(m[key]) for m in found if m.get(key) is not None]
        return show(statistics.fmean(values)) if values else ""

    return [
        mean("val_loss", lambda v: f"{v:.4f}"),
        "" if difference is None else f"{difference:+.4f}",
        mean("val_perplexity", lambda v: f"{v:.3f}"),
        mean("bits_per_byte", lambda v: f"{v:.4f}"),
        mean("tokens", count_text),
        mean("flops", lambda v: f"{v:.3g}"),
        mean("seconds", lambda v: f"{v:,.1f}"),
        mean("parameters", lambda v: f"{v:,.0f}"),
        mean("peak_memory_bytes", lambda v: f"{v / 1e6:,.0f} MB"),
    ]


def contrast_rows(contrasts: Sequence[Contrast]) -> list[list[str]]:
    """One row per contrast (and optimizer, where there are several), with each pair's difference."""
    several = len({c.optimizer for c in contrasts}) > 1
    rows = []
    for c in contrasts:
        rows.append(
            [
                f"{c.arm} - {c.reference}" + (f" {c.optimizer}" if several else ""),
                "" if c.mean is None else f"{c.mean:+.4f} nats",
                "" if c.spread is None else f"{c.spread:.4f}",
                f"{statistics.fmean(c.bits.values()):+.4f}" if c.bits else "",
                str(len(c.loss)),
                "  ".join(f"s{seed} {d:+.4f}" for seed, d in sorted(c.loss.items())),
            ]
        )
    return rows


def seed_rows(summary: Summary) -> list[list[str]]:
    """Validation loss of every run: one row per step and optimizer, one column per seed."""
    seeds = sorted({r.seed for r in summary.runs})
    by_key = {(r.step, r.optimizer, r.seed): r for r in summary.runs}
    rows = []
    for step, optimizer in dict.fromkeys((r.step, r.optimizer) for r in summary.runs):
        cells = []
        for seed in seeds:
            run = by_key.get((step, optimizer, seed))
            loss = run.metrics.get("val_loss") if run and run.metrics else None
            cells.append("" if run is None else run.state if loss is None else f"{loss:.4f}")
        rows.append([step, optimizer, *cells])
    return rows


def _tables(summary: Summary) -> list[Table]:
    seeds = sorted({r.seed for r in summary.runs})
    found: list[Table] = [("Arms (means over seeds)", ARM_HEADER, arm_rows(summary))]
    if summary.contrasts:
        found.append(
            (
                "Contrasts (arm - reference, paired; below zero is better)",
                CONTRAST_HEADER,
                contrast_rows(summary.contrasts),
            )
        )
    if len(seeds) > 1:
        found.append(
            ("Validation loss by seed", ["step", "optimizer", *(f"seed {s}" for s in seeds)], seed_rows(summary))
        )
    return found


def as_text(summary: Summary) -> str:
    """The summary for a terminal."""
    parts = [f"{name}\n{table.text(header, rows)}" for name, header, rows in _tables(summary)]
    return "\n\n".join(
        [summary.title, *parts, *(["\n".join(f"note: {n}" for n in summary.notes)] if summary.notes else [])]
    )


def as_markdown(summary: Summary) -> str:
    """The summary as a Markdown page."""
    parts = [f"## {name}\n\n{table.markdown(header, rows)}" for name, header, rows in _tables(summary)]
    notes = ["\n".join(f"- {n}" for n in summary.notes)] if summary.notes else []
    return "\n\n".join([f"# {summary.title}", *parts, *notes]) + "\n"


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as data: every run's metrics, every pair's difference."""

    def contrast(c: Contrast) -> dict[str, Any]:
        pairs = [{"seed": s, "val_loss": d, "bits_per_byte": c.bits.get(s)} for s, d in c.loss.items()]
        what = {"arm": c.arm, "reference": c.reference, "optimizer": c.optimizer}
        return {**what, "mean": c.mean, "sd": c.spread, "pairs": pairs}

    return {
        "title": summary.title,
        "runs": [
            {"step": r.step, "optimizer": r.optimizer, "seed": r.seed, "state": r.state, "metrics": r.metrics}
            for r in summary.runs
        ],
        "contrasts": [contrast(c) for c in summary.contrasts],
        "against_baseline": [contrast(c) for c in summary.against_baseline],
        "notes": summary.notes,
    }


def write(summary: Summary, folder: Path) -> None:
    """summary.md and summary.json in `folder`, atomically. Raises RunError."""
    write_text(folder / "summary.md", as_markdown(summary))
    write_json(folder / "summary.json", as_json(summary))


def count_text(value: float) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
