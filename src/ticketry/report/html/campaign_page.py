"""The page of a campaign: claim by claim what was found, the runs, and all methods in one table."""

from __future__ import annotations

from functools import partial

from ticketry.records.campaign import CampaignRecord, Claim
from ticketry.report.figures import drawn
from ticketry.report.figures.claims import claims_figure
from ticketry.report.html.blocks import Cell, Code, Folded, Items, Notes, Place, Row, Section, Table, Text, pairs
from ticketry.report.html.page import document
from ticketry.report.tables.claims import (
    CLAIMS,
    METHODS,
    RUNS,
    TURNED,
    claim_cells,
    facts,
    method_rows,
    run_rows,
    side_name,
)
from ticketry.report.wording import NONE, percent, value

_FIGURE = "claims"


def render_campaign(record: CampaignRecord) -> str:
    """The whole document. The same record gives the same bytes."""
    place = Place()
    sections = [_claims(record, place), _methods(record), _runs(record), _made(record)]
    head = {
        "title": f"{record.title}, {record.scale}",
        "eyebrow": "ticketry reproduce",
        "heading": record.title,
        "facts": [record.paper or NONE, f"scale {record.scale}", value(record.environment.get("date", ""))],
        "name": record.name,
        "lead": [Text(line, "lead" if number == 0 else "remark") for number, line in enumerate(facts(record))],
    }
    return document(sections, head)


def _claims(record: CampaignRecord, place: Place) -> Section:
    shown = [claim for claim in record.claims if claim.difference is not None]
    drawings = drawn({_FIGURE: partial(claims_figure, shown)} if shown else {})
    rows = [_claim_row(claim) for claim in record.claims]
    caption = (
        f"Every claim is that A is better than B by more than its bound. {TURNED}."
        " Verdicts are corrected for interim analyses and within families (Holm); intervals are of the difference"
        " alone. Spreads are standard deviations of the differences, and of each side over seeds; A/A is what"
        " dense networks differ by from themselves, trained with another order of the data."
    )
    asking = {claim.again: claim for claim in record.claims if claim.again}
    notes = [(claim.name, _told(claim, asking.get(claim.name)), claim.found) for claim in record.claims]
    rows_of_figure = [
        {"claim": claim.name, "difference": claim.difference, "above": claim.above, "margin": claim.margin}
        for claim in shown
    ]
    return Section(
        "claims",
        "Claims",
        [
            Table("table-claims", caption, CLAIMS, rows, "verdicts"),
            place.figure(drawings, _FIGURE, "Right of 0 a claim holds.", rows_of_figure),
            Notes(notes, "What is claimed, and by whom"),
        ],
    )


def _claim_row(claim: Claim) -> Row:
    name, found, *cells = claim_cells(claim)
    return Row(name, [Cell(found, found, chip=True), *cells])


def _told(claim: Claim, asking: Claim | None) -> str:
    """A claim in words, and the one that asks it again."""
    at = "" if claim.density is None else f" at {percent(claim.density)} % of the weights"
    words = [
        claim.statement,
        f"A: {side_name(claim.a)}; B: {side_name(claim.b)}; {claim.metric}{at}; margin {claim.margin:g},"
        f" confidence {percent(claim.confidence, 0)} %, family {claim.family}.",
    ]
    words += [f"Source: {claim.source}."] if claim.source else []
    words += [f"There: {claim.figure}."] if claim.figure else []
    words += [f"Asks {claim.again} again, on fresh replicates."] if claim.again else []
    words += [f"Asked again on fresh replicates, as {asking.name}: {asking.found}."] if asking else []
    return " ".join(words)


def _methods(record: CampaignRecord) -> Section:
    rows = [Row(cells[0], cells[1:]) for cells in method_rows(record)]
    caption = (
        "Means and standard deviations over replicates on the test split. Steps, FLOPs and seconds are of all training"
        " that a network needed, its search included."
    )
    return Section("methods", "All methods", [Table("table-methods", caption, METHODS, rows)])


def _runs(record: CampaignRecord) -> Section:
    rows = [Row(cells[0], cells[1:]) for cells in run_rows(record)]
    caption = (
        "What was searched, and how long it was planned to take and took: here with A/A and whatever else it takes to "
        "tell what was found; searches by themselves, also those that were not made here."
    )
    table = Table("table-runs", caption, RUNS, rows)
    settings = pairs(*((run.name, {**run.settings, **run.recipe}) for run in record.runs))
    return Section("runs", "Runs", [table, Folded("Settings and recipes", [settings])])


def _made(record: CampaignRecord) -> Section:
    blocks = [
        Code(record.command, "command"),
        pairs(("Environment", record.environment)),
        Items([f"{one.since}: {one.sha256}" for one in record.files]),
        Folded("The campaign's file", [Code(record.config)]),
    ]
    return Section("made", "How this was made", blocks)
