"""Draw a matrix's paired differences to V0: one dot a seed, a bar for the mean, the margin of practical interest.

python -m scripts.draw_results docs/results/shakespeare.json docs/images/shakespeare.svg
python -m scripts.draw_results --check ...      # exit 1 when the picture is not what the numbers say
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.svg import WIDTH, Picture

MARGIN = 0.005  # nats: differences inside it are of no practical interest
LEFT, RIGHT, TOP, ROW = 96, 40, 132, 44


def picture(summary: dict[str, Any]) -> Picture:
    """The picture of a summary.json."""
    contrasts = [c for c in summary["against_baseline"] if c["pairs"]]
    pairs = max(len(c["pairs"]) for c in contrasts)
    p = Picture(
        TOP + ROW * len(contrasts) + 76,
        "Validation loss against V0",
        "; ".join(f"{c['arm']} {c['mean']:+.4f}" for c in contrasts) + f" nats, means of {pairs} paired seeds",
    )
    p.heading(
        f"Validation loss against V0, {pairs} paired seeds",
        f"{summary['title'].split(': ', 1)[-1]}; nats, left of zero is better",
    )
    reach = max(MARGIN, *(abs(pair["val_loss"]) for c in contrasts for pair in c["pairs"])) * 1.12
    bottom = TOP + ROW * len(contrasts)

    def at(value: float) -> float:
        return LEFT + (value + reach) / (2 * reach) * (WIDTH - LEFT - RIGHT - 130)

    p.box(at(-MARGIN), TOP - 14, at(MARGIN) - at(-MARGIN), bottom - TOP + 14, "panel", radius=2)
    p.text(at(0), TOP - 28, f"± {MARGIN:g}: no practical difference", 12, "soft")
    p.line([(at(0), TOP - 14), (at(0), bottom)], "soft", arrow=False)
    for tick in ticks(reach):
        p.line([(at(tick), bottom), (at(tick), bottom + 6)], "soft", arrow=False)
        p.text(at(tick), bottom + 20, f"{tick:+.3g}" if tick else "0", 12, "soft")
    for number, contrast in enumerate(contrasts):
        y = TOP + ROW * number + ROW / 2 - 6
        p.text(LEFT - 30, y, contrast["arm"], 15, at="end", bold=True)
        p.line([(at(contrast["mean"]), y - 13), (at(contrast["mean"]), y + 13)], "low", arrow=False)
        for pair in contrast["pairs"]:
            p.circle(at(pair["val_loss"]), y, 5, "std")
        p.text(WIDTH - RIGHT, y, f"{contrast['mean']:+.4f}", 14, at="end")
    p.text(WIDTH - RIGHT, TOP - 28, "mean", 12, "soft", at="end")
    p.text(32, bottom + 52, "circle: one seed; bar: their mean", 12, "soft", at="start")
    return p


def ticks(reach: float) -> list[float]:
    """Round values on both sides of zero."""
    step = 10 ** math.floor(math.log10(reach))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if reach / s <= 4)
    return [round(i * step, 12) for i in range(-int(reach / step), int(reach / step) + 1)]


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("summary", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(argv)
    wanted = picture(json.loads(given.summary.read_text(encoding="utf-8"))).svg()
    if not given.check:
        given.picture.write_text(wanted, encoding="utf-8")
        print(f"{given.picture} written")
    elif given.picture.read_text(encoding="utf-8") != wanted:
        print(f"error: {given.picture} is not what {given.summary} says; draw it again", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
