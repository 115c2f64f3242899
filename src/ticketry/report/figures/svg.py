"""Convert a matplotlib figure to a file, the same to the byte each time, or to an SVG element for a page.

Figures are drawn in the colours of the light theme. Files keep these colours. On a page, each colour becomes a CSS
variable, which the style sheet sets for the light and the dark theme.
"""

from __future__ import annotations

import io
import re
from typing import Any
from xml.sax.saxutils import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from ticketry.report.figures.layout import finish_layout
from ticketry.report.figures.style import COLOURS

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


def to_png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG of twice its size in pixels, without date and version."""
    return _save_figure(figure, "png", ("Software",), dpi=2 * figure.dpi)


def to_pdf(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PDF whose text can be selected, without date and version."""
    with rc_context({"pdf.fonttype": 42}):
        return _save_figure(figure, "pdf", ("Creator", "Producer", "CreationDate"))


def to_svg(figure: Figure, title: str = "") -> str:
    """Return the figure as an SVG document with a title for screen readers, without date and version."""
    document = _save_figure(figure, "svg", ("Creator", "Date", "Format", "Type")).decode()
    document = re.sub(r"<!DOCTYPE[^>]*>\s*", "", document)
    document = re.sub(r' style="[^"]*font[^"]*"', _remove_font_family, document)
    return re.sub(
        r"<svg [^>]*>",
        lambda start: f'{start[0][:-1]} font-family="{_FONT}">' + (f"<title>{escape(title)}</title>" if title else ""),
        document,
        count=1,
    )


def _save_figure(figure: Figure, kind: str, metadata: tuple[str, ...], **options: Any) -> bytes:
    finish_layout(figure)
    buffer = io.BytesIO()
    blank = dict.fromkeys(metadata)
    figure.savefig(buffer, format=kind, metadata=blank, facecolor=COLOURS["paper"], **options)
    return buffer.getvalue()


def to_inline_element(svg: str, prefix: str, caption: str = "") -> str:
    """Convert a document of `to_svg` to an element of a page: it follows the theme, scales, and has unique ids.

    Args:
        svg: the document.
        prefix: start of all ids in the element.
        caption: id of the page's element that describes the drawing; without it, screen readers skip the drawing.
    """
    view = re.search(r'viewBox="[^"]*"', svg)
    seen = f'role="img" aria-labelledby="{caption}"' if caption else 'aria-hidden="true"'
    # A title would show at the mouse; a style would hold for the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r">\s+<", "><", body).replace("<defs></defs>", "").replace(" xlink:href=", " href=")
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(?<= id=")|(?<= href="#)|(?<=url\(#)', f"{prefix}-", body)
    body = re.sub(r' (?:d|x|y|width|height)="[^"]*"', lambda found: _NUMBER.sub(_round_number, found[0]), body)
    body = re.sub(r' style="[^"]*"', lambda found: _COLOUR.sub(_theme_colour, found[0]), body)
    return f'<svg {view[0] if view else ""} focusable="false" {seen}>{body}'


_NUMBER, _COLOUR = re.compile(r"\d+\.\d+"), re.compile(r"#[0-9a-f]{6}")


def _round_number(number: re.Match[str]) -> str:
    """Return a number rounded to a hundredth of a pixel."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _theme_colour(colour: re.Match[str]) -> str:
    return _VARIABLES.get(colour[0], colour[0])


def _remove_font_family(style: re.Match[str]) -> str:
    """Remove the font family from a style, so that text has the font of the page; keep size and weight."""
    text = re.sub(r"font-family: [^;\"]*;? ?", "", style[0])
    return re.sub(
        r"font: (?:(?:normal|italic) )*(?:(\w+) )?([\d.]+px) [^;\"]*",
        lambda font: (f"font-weight: {font[1]}; " if font[1] else "") + f"font-size: {font[2]}",
        text,
    )
