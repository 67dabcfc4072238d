"""Plain SVG, the same bytes on every machine: what the pictures of docs/images are drawn with.

Each picture brings its own background and a dark variant, so it reads on any page. Sizes in pixels, y downwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

WIDTH = 960
SANS = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
MATH = "'STIX Two Text', Cambria, 'Times New Roman', 'Liberation Serif', serif"
# name: (fill, line, text) in the light and in the dark picture. Blue and orange stay apart for colour-blind readers.
COLOURS = {
    "paper": (("#ffffff", "#d0d7de", "#1f2328"), ("#0d1117", "#30363d", "#e6edf3")),
    "panel": (("#f6f8fa", "#d8dee4", "#1f2328"), ("#151b23", "#30363d", "#e6edf3")),
    "std": (("#dbe9fb", "#3d74b8", "#1b4b87"), ("#14305a", "#6ea8fe", "#b6d4ff")),
    "low": (("#fde3ca", "#c0661c", "#864007"), ("#4a2a0d", "#f0a35e", "#ffd3a8")),
    "value": (("#dcefe2", "#4c8a64", "#225a39"), ("#143526", "#6cc08b", "#aee3c2")),
    "plain": (("#ffffff", "#8c959f", "#1f2328"), ("#0d1117", "#7d8590", "#e6edf3")),
    "soft": (("#59636e", "#8c959f", "#59636e"), ("#9198a1", "#7d8590", "#9198a1")),
}
# *italic* in the serif face, _{below} and ^{above} the line.
_MARKUP = re.compile(r"(\*[^*]+\*|_\{[^}]*\}|\^\{[^}]*\})")


def style() -> str:
    """The classes of both variants: b-NAME a box, t-NAME a text, l-NAME a line, a-NAME an arrow's head."""

    def rules(variant: int) -> str:
        return "".join(
            f".b-{name}{{fill:{c[variant][0]};stroke:{c[variant][1]}}}.t-{name}{{fill:{c[variant][2]}}}"
            f".l-{name}{{stroke:{c[variant][1]}}}.a-{name}{{fill:{c[variant][1]}}}"
            for name, c in COLOURS.items()
        )

    faces = f"text{{font-family:{SANS}}}.m{{font-family:{MATH};font-style:italic}}.bold{{font-weight:600}}"
    lines = "path{fill:none;stroke-width:1.5}rect,circle{stroke-width:1.25}.dashed{stroke-dasharray:5 4}"
    return f"{faces}{lines}.head{{stroke:none}}{rules(0)}@media (prefers-color-scheme:dark){{{rules(1)}}}"


class Picture:
    """A growing list of SVG elements."""

    def __init__(self, height: int, title: str, description: str) -> None:
        self.height, self.title, self.description = height, title, description
        self.parts: list[str] = []
        self.box(0.75, 0.75, WIDTH - 1.5, height - 1.5, "paper", radius=10)

    def box(self, x: float, y: float, w: float, h: float, kind: str, radius: float = 4, dashed: bool = False) -> None:
        """A rectangle."""
        name = f"b-{kind}" + (" dashed" if dashed else "")
        self.parts.append(f'<rect class="{name}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}"/>')

    def circle(self, x: float, y: float, r: float, kind: str) -> None:
        """A circle."""
        self.parts.append(f'<circle class="b-{kind}" cx="{x:g}" cy="{y:g}" r="{r:g}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 14,
        kind: str = "paper",
        at: str = "middle",
        bold: bool = False,
    ) -> None:
        """A line of text whose middle height is `y`; `at` is start, middle or end; markup as above."""
        name = f"t-{kind}" + (" bold" if bold else "")
        place = f'x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size:g}" text-anchor="{at}"'
        self.parts.append(f'<text class="{name}" {place}>{_spans(words, size)}</text>')

    def line(
        self, points: Sequence[tuple[float, float]], kind: str = "plain", arrow: bool = True, dashed: bool = False
    ) -> None:
        """Straight pieces through `points`, with an arrow's head at the last."""
        self.curve("M" + "L".join(f"{x:g} {y:g}" for x, y in points), points[-2], points[-1], kind, arrow, dashed)

    def curve(
        self,
        path: str,
        before: tuple[float, float],
        end: tuple[float, float],
        kind: str,
        arrow: bool = True,
        dashed: bool = False,
    ) -> None:
        """An SVG path; its arrow's head sits at `end`, coming from `before`."""
        self.parts.append(f'<path class="l-{kind}{" dashed" if dashed else ""}" d="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = before, end
            length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
            ux, uy = (x - x0) / length, (y - y0) / length
            corners = [(x + 1.5 * ux, y + 1.5 * uy)] + [
                (x - 8 * ux + s * 4 * uy, y - 8 * uy - s * 4 * ux) for s in (1, -1)
            ]
            shape = "L".join(f"{round(a, 2):g} {round(b, 2):g}" for a, b in corners)
            self.parts.append(f'<path class="head a-{kind}" d="M{shape}Z"/>')

    def label(self, x: float, y: float, w: float, h: float, kind: str, words: str, size: float = 14) -> None:
        """A box with a text in its middle; lines separated by a newline."""
        self.box(x, y, w, h, kind)
        lines = words.split("\n")
        for number, each in enumerate(lines):
            shift = (number - (len(lines) - 1) / 2) * size * 1.3
            self.text(x + w / 2, y + h / 2 + shift, each, size, kind)

    def heading(self, words: str, below: str) -> None:
        """The picture's own title and a line under it."""
        self.text(32, 38, words, 18, at="start", bold=True)
        self.text(32, 64, below, 14, "soft", at="start")

    def svg(self) -> str:
        """The whole file."""
        lead = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
        lead += f'height="{self.height}" role="img" aria-labelledby="t d">'
        about = f'<title id="t">{escape(self.title)}</title><desc id="d">{escape(self.description)}</desc>'
        return "\n".join([lead, about, f"<style>{style()}</style>", *self.parts, "</svg>"]) + "\n"


def _spans(words: str, size: float) -> str:
    """The markup as tspans; each shift from the base line is taken back by the piece after it."""
    found, now = "", 0.0
    for piece in filter(None, _MARKUP.split(words)):
        wanted, small, serif, body = 0.0, False, False, piece
        if piece[0] == "*" and len(piece) > 2:
            serif, body = True, piece[1:-1]
        elif piece[:2] in ("_{", "^{"):
            wanted, small, body = (0.26 if piece[0] == "_" else -0.4) * size, True, piece[2:-1]
        marks = (' class="m"' if serif else "") + (f' font-size="{0.72 * size:g}"' if small else "")
        marks += f' dy="{round(wanted - now, 2):g}"' if wanted != now else ""
        found += f"<tspan{marks}>{escape(body)}</tspan>" if marks else escape(body)
        now = wanted
    return found
