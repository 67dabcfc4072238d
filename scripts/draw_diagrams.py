"""Draw the diagrams of docs/mathematics.md into docs/images.

python -m scripts.draw_diagrams            # write them
python -m scripts.draw_diagrams --check    # exit 1, naming the stale ones, instead
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.svg import WIDTH, Picture

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"


def folded_layout() -> Picture:
    """One head's two sides, block against block, and what untied and tied mean."""
    p = Picture(
        624,
        "The folded layout of one head",
        "The query side holds q_std and k_low, the key side k_std and q_low. Their inner product has two terms, "
        "w_std q_std.k_std and w_rec k_low.q_low. Untied, the low rows are rows of their own; tied, they are the first "
        "R rows of the other side.",
    )
    p.heading("The folded layout of one head", "*d* = 64, *R* = 4, *D*_{std} = *d* − *R* = 60; widths are not to scale")
    x, std, low, h = 206, 500, 190, 46
    p.text(x + std / 2, 98, "*D*_{std} = 60 dimensions", 13, "soft")
    p.text(x + std + low / 2, 98, "*R* = 4 dimensions", 13, "soft")
    for y, side, token, first, last in (
        (114, "Qf", "query side of token *i*", "*q*_{i}^{ std}", "*k*_{i}^{ low}"),
        (206, "Kf", "key side of token *j*", "*k*_{j}^{ std}", "*q*_{j}^{ low}"),
    ):
        p.text(x - 20, y + 14, side, 16, at="end", bold=True)
        p.text(x - 20, y + 35, token, 13, "soft", at="end")
        p.label(x, y, std, h, "std", first, 19)
        p.label(x + std, y, low, h, "low", last, 19)
    for middle, kind in ((x + std / 2, "std"), (x + std + low / 2, "low")):
        p.line([(middle, 160), (middle, 206)], kind, arrow=False)
        p.text(middle + 12, 183, "inner product", 13, "soft", at="start")
        p.line([(middle, 252), (middle, 292)], kind)
    p.text(x - 20, 316, "score  *S*_{ij}  =", 17, at="end")
    p.label(x, 294, std - 50, 44, "std", "*w*_{std} · *q*_{i}^{ std} · *k*_{j}^{ std}", 18)
    p.text(x + std - 25, 316, "+", 20)
    p.label(x + std, 294, low, 44, "low", "*w*_{rec} · *k*_{i}^{ low} · *q*_{j}^{ low}", 18)
    said = "Two terms: only blocks at the same place meet. One causal SDPA call on (Qf, Kf, V), scale 1/√*d*."
    p.text(WIDTH / 2, 366, said, 14)

    for left, name, tied in ((32, "untied", False), (488, "tied", True)):
        p.box(left, 392, 440, 200, "panel", radius=8)
        p.text(left + 20, 416, name, 15, at="start", bold=True)
        bar, cell, end = left + 62, 34, 52
        for y, side in ((436, "Qf"), (492, "Kf")):
            p.text(bar - 10, y + 14, side, 14, at="end")
            p.box(bar, y, 298, 28, "std", radius=3)
            p.box(bar + 298, y, end, 28, "low", radius=3)
            if tied:
                p.box(bar, y, cell, 28, "low", radius=3)
                p.text(bar + cell / 2, y + 14, "*R*", 13, "low")
            p.text(bar + 166, y + 14, "*q*^{ std}" if side == "Qf" else "*k*^{ std}", 15, "std")
            p.text(bar + 298 + end / 2, y + 14, "*k*^{ low}" if side == "Qf" else "*q*^{ low}", 15, "low")
        if tied:
            p.line([(bar + cell / 2, 464), (bar + 298 + end / 2 - 6, 491)], "low")
            p.line([(bar + cell / 2, 492), (bar + 298 + end / 2 - 6, 465)], "low")
        first = (
            "the other side's first *R* rows, used a second time:"
            if tied
            else "low rows of their own: standard attention with"
        )
        then = "truly reciprocal (V7, V8)" if tied else "its rows renamed, and two gates (V1 to V6)"
        p.text(left + 20, 546, first, 14, at="start")
        p.text(left + 20, 568, then, 14, at="start")
    return p


