"""Pieces that several sections use."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ticketry.report.figures import Drawing
from ticketry.report.figures.svg import inline, run_colour
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.rows import Cell, csv_text
from ticketry.report.wording import value


@dataclass(frozen=True)
class Place:
    """Where on the page a section stands: what its ids begin with, and the number of the next figure."""

    prefix: str = ""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def within(self, prefix: str) -> Place:
        """A part of the page with ids of its own; figures are numbered on."""
        return Place(f"{self.prefix}{prefix}-", self._numbers)

    def id(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def figure(self, drawing: Drawing, name: str, caption: Html, rows: Sequence[Mapping[str, Cell]] = ()) -> Html:
        """A figure with number, caption and its data; the style sheet shows the width that suits the screen."""
        identity = self.id(name)
        return el(
            "figure",
            el("div", Html(inline(drawing.wide, f"{identity}-wide")), class_="drawing wide"),
            el("div", Html(inline(drawing.narrow, f"{identity}-narrow")), class_="drawing narrow"),
            el("figcaption", el("b", f"Figure {next(self._numbers)}."), " ", caption, _downloads(identity, rows)),
            id=identity,
        )


def _downloads(name: str, rows: Sequence[Mapping[str, Cell]]) -> Html:
    """A link to the data; the script adds one to the drawing."""
    link = None
    if rows:
        data = quote(csv_text(rows), safe=" ,;:/?@-_.!~*'()+=")
        link = el("a", "CSV", href=f"data:text/csv;charset=utf-8,{data}", download=f"{name}.csv")
    return el("span", link, class_="downloads")


def scrolling(table: Html, caption: Html, name: str, kind: str = "scroll") -> Html:
    """A table that scrolls by itself on a narrow screen, by keyboard too, so that the page and the caption never do."""
    region = el("div", table, class_=kind, tabindex=0, role="region", aria_labelledby=name)
    return join(el("p", caption, class_="caption", id=name), el("div", region, class_="breakout"))


def pairs(caption: str, items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Html | None:
    """A two-column table of names and values; None if there are none."""
    found = dict(items)
    if not found:
        return None
    rows = [el("tr", el("th", name, scope="row"), el("td", value(item))) for name, item in found.items()]
    return el("table", el("caption", caption), el("tbody", *rows), class_="pairs")


def made_by(command: str, cost: Mapping[str, Any], environment: Mapping[str, Any]) -> Html | None:
    """How evidence was made, folded away; None where the record does not tell."""
    tables = [pairs("Cost", cost), pairs("Environment", environment)]
    if not (command or cost or environment):
        return None
    return el(
        "details",
        el("summary", "How this was made"),
        el("pre", el("code", command), class_="command", tabindex=0) if command else None,
        el("div", *tables, class_="columns"),
    )


def fact(name: str, number: str, detail: str = "") -> Html:
    """One number that stands out, with its name above and a remark below."""
    return el("div", el("dt", name), el("dd", prose(number), class_="number"), el("dd", prose(detail), class_="note"))


def chip(verdict: str) -> Html:
    """A verdict as a word in a coloured frame; the word alone says it."""
    return el("span", verdict, class_=f"chip {verdict}")


def swatch(index: int) -> Html:
    """A spot in the colour of run number `index`."""
    return el("span", class_=f"swatch {run_colour(index)}")


def head_row(*names: str | Html) -> Html:
    return el("thead", el("tr", *(el("th", name, scope="col") for name in names)))
