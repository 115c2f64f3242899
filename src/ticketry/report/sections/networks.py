"""Every trained network of all runs, a row each; the script makes the table sortable and filterable."""

from __future__ import annotations

from ticketry.report.markup import Html, el, escape, join
from ticketry.report.record import Point
from ticketry.report.sections.parts import scrolling
from ticketry.report.subject import Subject, rewind_of
from ticketry.report.wording import NONE, Style, percent, role_name

_KEY = 10
"""Letters of a segment's key that tell it apart."""


def networks_section(subject: Subject) -> Html:
    """The table, folded away where there is one run; columns that would be the same in all rows are left out then."""
    several = len(subject.runs) > 1
    rows = []
    for label, results in zip(subject.labels, subject.runs, strict=True):
        named = (label, results.run.method, rewind_of(results) or NONE) if several else ()
        test, validation = Style.of(results), Style.of(results, "validation")
        rows += [_row(named, point, test, validation) for point in results.run.points]
    columns = [("run", "text"), ("method", "text"), ("rewind", "text")] if several else []
    columns += [("replicate", "number"), ("level", "number"), ("role", "text"), ("weights, %", "number")]
    columns += [("validation", "number"), ("test", "number"), ("steps", "number"), ("seconds", "number")]
    columns += [("segment", "text")]
    header = el("tr", *(el("th", name, scope="col", data_kind=kind) for name, kind in columns))
    table = el(
        "table",
        el("thead", header),
        el("tbody", *rows),
        class_=f"results sorts networks {'several' if several else ''}".strip(),
    )
    caption = escape(f"{len(rows):,} networks. Steps and seconds are those of each network's own segment of training.")
    return el(
        "section",
        el("h2", "All networks"),
        _filters(subject),
        scrolling(table, caption, "table-networks", "scroll tall"),
        id="networks",
    )


def _filters(subject: Subject) -> Html:
    """Shown by the script only, since nothing works without it."""
    roles = dict.fromkeys(role for results in subject.runs for role in results.roles)
    options = [
        el("option", "all roles", value=""),
        *(el("option", role_name(role), value=role_name(role)) for role in roles),
    ]
    return el(
        "div",
        el(
            "label", "Filter ", Html('<input type="search" id="networks-filter" autocomplete="off" spellcheck="false">')
        ),
        el("label", "Role ", el("select", *options, id="networks-role")),
        el("output", id="networks-count", role="status"),
        class_="filters",
        hidden="",
    )


def _row(named: tuple[str, ...], point: Point, test: Style, validation: Style) -> Html:
    cells = (
        *named,
        str(point.replicate),
        str(point.level),
        role_name(point.role),
        percent(point.density),
        validation.number(point.validation),
        test.number(point.test),
        NONE if point.steps is None else f"{point.steps:,}",
        NONE if point.seconds is None else f"{point.seconds:,.1f}",
    )
    return join(
        Html("<tr>"), *(el("td", cell) for cell in cells), el("td", el("code", point.key[:_KEY])), Html("</tr>\n")
    )
