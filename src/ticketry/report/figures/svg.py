"""From a matplotlib figure to SVG: reproducible to the byte, and able to follow the reader's light or dark theme.

Figures are drawn in the light theme's colours. A standalone file keeps them; inside the page each becomes the CSS
variable of its purpose, which the style sheet sets for both themes.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from ticketry.report.figures.panels import settle
from ticketry.report.figures.style import COLOURS

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_SVG, _HREF = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_NUMBERS = {"d", "x", "y", "width", "height"}
"""Attributes that hold numbers and letters with spaces between."""


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of twice its size in pixels, without date or version in it."""
    settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi, metadata={"Software": None}, facecolor=COLOURS["paper"])
    return buffer.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """The figure as a PDF with its text as text, without date or version in it."""
    settle(figure)
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata=nothing, facecolor=COLOURS["paper"])
    return buffer.getvalue()


def to_svg(figure: Figure, title: str = "") -> str:
    """The figure as a standalone SVG document with a title for those who cannot see it, without date or version."""
    settle(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, facecolor=COLOURS["paper"])
    root = ElementTree.fromstring(buffer.getvalue())
    root.set("font-family", _FONT)
    for text in root.iter(f"{{{_SVG}}}text"):
        text.set("style", _without_family(text.get("style", "")))
    if title:
        named = ElementTree.Element(f"{{{_SVG}}}title")
        named.text = title
        root.insert(0, named)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def inline(svg: str, prefix: str, caption: str = "") -> str:
    """The contents of the SVG as an element of a page: themed, scalable, small, with ids of its own.

    Args:
        svg: what `to_svg` made.
        prefix: what its ids begin with.
        caption: the id of the element that says what the drawing shows; without, screen readers pass over it.
    """
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if child.tag == f"{{{_SVG}}}title" or child.find(f"{{{_SVG}}}style") is not None:
            root.remove(child)  # a title would show at the mouse; a style would hold for the whole page
    used = {name for element in root.iter() for value in element.attrib.values() if (name := _referred(value))}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            "href" if name == _HREF else name: _for_page(name, value, prefix)
            for name, value in element.attrib.items()
            if (name != "id" or value in used) and not value.startswith("rotate(-0 ")
        }
        element.text = element.text if element.tag == "text" else None
        element.tail = None
    seen = {"role": "img", "aria-labelledby": caption} if caption else {"aria-hidden": "true"}
    root.attrib = {"viewBox": root.attrib["viewBox"], "focusable": "false", **seen}
    return ElementTree.tostring(root, encoding="unicode")


def _without_family(style: str) -> str:
    """A text is in the family of whatever it stands in; older versions of matplotlib write one ``font`` for all."""
    found = dict(declaration.split(": ", 1) for declaration in style.split("; "))
    found.pop("font-family", None)
    if "font" in found:
        *weight, size = found.pop("font").partition(" '")[0].split()
        found = {"font-size": size, **({"font-weight": weight[-1]} if weight else {}), **found}
    return "; ".join(f"{name}: {value}" for name, value in found.items())


def _referred(value: str) -> str:
    """The id that an attribute refers to; empty if it refers to none."""
    if value.startswith("url(#"):
        return value[5:-1]
    return value[1:] if value.startswith("#") else ""


def _for_page(name: str, value: str, prefix: str) -> str:
    """An attribute as it stands on the page: a hundredth of a pixel at most, variables for colours, ids of its own."""
    if name == "style":
        parts = (part.partition(": ") for part in value.split("; "))
        return "; ".join(f"{key}: {_VARIABLES.get(word, word)}" for key, _, word in parts)
    if name in _NUMBERS:
        return " ".join(map(_rounded, value.split()))
    if name == "id":
        return f"{prefix}-{value}"
    return value.replace("#", f"#{prefix}-", 1) if _referred(value) else value


def _rounded(word: str) -> str:
    return f"{float(word):.2f}".rstrip("0").rstrip(".") if "." in word and word[-1].isdigit() else word
