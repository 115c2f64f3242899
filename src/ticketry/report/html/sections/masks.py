"""What masks keep: density by layer, pictures of the first layer, and masks before and after they got a structure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ticketry.records.network import TICKET
from ticketry.records.structure import LayerFit, Structure
from ticketry.report.figures import DENSITY_BY_LAYER, FIRST_LAYER, STRUCTURE, Drawing
from ticketry.report.html.blocks import Figure, Folded, Part, Place, Row, Section, Table, Text
from ticketry.report.tables.masks import MOST_FILTERS, drawn_level, pictures
from ticketry.report.tables.results import Group, Results, layer_profiles
from ticketry.report.tables.rows import fit_rows, layer_rows
from ticketry.report.wording import NONE, percent


def layers_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """Figure at selected levels, table at all; None where the record has no layers."""
    profiles = layer_profiles(results)
    if DENSITY_BY_LAYER not in drawings:
        return None
    names = dict.fromkeys(name for profile in profiles for name in profile.layers)
    rows = [Row(name, [_kept(profile.layers.get(name)) for profile in profiles]) for name in names]
    caption = (
        "Share of each layer's weights that the tickets keep, mean over replicates, at levels spread over the "
        "run; layers in the order of the model. A straight vertical line would be one density for all layers. "
    )
    about = "Weights remaining in each layer, %, by weights remaining in all of them together, % (columns)."
    head = ["layer", *(percent(profile.density) for profile in profiles)]
    table = Table(place.id("table-layers"), about, head, rows)
    figure = place.figure(drawings, DENSITY_BY_LAYER, caption, layer_rows(results))
    folded = Folded("All layers and levels as a table", [table])
    return Section(place.id("layers"), "Density by layer", [figure, folded], name="Layers")


def _kept(density: float | None) -> str:
    if density is None:
        return NONE
    return percent(density) if density > 0 else "0"


def first_layer_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """The first layer at a few levels; None where the record has no pictures of it."""
    if FIRST_LAYER not in drawings:
        return None
    layer = pictures(results)[0].layer
    if layer.kind == "inputs":
        text = (
            "The share of each input's weights that the mask keeps: brighter, more; black, none. Each picture is "
            "scaled to its own brightest input, whose share stands above it"
        )
    else:
        colours = {
            1: "white: kept",
            3: "in red, green and blue, for the channels that are kept; white, all three",
        }.get(layer.shape[1], f"brighter: more of the {layer.shape[1]} input channels kept")
        more = f"; the first {MOST_FILTERS} of {layer.shape[0]}" if layer.shape[0] > MOST_FILTERS else ""
        text = f"A tile a filter, {layer.shape[2]} × {layer.shape[3]} weights each ({colours}; black: removed){more}"
    caption = ("The mask of ", Part(layer.name), f" of one replicate. {text}. ")
    figure = place.figure(drawings, FIRST_LAYER, caption)
    return Section(place.id("first-layer-mask"), "The first layer's mask", [figure], name="First layer")


# -- before and after a structure --------------------------------------------------------------------------------------

Structured = Sequence[tuple[Group, Sequence[Structure]]]
"""The levels that have one, and that of each replicate."""

_SHARES = {"coverage": "coverage", "null_coverage": "no structure", "random_coverage": "random", "fill": "fill"}
_MEANINGS = {
    "coverage": "of the magnitude kept before, what is in the structured mask",
    "null_coverage": "the same where the entries of each column are shuffled among the rows",
    "random_coverage": "with rows in random groups",
    "fill": "share of the structured mask that was not kept before",
}


def structure_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """Pictures of a level, a table of all levels, and one of the layers of each; None where masks have none."""
    found = [
        (group, made)
        for group in results.of_role(TICKET)
        if (made := [point.structure for point in group.points.values() if point.structure])
    ]
    if not found:
        return None
    fits = [fit for _, made in found for one in made for fit in one.layers]
    told = [share for share in _SHARES if any(getattr(fit, share) is not None for fit in fits)]
    blocks = [
        Text(_sentence(found), "lead"),
        _figure(results, drawings, place),
        _levels(found, told, place),
        _layers(found, told, place),
    ]
    return Section(place.id("structure"), "Structure", blocks)


def _sentence(found: Structured) -> str:
    name = found[0][1][0].name
    text = f"Masks were found without structure, level after level; each ticket's is made of its level's ({name})."
    group, made = found[-1]
    whole = [one.layers[-1] for one in made if one.layers]
    covered = _mean("coverage", whole) if whole else None
    if covered is None:
        return text
    null = _mean("null_coverage", whole)
    more = "" if null is None else f" ({percent(null)} % where rows have nothing in common)"
    return (
        f"{text} At the last level, {percent(_before(made))} % of the weights before and {percent(group.density)} %"
        f" after, {percent(covered)} % of the kept magnitude is in the structured mask{more}."
    )


def _before(made: Sequence[Structure]) -> float:
    return statistics.fmean(one.before for one in made)


def _figure(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Figure | None:
    shown = drawn_level(results)
    if shown is None:
        return None
    caption = (
        f"Masks of one replicate at {percent(shown.structure.before)} % of the weights, before and after"
        f" {shown.structure.name}. White: kept. Rows are outputs, sorted by the group that they are in after, those"
        " with the most columns first; marks at the left: where groups begin. Columns are inputs and taps. "
    )
    return place.figure(drawings, STRUCTURE, caption, fit_rows([results]))


def _levels(found: Structured, told: Sequence[str], place: Place) -> Table | None:
    rows = []
    for group, made in found:
        if all(one.layers for one in made):
            whole = [one.layers[-1] for one in made]
            shares = [_percent(_mean(share, whole)) for share in told]
            cells = [percent(_before(made)), percent(group.density), *shares, str(len(made))]
            rows.append(Row(str(group.level), cells))
    meanings = "; ".join(f"{_SHARES[share]}: {_MEANINGS[share]}" for share in told)
    caption = f"Share of the weights before and after; {meanings}. Means over replicates."
    head = ["level", "before, %", "after, %", *(f"{_SHARES[share]}, %" for share in told), "replicates"]
    return Table(place.id("table-structure"), caption, head, rows) if rows else None


def _mean(share: str, fits: Sequence[LayerFit]) -> float | None:
    """Of a field over replicates; None where one does not tell it."""
    values = [getattr(fit, share) for fit in fits]
    return None if None in values else statistics.fmean(values)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _layers(found: Structured, told: Sequence[str], place: Place) -> Folded | None:
    """One replicate's layers at each level, folded away."""
    columns = [f"{_SHARES[share]}, %" for share in told]
    head = ["layer", "rows × columns", "groups × rows", "before, %", "after, %", *columns]
    tables = [
        Table(
            place.id(f"table-structure-{group.level}"),
            f"Level {group.level}, {percent(made[0].before)} % of the weights before; one replicate.",
            head,
            [_layer_row(fit, told) for fit in made[0].layers[:-1]],
        )
        for group, made in found
        if made[0].layers
    ]
    return Folded("Layer by layer, at each level", tables) if tables else None


def _layer_row(fit: LayerFit, told: Sequence[str]) -> Row:
    shares = (fit.density_before, fit.density_after, *(getattr(fit, share) for share in told))
    sizes = (f"{fit.rows} × {fit.columns}", f"{fit.groups} × {fit.rows_per_group}")
    return Row(fit.name, [*sizes, *map(_percent, shares)])