def weight_layout() -> Picture:
    """Rows of c_attn.weight as stored, and the effective projection gathered and scaled from them."""
    p = Picture(
        620,
        "Rows of the fused projection",
        "Left, the untied fold: all 3C rows are stored and only scaled. Right, the tied fold: low rows are not stored; "
        "they are gathered from the first R rows of the other side. Only rows of Qf are scaled, by w_std and w_rec.",
    )
    p.heading(
        "Rows of the fused projection", "*W*_{eff} = scale ⊙ *W*[index], built inside the forward pass; two heads drawn"
    )
    std, low, gap = 40, 22, 6
    for left, name, tied in ((32, "untied: every row is stored", False), (488, "tied: low rows are gathered", True)):
        p.box(left, 88, 440, 502, "panel", radius=8)
        p.text(left + 20, 112, name, 15, at="start", bold=True)
        a, b, w = left + 24, left + 214, 130  # the two stacks
        p.text(a + w / 2, 144, "c_attn.weight", 14)
        p.text(b + w / 2, 144, "*W*_{eff}", 15)
        y, stored, lows = 162, {}, []
        height = 2 * (std + low) + gap
        at = y if not tied else y + 30
        for side, other in (("Q", "K"), ("K", "Q")):
            for head in (1, 2):
                p.label(b, y, w, std, "std", f"{side}_{{std}}  head {head}", 13)
                p.label(b, y + std, w, low, "low", f"{other}_{{low}}", 12.5)
                p.box(a, at, w, std, "std")
                p.text(a + w / 2, at + std / 2 + (7 if tied else 0), f"{side}_{{std}}  head {head}", 13, "std")
                p.line([(a + w, at + std / 2 + (7 if tied else 0)), (b - 2, y + std / 2)], "std")
                stored[side, head] = at
                lows.append((other, head, y + std + low / 2))
                if tied:
                    p.label(a, at, w, 15, "low", "first *R* rows", 11)
                else:
                    p.label(a, at + std, w, low, "low", f"{other}_{{low}}", 12.5)
                    p.line([(a + w, at + std + low / 2), (b - 2, y + std + low / 2)], "low")
                if side == "Q":
                    p.text(b + w + 12, y + std / 2, "× *w*_{std}", 15, "std", at="start")
                    p.text(b + w + 12, y + std + low / 2, "× *w*_{rec}", 15, "low", at="start")
                y += std + low + gap
                at += std + gap if tied else std + low + gap
            if side == "K":
                p.text(b + w + 12, y - height / 2 - gap, "× 1", 15, "soft", at="start")
            y, at = y + 8, at + 8
        for side, head, target in lows if tied else ():
            start = (a + w, stored[side, head] + 7.5)
            p.curve(
                f"M{start[0]:g} {start[1]:g}C{start[0] + 30:g} {start[1]:g} {b - 34:g} {target:g} {b - 2:g} {target:g}",
                (b - 12, target), (b - 2, target), "low",
            )  # fmt: skip
        p.label(b, y, w, 56, "value", "V", 14)
        p.label(a, at, w, 56, "value", "V", 14)
        p.line([(a + w, at + 28), (b - 2, y + 28)], "value")
        p.text(b + w + 12, y + 28, "× 1", 15, "soft", at="start")
        size = "(3*C* − 2*RH*′) × *C* stored, *H*′ reciprocal heads" if tied else "3*C* × *C* stored, as in GPT-2"
        p.text(left + 20, 546, size, 14, at="start")
        p.text(left + 20, 569, "3*C* × *C* used: the same GEMM and the same SDPA", 14, "soft", at="start")
    return p


