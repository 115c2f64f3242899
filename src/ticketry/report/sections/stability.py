"""A study of stability: from which rewind step on do pruning and the order of the data no longer matter?"""

from __future__ import annotations

import statistics

from ticketry.report.evidence_record import StabilityRow, StabilityStudy
from ticketry.report.figures import BARRIERS, STABILITY, Drawing
from ticketry.report.figures.stability import at_density, densities, main_curve, sparsest
from ticketry.report.markup import Html, el, escape, join, prose
from ticketry.report.record import TICKET
from ticketry.report.rows import barrier_rows, stability_rows
from ticketry.report.sections.parts import Place, head_row, made_by, scrolling
from ticketry.report.wording import NONE, metric_label, percent

_SHADES = 6


def stability_section(study: StabilityStudy, drawings: dict[str, Drawing], place: Place) -> Html:
    """Panels over rewind steps, the barriers' curves, and the distances layer by layer."""
    facts = (
        f"{study.task.model} on {study.task.name}",
        f"{study.replicates} replicate{'' if study.replicates == 1 else 's'}",
        f"{study.total_steps:,} steps of training",
    )
    curve_rows = barrier_rows([sparsest(study)])
    panels, curves = drawings.get(STABILITY), drawings.get(BARRIERS)
    return el(
        "section",
        el("h2", "Stability over the rewind step"),
        el("p", *(el("span", one) for one in facts), el("code", study.name), class_="facts-line"),
        place.figure(panels, STABILITY, prose(_caption(study)), stability_rows([study])) if panels else None,
        place.figure(curves, BARRIERS, prose(_curve_caption(study)), curve_rows) if curves else None,
        _layers(study, place),
        made_by(study.command, study.cost, study.environment),
        id=place.id("stability"),
    )


def _caption(study: StabilityStudy) -> str:
    spread = "mean, and a bar from the least to the largest replicate" if study.replicates > 1 else "one replicate"
    return (
        "Over the step that weights are rewound to (beneath: its share of training; steps are set at equal distances): "
        f"test {metric_label(study.task.metric)}; L2 distance and angle between two trained networks, and the highest "
        "rise of the error on the straight line between them. Solid: trained with the mask and without it (pruning). "
        f"Dashed: trained twice with data in another order; {spread}. Small distances and barriers at a step mean that "
        "training from there on leads to the same place. "
    )


def _curve_caption(study: StabilityStudy) -> str:
    curve = next(found for row in study.rows if (found := main_curve(row)) is not None)
    again = (
        f", statistics of batch normalisation recomputed from {curve.recalibrated} batches"
        if curve.recalibrated
        else ""
    )
    density = densities(study)
    at = f" at {percent(density[-1])} % of the weights" if density else ""
    return (
        f"Error on the {curve.split} split{again} along the line between two networks trained from the same step with "
        f"data in another order{at}. Flat: they lie in one valley. Colours as above. "
    )


def _layers(study: StabilityStudy, place: Place) -> Html | None:
    """L2 distances of the tickets at the sparsest level, a row a layer and a column a rewind step."""
    density = densities(study)
    rows = [row for row in at_density(study, density[-1]) if row.role == TICKET and row.layers] if density else []
    if not rows:
        return None
    tables = [
        table
        for kind, title, index in (("pruning", "under pruning", 1), ("order", "under another data order", 2))
        if (table := _heat(rows, kind, title, index, percent(density[-1]), place)) is not None
    ]
    return el("details", el("summary", "Distances layer by layer"), join(*tables)) if tables else None


def _heat(rows: list[StabilityRow], kind: str, title: str, index: int, density: str, place: Place) -> Html | None:
    names = list(dict.fromkeys(layer[0] for row in rows for layer in row.layers))
    steps = sorted({row.step for row in rows})
    means: dict[tuple[str, int], float] = {}
    for name in names:
        for step in steps:
            found = [
                number
                for row in rows
                if row.step == step
                for layer in row.layers
                if layer[0] == name and isinstance(number := layer[index], float)
            ]
            if found:
                means[name, step] = statistics.fmean(found)
    if not means:
        return None
    largest = max(means.values()) or 1.0
    body = [
        el("tr", el("th", name, scope="row"), *(_cell(means.get((name, step)), largest) for step in steps))
        for name in names
    ]
    table = el("table", head_row("layer", *(f"step {s:,}" for s in steps)), el("tbody", *body), class_="results heat")
    caption = f"L2 distance {title}, tickets at {density} % of the weights, mean over replicates; more colour: larger."
    return scrolling(table, escape(caption), place.id(f"table-layers-{kind}"))


def _cell(distance: float | None, largest: float) -> Html:
    if distance is None:
        return el("td", NONE)
    shade = min(_SHADES, int(_SHADES * max(distance, 0) / largest + 0.5))
    return el("td", f"{distance:.3g}", class_=f"heat-{shade}")
