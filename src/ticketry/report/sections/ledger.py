"""The ledger: what each level cost in its dense phase, in its search and in its sparse phase."""

from __future__ import annotations

from ticketry.report.aggregate import Group, Results
from ticketry.report.markup import Html, el, prose
from ticketry.report.record import DENSE, TICKET
from ticketry.report.sections.parts import Place, head_row, scrolling
from ticketry.report.spent import ENERGY, FLOPS, MEMORY, NOT_MEASURED, SECONDS, MeanPhase, is_estimate, ledger, power
from ticketry.report.wording import NONE, amount, percent

_FEW = 4
"""Levels up to which the table stands open."""


def ledger_table(results: Results, place: Place) -> Html | None:
    """A row a phase of the dense network and of each level; None where the record does not tell them."""
    groups = [*results.of_role(DENSE), *sorted(results.of_role(TICKET), key=lambda group: -group.density)]
    told = [(group, phases) for group in groups if (phases := ledger(results, group))]
    if not told:
        return None
    energy = power(results.run) is not None
    names = ["network", "phase", "steps", "FLOPs", "seconds", "memory"]
    if energy:
        names.append("energy (an estimate)" if is_estimate(results.run) else "energy")
    bodies = [_body(group, phases, energy) for group, phases in told]
    table = el("table", head_row(*names), *bodies, class_="results ledger")
    text = (
        "What each network needed, mean over replicates. Dense: training without a mask, counted in whole by every "
        "network that needed it, although it was trained once. Search: all else until the mask was known (masked "
        "trainings, gates, batches for scores). Sparse: its own training with its mask. FLOPs: as many as the "
        "weights that remain need. Memory: tensors at the height of one training step; of the whole, the highest. That "
        "of scoring, which is no training step, is not measured."
    )
    text += " Energy: the run's, shared out by seconds." if energy else " Energy: not measured."
    whole = scrolling(table, prose(text), place.id("table-ledger"))
    if len(told) <= _FEW + 1:
        return whole
    return el("details", el("summary", "Steps, FLOPs, seconds and memory of each phase"), whole)


def _body(group: Group, phases: dict[str, MeanPhase], energy: bool) -> Html:
    shown = {name: phase for name, phase in phases.items() if not phase.empty}
    if len(shown) == 2:  # one phase, which is the whole as well
        del shown["whole"]
    title = "dense" if group.role == DENSE else f"{percent(group.density)} %"
    rows = []
    for index, (name, phase) in enumerate(shown.items()):
        first = el("th", title, scope="rowgroup", rowspan=len(shown)) if index == 0 else None
        last = "whole" if name == "whole" else "part"
        rows.append(el("tr", first, el("td", name, class_="phase"), *_cells(phase, energy), class_=last))
    return el("tbody", *rows)


def _cells(phase: MeanPhase, energy: bool) -> list[Html]:
    texts = [f"{phase.steps:,.0f}"]
    for measure in (FLOPS, SECONDS, MEMORY, *([ENERGY] if energy else [])):
        found = phase.amounts[measure]
        if not found and (found is None or measure == MEMORY):  # no step takes no memory
            texts.append(NONE if phase.empty else NOT_MEASURED)
        else:
            texts.append(amount(found, measure))
    return [el("td", text) for text in texts]