def forward_pass() -> Picture:
    """The operations of one attention layer; the fold stands above them, in the weights."""
    p = Picture(
        470,
        "The forward pass of unified reciprocal attention",
        "Gates and the fused weight give an effective weight. Then everything is as in GPT-2: one projection, a split, "
        "one causal SDPA, one output projection. Step V2 mixes v back in after SDPA.",
    )
    p.heading(
        "The forward pass", "the fold works on weights, *O*(*C*²) a pass; what the tokens go through is GPT-2's own"
    )
    for x, words in (
        (116, "c_attn.weight\n[3*C*, *C*]"),
        (262, "*w*_{std}, *w*_{rec}\nper head"),
        (408, "*s*\nwarm-up"),
    ):
        p.label(x - 62, 96, 124, 50, "plain", words, 13.5)
        p.line([(x, 146), (x, 178)] if x == 262 else [(x, 146), (x, 162), (262, 162)], "plain", arrow=x == 262)
    p.label(142, 180, 240, 48, "low", "fold:  *W*_{eff} = scale ⊙ *W*[index]", 15)
    for y, words in (
        (104, "scale: *w*_{std} on the first *D*_{std} rows of a head in Qf,"),
        (125, "*w*_{rec} on its last *R*, and 1 on the rows of Kf and V"),
        (155, "index: every row in its place; tied, the low rows"),
        (176, "are the first *R* rows of the other side"),
        (206, "*s* = 0: both gates read 1; tied, the second term is gone"),
    ):
        p.text(504, y, words, 13.5, "soft", at="start")

    p.box(32, 262, 896, 176, "panel", radius=8)
    p.text(908, 284, "the same operations as in GPT-2", 13, "soft", at="end")
    top, h = 312, 64
    mid = top + h / 2
    p.line([(262, 228), (262, top - 2)], "low")
    p.label(52, top, 96, h, "plain", "*x*\n[*B*, *T*, *C*]", 14)
    p.line([(148, mid), (186, mid)])
    p.label(188, top, 148, h, "plain", "one GEMM\n*x W*_{eff}^{ T}", 14.5)
    p.line([(336, mid), (374, mid)])
    for y, kind, words in ((298, "std", "Qf"), (330, "std", "Kf"), (362, "value", "V")):
        p.label(376, y, 60 if words == "V" else 46, 28, kind, words, 14)
        if words != "V":
            p.box(422, y, 14, 28, "low")
    p.text(406, 408, "[*B*, *H*, *T*, *d*]", 13, "soft")
    p.line([(436, mid), (480, mid)])
    p.label(482, top, 128, h, "plain", "one SDPA\ncausal, 1/√*d*", 14.5)
    p.line([(610, mid), (750, mid)])
    p.box(634, top + 8, 90, h - 16, "low", dashed=True)
    p.text(679, mid - 9, "restart", 14, "low")
    p.text(679, mid + 10, "V2 only", 13, "low")
    p.line([(436, 376), (450, 376), (450, 420), (679, 420), (679, top + h - 6)], "value", dashed=True)
    p.text(560, 409, "*v*", 14, "value")
    p.label(752, top, 92, h, "plain", "one GEMM\nc_proj", 14.5)
    p.line([(844, mid), (882, mid)])
    p.text(900, mid, "*y*", 17)
    return p


def self_restart() -> Picture:
    """The random walk that one step of is taken, and the two lines of arithmetic."""
    p = Picture(
        408,
        "The one-step self-restart",
        "Token i's output is (1 - alpha) of what attention brings from tokens up to i, and alpha of its own value.",
    )
    p.heading(
        "The one-step self-restart (V2)", "a random walk over tokens that returns to its start with probability *α*"
    )
    p.box(32, 88, 440, 288, "panel", radius=8)
    p.text(52, 112, "one head, seen from token *i* = 4", 15, at="start", bold=True)
    places, y = (80, 162, 244, 326), 262
    for number, x in enumerate(places[:3], start=1):
        high = y - 40 - 28 * (4 - number)
        p.curve(f"M326 {y - 24}C326 {high} {x} {high} {x} {y - 26}", (x, y - 40), (x, y - 26), "std")
    p.curve(f"M314 {y + 21}C288 {y + 72} 364 {y + 72} 340 {y + 23}", (352, y + 52), (339, y + 22), "low")
    for number, x in enumerate(places, start=1):
        p.circle(x, y, 24, "low" if number == 4 else "std")
        p.text(x, y, f"*v*_{{{number}}}", 17, "low" if number == 4 else "std")
    p.text(203, 144, "(1 − *α*) *A*_{4j}", 16, "std")
    p.text(358, y + 48, "*α* + (1 − *α*) *A*_{44}", 15, "low", at="start")
    p.text(52, 352, "*A*: causal softmax, each row sums to 1", 13.5, "soft", at="start")

    p.box(488, 88, 440, 288, "panel", radius=8)
    p.text(508, 112, "what is computed", 15, at="start", bold=True)
    p.label(508, 166, 60, 48, "value", "*v*", 17)
    p.line([(568, 190), (606, 190)])
    p.label(608, 166, 92, 48, "plain", "SDPA", 15)
    p.line([(700, 190), (738, 190)])
    p.label(740, 166, 84, 48, "std", "× (1 − *α*)", 15)
    p.line([(824, 190), (852, 190)])
    p.line([(538, 214), (538, 252), (738, 252)], "value")
    p.label(740, 228, 84, 48, "low", "× *α*", 15)
    p.line([(824, 252), (868, 252), (868, 206)], "low")
    p.circle(868, 190, 14, "plain")
    p.text(868, 189, "+", 18)
    p.line([(882, 190), (904, 190)])
    p.text(914, 189, "*y*", 17)
    p.text(508, 304, "*y* = (1 − *α*) *A v* + *α v*", 18, at="start")
    p.text(508, 331, "*α* per head, starts at 0.05, acts within [0, 0.5]", 13.5, "soft", at="start")
    p.text(508, 352, "during the warm-up *s α* stands for *α*", 13.5, "soft", at="start")
    return p


