"""Plain-text and Markdown tables: columns as wide as they must be, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def text(header: Sequence[str], rows: Rows) -> str:
    """A table for the terminal; a column of numbers is aligned to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    right = _numeric(rows, len(header))
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in table
    ]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:]])


def markdown(header: Sequence[str], rows: Rows) -> str:
    """The same as a Markdown table."""
    marks = ["---:" if right else "---" for right in _numeric(rows, len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(header), marks, *map(list, rows)])


def _numeric(rows: Rows, count: int) -> list[bool]:
    return [
        any(row[i] for row in rows) and all(not row[i] or row[i][0] in "+-0123456789" for row in rows)
        for i in range(count)
    ]
