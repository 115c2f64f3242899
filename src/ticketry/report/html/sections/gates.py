"""The rounds of gates: density over training, how far gates are open at the end, soft against hard."""

from __future__ import annotations

from collections.abc import Mapping

from ticketry.records.run import Round
from ticketry.report.figures import DENSITY_OVER_TRAINING, GATE_HISTOGRAMS, Drawing
from ticketry.report.html.blocks import Folded, Place, Row, Section, Table
from ticketry.report.tables.results import Results
from ticketry.report.tables.rows import path_rows, round_rows
from ticketry.report.wording import MINUS, Style, metric_label, percent


def gates_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """Two figures and a table of all rounds; None where the record has none."""
    rounds, metric, style = results.run.rounds, results.run.task.metric, Style.of(results, "validation")
    if DENSITY_OVER_TRAINING not in drawings:
        return None
    path = (
        "The share of the gates that are on while they are trained (one for each weight; for each channel where whole "
        "channels were chosen by gates), replicate 0. Where s0 differs between rounds, the first and the last are "
        "named; tries that led to no ticket are left out. "
    )
    ends = (
        "How far gates are open when the last round ends: what is neither near 0 nor near 1 changes when it is "
        "rounded. "
    )
    caption = (
        f"Every round that was trained. Hard and soft: {metric_label(metric)} on the validation split "
        "with gates rounded, and with gates as they are."
    )
    head = ["replicate", "ticket", "round", "s0", "λ", "steps", "gates on, %", "hard", "soft", "mask is used"]
    table = Table(place.id("table-rounds"), caption, head, [_row(one, metric.name, style) for one in rounds])
    blocks = [
        place.figure(drawings, DENSITY_OVER_TRAINING, path, path_rows(results)),
        place.figure(drawings, GATE_HISTOGRAMS, ends, round_rows([results])),
        Folded(f"All {len(rounds)} rounds as a table", [table]),
    ]
    return Section(place.id("gates"), "Gates", blocks)


def _row(one: Round, metric: str, style: Style) -> Row:
    return Row(
        str(one.replicate),
        [
            str(one.level),
            str(one.number),
            f"{one.init:.4g}".replace("-", MINUS),
            f"{one.penalty:.3g}".replace("-", MINUS),
            f"{one.steps:,}",
            percent(one.density) if one.density else "0",
            style.number(one.metric(metric, soft=False)),
            style.number(one.metric(metric, soft=True)),
            "yes" if one.used else "no",
        ],
    )