def reciprocal_mlp() -> Picture:
    """The four steps V3 to V6: what happens to h_low before the down-projection."""
    p = Picture(
        636,
        "The reciprocal MLP in steps V3 to V6",
        "One up-projection of the standard width, GELU, a split into h_std and h_low, then on h_low nothing more (V3), "
        "a mixer (V4), a per-token gate (V5) or both (V6), and the down-projection.",
    )
    p.heading(
        "The reciprocal MLP, V3 to V6", "4*C* hidden features as in GPT-2, the last *R*_{ff} = 64 of them the low path"
    )
    arms = (
        ("V3", "gates only", 0, 0),
        ("V4", "and a mixer", 1, 0),
        ("V5", "and a token gate", 0, 1),
        ("V6", "and both", 1, 1),
    )
    for number, (step, what, mixer, gate) in enumerate(arms):
        x = 32 + 226 * number
        p.box(x, 88, 218, 436, "panel", radius=8)
        p.text(x + 16, 112, step, 16, at="start", bold=True)
        p.text(x + 202, 112, what, 13.5, "soft", at="end")
        left = x + 22
        std, low = left + 58, left + 145  # the middles of the two paths
        p.label(left, 138, 174, 34, "plain", "*W*_{up} *x*, then GELU", 14)
        for centre, kind in ((std, "std"), (low, "low")):
            p.line([(centre, 172), (centre, 198)], kind)
        p.label(left, 200, 116, 36, "std", "*h*_{std}", 16)
        p.label(left + 116, 200, 58, 36, "low", "*h*_{low}", 16)
        p.line([(std, 236), (std, 406)], "std")
        above = 236
        if mixer:
            p.line([(low, above), (low, 256)], "low")
            p.label(low - 29, 258, 58, 34, "low", "*M*", 17)
            above = 292
        if gate:
            p.line([(low, above), (low, 324)], "low")
            p.circle(low, 343, 17, "low")
            p.text(low, 342, "× *g*_{t}", 14, "low")
            above = 360
        p.line([(low, above), (low, 406)], "low")
        p.label(left, 408, 116, 36, "std", "× *w*_{std}", 15)
        p.label(left + 116, 408, 58, 36, "low", "× *w*_{rec}", 15)
        for centre, kind in ((std, "std"), (low, "low")):
            p.line([(centre, 444), (centre, 468)], kind)
        p.label(left, 470, 174, 34, "plain", "*W*_{down}", 15)
    for y, kind, words in (
        (
            552,
            "paper",
            "*w*_{std}, *w*_{rec} and the mixer *M* (64 × 64, starts at *I*) are folded into *W*_{down}: weights.",
        ),
        (
            578,
            "paper",
            "*g*_{t} = sigmoid(*u* · *x*_{t} + *b*), one number per token, starts at 0.98: the term that is no weight.",
        ),
        (
            604,
            "soft",
            "Without *g*_{t} it is the standard MLP's function class: V3 and V4 bake into one, V5 and V6 do not.",
        ),
    ):
        p.text(32, y, words, 14, kind, at="start")
    return p


PICTURES: tuple[Callable[[], Picture], ...] = (folded_layout, weight_layout, forward_pass, self_restart, reciprocal_mlp)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check every picture; 1 when --check finds one that differs."""
    parser = argparse.ArgumentParser(description="Draw docs/images/*.svg.")
    parser.add_argument("--check", action="store_true", help="only say which committed files differ")
    check = parser.parse_args(argv).check
    stale = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        path, wanted = FOLDER / f"{draw.__name__}.svg", draw().svg()
        if check:
            stale += [] if path.is_file() and path.read_text(encoding="utf-8") == wanted else [path.name]
        else:
            path.write_text(wanted, encoding="utf-8")
    if stale:
        print(
            f"error: docs/images: {', '.join(stale)} differ from the drawing program; run `make docs`", file=sys.stderr
        )
        return 1
    if not check:
        print(f"{len(PICTURES)} diagrams written to docs/images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
