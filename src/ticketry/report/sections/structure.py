"""Masks before and after they got a structure: pictures, and how much of what was kept is in them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ticketry.report.aggregate import Group, Results
from ticketry.report.figures import STRUCTURE, Drawing
from ticketry.report.figures.structure import drawn_level
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.record import TICKET
from ticketry.report.sections.parts import Place, head_row, scrolling
from ticketry.report.structure_record import Fit, Structure
from ticketry.report.structure_rows import fit_rows
from ticketry.report.wording import NONE, percent


def structure_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """Pictures of a level, a table of all levels, and one of the layers of each; None where masks have none."""
    found = [(group, made) for group in results.of_role(TICKET) if (made := structures(group))]
    if not found:
        return None
    name = found[0][1][0].name
    return el(
        "section",
        el("h2", "Structure"),
        el("p", prose(_sentence(name, found)), class_="lead"),
        _figure(results, drawings, place),
        _levels(found, place),
        _layers(found, place),
        id=place.id("structure"),
    )


def structures(group: Group) -> list[Structure]:
    """Of the tickets of a level that have one, by replicate."""
    return [point.structure for point in group.points.values() if point.structure]


def _sentence(name: str, found: Sequence[tuple[Group, list[Structure]]]) -> str:
    text = f"Masks were found without structure, level after level; each ticket's is made of its level's ({name})."
    group, made = found[-1]
    whole = [one.layers[-1] for one in made if one.layers]
    covered = _mean("coverage", whole) if whole else None
    if covered is None:
        return text
    null = _mean("null", whole)
    more = "" if null is None else f" ({percent(null)} % where rows have nothing in common)"
    return (
        f"{text} At the last level, {percent(_before(made))} % of the weights before and {percent(group.density)} %"
        f" after, {percent(covered)} % of the kept magnitude is in the structured mask{more}."
    )


def _before(made: Sequence[Structure]) -> float:
    return statistics.fmean(one.before for one in made)


def _figure(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    shown = drawn_level(results)
    if STRUCTURE not in drawings or shown is None:
        return None
    caption = prose(
        f"Masks of one replicate at {percent(shown.structure.before)} % of the weights, before and after"
        f" {shown.structure.name}. White: kept. Rows are outputs, sorted by the group that they are in after, those"
        " with the most columns first; marks at the left: where groups begin. Columns are inputs and taps. "
    )
    return place.figure(drawings[STRUCTURE], STRUCTURE, caption, fit_rows([results]))


def _levels(found: Sequence[tuple[Group, list[Structure]]], place: Place) -> Html | None:
    rows = []
    told = _told(found)
    for group, made in found:
        if not all(one.layers for one in made):
            continue
        whole = [one.layers[-1] for one in made]
        shares = [_percent(_mean(share, whole)) for share in told]
        cells = (percent(_before(made)), percent(group.density), *shares, str(len(made)))
        rows.append(el("tr", el("th", str(group.level), scope="row"), *(el("td", cell) for cell in cells)))
    if not rows:
        return None
    header = head_row("level", "before, %", "after, %", *map(_headed, told), "replicates")
    meanings = "; ".join(f"{_SHARES[share]}: {_MEANINGS[share]}" for share in told)
    caption = prose(f"Share of the weights before and after; {meanings}. Means over replicates.")
    return scrolling(el("table", header, el("tbody", *rows), class_="results"), caption, place.id("table-structure"))


_SHARES = {"coverage": "coverage", "null": "no structure", "random": "random", "fill": "fill"}
_MEANINGS = {
    "coverage": "of the magnitude kept before, what is in the structured mask",
    "null": "the same where the entries of each column are shuffled among the rows",
    "random": "with rows in random groups",
    "fill": "share of the structured mask that was not kept before",
}


def _told(found: Sequence[tuple[Group, list[Structure]]]) -> list[str]:
    """The shares that any level tells: of whole channels there is no coverage by chance."""
    fits = [fit for _, made in found for one in made for fit in one.layers]
    return [share for share in _SHARES if any(getattr(fit, share) is not None for fit in fits)]


def _headed(share: str) -> str:
    return f"{_SHARES[share]}, %"


def _mean(share: str, fits: Sequence[Fit]) -> float | None:
    """Of a field over replicates; None where one does not tell it."""
    values = [getattr(fit, share) for fit in fits]
    return None if None in values else statistics.fmean(values)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _layers(found: Sequence[tuple[Group, list[Structure]]], place: Place) -> Html | None:
    """One replicate's layers at each level, folded away."""
    told = _told(found)
    header = head_row("layer", "rows × columns", "groups × rows", "before, %", "after, %", *map(_headed, told))
    tables = [
        scrolling(
            el("table", header, el("tbody", *(_layer_row(fit, told) for fit in made[0].layers[:-1])), class_="results"),
            prose(f"Level {group.level}, {percent(made[0].before)} % of the weights before; one replicate."),
            place.id(f"table-structure-{group.level}"),
        )
        for group, made in found
        if made[0].layers
    ]
    return el("details", el("summary", "Layer by layer, at each level"), join(*tables)) if tables else None


def _layer_row(fit: Fit, told: Sequence[str]) -> Html:
    shares = (fit.before, fit.after, *(getattr(fit, share) for share in told))
    cells = (f"{fit.rows} × {fit.columns}", f"{fit.groups} × {fit.rows_per_group}", *map(_percent, shares))
    return el("tr", el("th", fit.name, scope="row"), *(el("td", cell) for cell in cells))
