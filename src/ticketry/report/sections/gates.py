"""The rounds of gates: density over training, how far gates are open at the end, soft against hard."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.figures import DENSITY_OVER_TRAINING, GATE_HISTOGRAMS, Drawing
from ticketry.report.markup import Html, el, prose
from ticketry.report.rounds import GateRound
from ticketry.report.rows import path_rows, round_rows
from ticketry.report.sections.parts import Place, head_row, scrolling
from ticketry.report.wording import MINUS, metric_label, percent


def gates_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """Two figures and a table of all rounds; None where the record has none."""
    rounds = results.run.rounds
    if DENSITY_OVER_TRAINING not in drawings:
        return None
    path = prose(
        "The share of the gates that are on while they are trained (one for each weight; for each channel where whole "
        "channels were chosen by gates), replicate 0. Where s0 differs between rounds, the first and the last are "
        "named; tries that led to no ticket are left out. "
    )
    ends = prose(
        "How far gates are open when the last round ends: what is neither near 0 nor near 1 changes when it is "
        "rounded. "
    )
    return el(
        "section",
        el("h2", "Gates"),
        place.figure(drawings[DENSITY_OVER_TRAINING], DENSITY_OVER_TRAINING, path, path_rows(results)),
        place.figure(drawings[GATE_HISTOGRAMS], GATE_HISTOGRAMS, ends, round_rows([results])),
        el("details", el("summary", f"All {len(rounds)} rounds as a table"), _table(results, place)),
        id=place.id("gates"),
    )


def _table(results: Results, place: Place) -> Html:
    metric = results.run.task.metric
    header = head_row("replicate", "ticket", "round", "s0", "λ", "steps", "gates on, %", "hard", "soft", "mask is used")
    body = el("tbody", *(_row(one) for one in results.run.rounds))
    caption = prose(
        f"Every round that was trained. Hard and soft: {metric_label(metric)} on the validation split with gates "
        "rounded, and with gates as they are."
    )
    return scrolling(el("table", header, body, class_="results"), caption, place.id("table-rounds"))


def _row(one: GateRound) -> Html:
    cells = (
        one.level,
        one.number,
        f"{one.init:.4g}".replace("-", MINUS),
        f"{one.penalty:.3g}".replace("-", MINUS),
        f"{one.steps:,}",
        percent(one.density) if one.density else "0",
        f"{one.hard:.2f}",
        f"{one.soft:.2f}",
        "yes" if one.used else "no",
    )
    return el("tr", el("th", str(one.replicate), scope="row"), *(el("td", str(cell)) for cell in cells))
