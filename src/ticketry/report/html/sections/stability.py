"""A study of stability: from which rewind step on do pruning and the order of the data no longer matter?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from ticketry.records.evidence import StabilityRecord, StabilityRow
from ticketry.records.network import TICKET
from ticketry.records.schema import as_json
from ticketry.report.figures import BARRIERS, STABILITY, Drawing
from ticketry.report.html.blocks import Byline, Cell, Folded, Place, Row, Section, Table, made_by
from ticketry.report.tables.evidence import at_density, densities, sparsest
from ticketry.report.tables.rows import barrier_rows, stability_rows
from ticketry.report.wording import NONE, metric_label, percent

_SHADES = 6


def stability_section(study: StabilityRecord, drawings: Mapping[str, Drawing], place: Place) -> Section:
    """Panels over rewind steps, the barriers' curves, and the distances layer by layer."""
    facts = [
        study.task.title,
        f"{study.replicates} replicate{'' if study.replicates == 1 else 's'}",
        f"{study.total_steps:,} steps of training",
    ]
    blocks = [
        Byline(facts, study.name),
        place.figure(drawings, STABILITY, _caption(study), stability_rows([study])),
        place.figure(drawings, BARRIERS, _curve_caption(study), barrier_rows([sparsest(study)])),
        _layers(study, place),
        made_by(study.command, as_json(study.cost), study.environment),
    ]
    return Section(place.id("stability"), "Stability over the rewind step", blocks, name="Stability")


def _caption(study: StabilityRecord) -> str:
    spread = "mean, and a bar from the least to the largest replicate" if study.replicates > 1 else "one replicate"
    return (
        "Over the step that weights are rewound to (beneath: its share of training; steps are set at equal distances): "
        f"test {metric_label(study.task.metric)}; L2 distance and angle between two trained networks, and the highest "
        "rise of the error on the straight line between them. Solid: trained with the mask and without it (pruning). "
        f"Dashed: trained twice with data in another order; {spread}. Small distances and barriers at a step mean that "
        "training from there on leads to the same place. "
    )


def _curve_caption(study: StabilityRecord) -> str:
    curve = next((found for row in study.rows if (found := row.barrier) is not None), None)
    if curve is None:
        return ""
    batches = curve.recalibrated
    again = f", statistics of batch normalisation recomputed from {batches} batches" if batches else ""
    density = densities(study)
    at = f" at {percent(density[-1])} % of the weights" if density else ""
    return (
        f"Error on the {curve.split} split{again} along the line between two networks trained from the same step with "
        f"data in another order{at}. Flat: they lie in one valley. Colours as above. "
    )


def _layers(study: StabilityRecord, place: Place) -> Folded | None:
    """L2 distances of the tickets at the sparsest level, a row a layer and a column a rewind step."""
    density = densities(study)
    rows = [row for row in at_density(study, density[-1]) if row.role == TICKET and row.layers] if density else []
    kinds = (("pruning", "under pruning"), ("data_order", "under another data order")) if rows else ()
    tables = [_heat(rows, kind, title, percent(density[-1]), place) for kind, title in kinds]
    shown = [table for table in tables if table is not None]
    return Folded("Distances layer by layer", shown) if shown else None


def _heat(rows: list[StabilityRow], kind: str, title: str, density: str, place: Place) -> Table | None:
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for layer in row.layers:
            if (number := getattr(layer, kind)) is not None:
                found.setdefault(layer.name, {}).setdefault(row.step, []).append(number)
    if not found:
        return None
    steps = sorted({row.step for row in rows})
    means = {name: {step: statistics.fmean(values) for step, values in each.items()} for name, each in found.items()}
    largest = max(max(each.values()) for each in means.values()) or 1.0
    body = [Row(name, [_cell(each.get(step), largest) for step in steps]) for name, each in means.items()]
    caption = f"L2 distance {title}, tickets at {density} % of the weights, mean over replicates; more colour: larger."
    return Table(
        place.id(f"table-layers-{kind.removeprefix('data_')}"),
        caption,
        ["layer", *(f"step {step:,}" for step in steps)],
        body,
        "heat",
    )


def _cell(distance: float | None, largest: float) -> Cell | str:
    if distance is None:
        return NONE
    return Cell(f"{distance:.3g}", f"heat-{min(_SHADES, int(_SHADES * max(distance, 0) / largest + 0.5))}")
