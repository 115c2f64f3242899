"""From a matplotlib figure to SVG: reproducible to the byte, and able to follow the reader's light or dark theme.

Figures are drawn in the light theme's colours, each used for one purpose only. A standalone file keeps them; inside
the page each becomes the CSS variable of its purpose, which the style sheet sets for both themes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "paper": "#fffffe",
    "ink": "#1d2329",
    "muted": "#5c6670",
    "rule": "#d9dde1",
    "shade": "#eef1f4",
    "mark": "#e3f0f8",
    "ticket": "#0072b2",
    "random-reinit": "#d55e00",
    "shuffled": "#009e73",
    "random-prune": "#b3589a",
    "other-1": "#8a6d00",
    "other-2": "#4d7fa8",
    "step-1": "#a6c8e0",
    "step-2": "#7fb0d3",
    "step-3": "#5596c4",
    "step-4": "#2f7bb0",
    "step-5": "#155f94",
    "step-6": "#0b4069",
    "run-1": "#2b4ea8",
    "run-2": "#c2410e",
    "run-3": "#00786e",
    "run-4": "#a3267f",
    "run-5": "#7a6a08",
    "run-6": "#6a3fc0",
    "run-7": "#3f7d1f",
    "run-8": "#c22b4b",
    "good": "#1a7f4b",
    "bad": "#b83227",
}
"""The roles' colours are Okabe and Ito's (one darkened for white paper), which colour-blind readers tell apart."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp, small, to be searched and read aloud
    "svg.hashsalt": "ticketry",  # the same figure has the same ids, so the same record gives the same bytes
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; wider than readers' fonts, so what fits here fits there
    "font.size": 12,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.unicode_minus": True,
    "path.simplify": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which figures are made and written, whatever the user's own are; those are put back."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw it, not ours
        yield


def run_colour(index: int) -> str:
    """The name of the colour of the run that is shown as number `index`; after eight they begin again."""
    return f"run-{1 + index % 8}"


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of twice its size in pixels, without date or version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi, metadata={"Software": None}, facecolor=COLOURS["paper"])
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as a standalone SVG document, without date or version in it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, facecolor=COLOURS["paper"])
    text = re.sub(r"font-family: [^;\"]*|(?<=px )'DejaVu Sans'[^;\"]*", _set_font, buffer.getvalue())
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def inline(svg: str, prefix: str) -> str:
    """The contents of the SVG as an element of a page: themed, scalable, hidden from screen readers, ids of its own."""
    start = svg.index("<svg")
    element = svg[start:]
    for name, colour in COLOURS.items():
        element = element.replace(colour, f"var(--{name})")
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # it would hold for the whole page
    element = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ?", "", element)  # the page's own
    element = _slim(element)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", element)
    head, rest = element.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:
        raise ValueError("an SVG without a viewBox")
    return f'<svg {box[0]} aria-hidden="true" focusable="false">{rest}'


def _set_font(match: re.Match[str]) -> str:
    return f"font-family: {_FONT}" if match[0].startswith("font-family") else _FONT


def _slim(element: str) -> str:
    """The same drawing in fewer letters: no comments, no ids that nothing refers to, a hundredth of a pixel at most."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]*)', element))
    element = re.sub(r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", element, flags=re.DOTALL)
    element = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", element)
    element = re.sub(r'(?<= d=")[^"]*', lambda match: _DECIMALS.sub(_rounded, match[0]).replace("\n", ""), element)
    element = re.sub(
        r'(?<= (?:x|y)=")[^"]*|(?<=translate\()[^)]*', lambda match: _DECIMALS.sub(_rounded, match[0]), element
    )
    return re.sub(r"\n\s*", "\n", element)


def _short_numbers(match: re.Match[str]) -> str:
    return _DECIMALS.sub(_rounded, match[0])


_DECIMALS = re.compile(r"-?\d+\.\d{3,}")


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
