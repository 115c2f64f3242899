"""Draws docs/concepts/*.svg: `python docs/site/drawings.py`. Colours are read in light and in dark."""

from __future__ import annotations

import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "concepts"
STYLE = """<style>
text{font:14px system-ui,sans-serif;fill:#37474f}.s{font-size:12px}.b{font-weight:600}
.l{stroke:#607d8b;stroke-width:2;fill:none}.t{stroke:#00897b;fill:#00897b}.tl{stroke:#00897b;stroke-width:3;fill:none}
.o{stroke:#ef6c00;stroke-width:3;fill:none}.of{fill:#ef6c00}
.box{fill:#00897b22;stroke:#00897b;stroke-width:1.5}
.gbox{fill:#607d8b22;stroke:#607d8b;stroke-width:1.5}.cell{stroke:#607d8b66;fill:none}
.on{fill:#00897b}.bg{fill:#fff}.d{stroke-dasharray:5 4}
@media (prefers-color-scheme:dark){.bg{fill:#21252b}text{fill:#cfd8dc}.l{stroke:#90a4ae}
.tl,.t{stroke:#4db6ac}.t,.on{fill:#4db6ac}
.o{stroke:#ffb74d}.of{fill:#ffb74d}.box{fill:#4db6ac22;stroke:#4db6ac}.gbox{fill:#90a4ae22;stroke:#90a4ae}}
</style><defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L10 5L0 10z" fill="#607d8b"/></marker></defs>"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, lines: list[str], kind: str = "gbox") -> str:
    first = y + height / 2 - 8 * (len(lines) - 1) + 5
    words = "".join(text(x + width / 2, first + 17 * i, line, "b" if i == 0 else "s") for i, line in enumerate(lines))
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>{words}'


def arrow(x: float, y: float, to: float, down: float | None = None) -> str:
    return f'<path d="M{x} {y}L{to} {y if down is None else down}" class="l" marker-end="url(#a)"/>'


def segment() -> str:
    parts = [
        box(10, 20, 130, 60, ["state at step a", "weights, optimiser"]),
        arrow(140, 50, 208),
        box(210, 20, 170, 60, ["segment", "train from step a to b"], "box"),
        arrow(380, 50, 448),
        box(450, 20, 140, 60, ["state at step b", "and its metrics"]),
        box(110, 130, 370, 50, ["mask · recipe · order of the data · precision", "and the state that it starts from"]),
        arrow(295, 130, 295, 84),
        arrow(295, 180, 295, 218),
        box(110, 220, 370, 40, ["SHA-256 of all that = its key in the store"], "box"),
        '<path d="M480 240L520 240L520 84" class="l d" marker-end="url(#a)"/>',
        text(528, 170, "requested again:", "s", "start"),
        text(528, 186, "from the store", "s", "start"),
    ]
    return svg(620, 275, parts, "A segment and its key")


def rewinding() -> str:
    parts = [
        text(40, 30, "step 0", "s"),
        text(140, 30, "k", "b"),
        text(540, 30, "T", "b"),
        '<path d="M40 60L140 60" class="tl"/><path d="M140 60L540 60" class="l"/>',
        '<circle cx="140" cy="60" r="6" class="t"/><circle cx="540" cy="60" r="6" class="of"/>',
        text(320, 50, "the dense network trains (level 0)", "s"),
        text(590, 65, "mask", "b of"),
        '<path d="M540 66C540 110 240 90 150 136" class="o d"/>',
        text(420, 118, "its largest weights make the mask", "s"),
        '<path d="M140 66L140 138" class="tl d"/>',
        text(130, 106, "rewound", "s", "end"),
        '<path d="M140 150L540 150" class="tl"/><circle cx="140" cy="150" r="6" class="t"/>',
        '<circle cx="540" cy="150" r="6" class="of"/>',
        text(320, 172, "the ticket trains under the mask (level 1)", "s"),
        '<path d="M540 156C540 200 240 180 150 226" class="o d"/><path d="M140 156L140 228" class="tl d"/>',
        '<path d="M140 240L540 240" class="tl"/><circle cx="140" cy="240" r="6" class="t"/>',
        text(320, 262, "a sparser one (level 2) …", "s"),
    ]
    return svg(620, 280, parts, "Rewinding")


def verdict() -> str:
    zero, margin = 330, 250
    parts = [
        f'<path d="M{zero} 30L{zero} 200" class="l"/><path d="M{margin} 30L{margin} 200" class="o d"/>',
        text(zero, 22, "0"),
        text(margin, 22, "-margin"),
        text(zero, 226, "ticket minus …, in points, with its confidence interval", "s"),
    ]
    rows = [
        ("dense", 275, 350, "no worse"),
        ("re-initialised", 390, 450, "better"),
        ("shuffled mask", 430, 500, "better"),
        ("random mask", 480, 560, "better"),
    ]
    for index, (name, low, high, told) in enumerate(rows):
        y = 55 + 40 * index
        parts += [
            text(120, y + 5, name, "b" if index == 0 else "", "end"),
            f'<path d="M{low} {y}L{high} {y}" class="tl"/><circle cx="{(low + high) / 2}" cy="{y}" r="5" class="t"/>',
            text(high + 10, y + 5, told, "s", "start"),
        ]
    return svg(640, 240, parts, "A verdict")


def groups() -> str:
    draw = random.Random(1)
    size, rows, columns = 13, 12, 12
    kept = {(r, c) for r in range(rows) for c in draw.sample(range(columns), 4)}
    of_group = {first: draw.sample(range(columns), 4) for first in range(0, rows, 4)}
    grouped = {(r, c) for r in range(rows) for c in of_group[r - r % 4]}
    whole = {(r, c) for r in (1, 4, 6, 10) for c in range(columns)}
    parts = []
    for number, (title, cells) in enumerate(
        (("single weights", kept), ("groups of 4 rows", grouped), ("whole channels", whole))
    ):
        left = 20 + 205 * number
        parts.append(text(left + size * columns / 2, 20, title, "b"))
        for r in range(rows):
            for c in range(columns):
                kind = "on" if (r, c) in cells else "cell"
                place = f'x="{left + c * size}" y="{32 + r * size}" width="{size - 2}" height="{size - 2}"'
                parts.append(f'<rect {place} class="{kind}"/>')
        if number == 1:
            parts += [f'<path d="M{left - 5} {32 + f * size}v{4 * size - 2}" class="o"/>' for f in range(0, rows, 4)]
    parts.append(
        text(
            310, 32 + rows * size + 22, "rows are outputs, columns inputs; a third of the weights is kept in each", "s"
        )
    )
    return svg(620, 225, parts, "Three masks of one density")


def svg(width: int, height: int, parts: list[str], title: str) -> str:
    inner = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f'<title>{title}</title>{STYLE}\n<rect width="{width}" height="{height}" rx="8" class="bg"/>\n{inner}\n</svg>\n'
    )


DRAWINGS = {"segment": segment, "rewinding": rewinding, "verdict": verdict, "groups": groups}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
