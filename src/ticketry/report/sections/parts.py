"""Pieces that several sections use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ticketry.report.figures import Drawing
from ticketry.report.figures.svg import inline
from ticketry.report.markup import Html, el, join
from ticketry.report.wording import value


def figure(drawing: Drawing, name: str, caption: Html) -> Html:
    """A figure with its caption; the style sheet shows the width that suits the screen."""
    return el(
        "figure",
        el("div", Html(inline(drawing.wide, f"{name}-wide")), class_="drawing wide"),
        el("div", Html(inline(drawing.narrow, f"{name}-narrow")), class_="drawing narrow"),
        el("figcaption", caption),
        id=name,
    )


def scrolling(table: Html, caption: Html, name: str) -> Html:
    """A table that scrolls by itself on a narrow screen, by keyboard too, so that the page and the caption never do."""
    region = el("div", table, class_="scroll", tabindex=0, role="region", aria_labelledby=name)
    return join(el("p", caption, class_="caption", id=name), el("div", region, class_="breakout"))


def pairs(caption: str, items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Html | None:
    """A two-column table of names and values; None if there are none."""
    found = dict(items)
    if not found:
        return None
    rows = [el("tr", el("th", name, scope="row"), el("td", value(item))) for name, item in found.items()]
    return el("table", el("caption", caption), el("tbody", *rows), class_="pairs")
