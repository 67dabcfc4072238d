"""Where each run of a matrix stands, from its directory alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lib.matrix.plan import Cell, difference
from lib.run import directory
from lib.run.files import read_json
from lib.run.lock import holder_of


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """One row per run: name, state, progress, iteration, validation loss, and what else to know."""
    return [_row(cell) for cell in cells]


HEADER = ["run", "state", "progress", "iter", "val loss", "note"]


def _row(cell: Cell) -> list[str]:
    state, place = cell.state, cell.place
    if state == "waiting":
        return [cell.spec.name, state, "", "", "", _other(cell)]
    summary = cell.summary
    path = place / directory.METRICS
    found = directory.read_rows(path)
    last: dict[str, Any] = summary or (found[-1] if found else {})
    position: dict[str, Any] = next((r for r in reversed(found) if "progress" in r), {})
    losses = [r["val_loss"] for r in found if r.get("val_loss") is not None]
    loss = summary["val_loss"] if summary else losses[-1] if losses else None
    return [
        cell.spec.name,
        state,
        "100 %" if summary else f"{100 * position.get('progress', 0.0):.0f} %",
        str(last.get("iterations", last.get("iter", 0))),
        "" if loss is None else f"{loss:.4f}",
        _note(cell, state, path.stat().st_mtime if path.exists() else None),
    ]


def _other(cell: Cell) -> str:
    """The finished run that stands in this one's place, and in what its settings differ."""
    config, summary = read_json(cell.path / directory.CONFIG), read_json(cell.path / directory.SUMMARY)
    if not config or not summary or summary.get("status") != "done":
        return ""
    theirs = {name: entry["value"] for name, entry in config.get("values", {}).items()}
    return f"a finished run with other settings is here ({difference(theirs, cell.spec.values)})"


def _note(cell: Cell, state: str, written: float | None) -> str:
    place = cell.place
    parts = []
    if state == "failed":
        parts.append(str((read_json(place / directory.FAILURE) or {}).get("error", "")))
    if state == "running":
        parts.append(f"by {holder_of(place)}")
        if written:
            parts.append(f"last row {max(0.0, time.time() - written):.0f} s ago")
    if place != cell.path:
        parts.append(f"in {place.name}; the next make brings it back")
    return "; ".join(parts)
