"""What the run cost, in steps and in time, what the store saved, and the ledger of each level's phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.records.network import DENSE, TICKET
from ticketry.report.figures import METRIC_BY_COST, METRIC_BY_SPENT, Drawing
from ticketry.report.html.blocks import Block, Cell, Facts, Folded, Place, Row, Section, Table, Text
from ticketry.report.tables.costs import (
    ENERGY,
    FLOPS,
    MEMORY,
    NOT_MEASURED,
    SECONDS,
    MeanPhase,
    counts,
    is_estimate,
    ledger,
    power,
)
from ticketry.report.tables.results import Group, Results
from ticketry.report.tables.rows import cost_rows, spent_rows
from ticketry.report.wording import NONE, amount, duration, percent, times

_FEW = 4
"""Levels up to which the ledger stands open."""


def cost_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """The search against one dense training, controls apart; None where the record tells no cost."""
    whole = place.figure(drawings, METRIC_BY_SPENT, spent_caption([results]), spent_rows([results]))
    search = place.figure(drawings, METRIC_BY_COST, cost_caption(several=False), cost_rows([results]))
    facts, table = _facts(results), ledger_table(results, place)
    if not (facts or whole or search):
        return None
    text = (
        "A step is one batch, forward and backward; a segment is a stretch of training between two checkpoints. "
        "The search is what it takes to find the tickets of one replicate, its dense training included; "
        "controls only serve the comparison."
    )
    if "energy_kwh" not in counts(results.run):
        text += " Energy: not measured on this machine."
    if table is None:
        text += " FLOPs, seconds and memory of each phase: not measured in this run."
    figures: Sequence[Block | None] = [whole, table, search] if whole else [search, table]
    return Section(place.id("cost"), "Cost", [Facts(facts) if facts else None, *figures, Text(text, "note")])


def cost_caption(several: bool) -> str:
    """Of the figure of searches."""
    what = "each run's tickets" if several else "the tickets"
    return (
        f"Test metric of {what} against all the training of the search up to them (dense training, then every denser "
        "ticket), mean over replicates; square and horizontal line: the dense network. Seconds are those of the "
        "machine and the load at the time; controls are left out. "
    )


def spent_caption(runs: Sequence[Results]) -> str:
    """Of the figure of whole trainings."""
    marks = "of each run; the smaller the mark, the fewer weights" if len(runs) > 1 else "of each density"
    measured = any(power(results.run) is not None for results in runs)
    energy = "energy (the run's, shared out by seconds)" if measured else "energy, which was not measured"
    return (
        f"Test metric of the tickets {marks}, against the cost of their whole training: FLOPs, seconds and the highest "
        "memory of its dense phase, search and sparse phase, as multiples of the dense network's in the same run, and "
        f"{energy}. Means over replicates; thin bars: from the least to the largest; square and grey lines: the dense "
        "network. FLOPs are as many as the weights that remain need; seconds are those of the machine at the time. "
    )


def _facts(results: Results) -> list[tuple[str, str, str]]:
    """Search, controls, store, time and energy, as far as the record tells."""
    cost, found = counts(results.run), []
    if "search_steps_per_replicate" in cost:
        steps, dense = cost["search_steps_per_replicate"], cost.get("dense_steps", 0)
        ratio = (f"{times(steps / dense)} × dense", f"{steps:,.0f} steps; dense: {dense:,.0f}") if dense else None
        found.append(("Search, per replicate", *(ratio or (f"{steps:,.0f} steps", ""))))
    if "control_steps" in cost:
        found.append(("Controls, all replicates", f"{cost['control_steps']:,.0f} steps", "not part of the search"))
    if {"segments_asked", "segments_trained"} <= cost.keys():
        asked, trained = cost["segments_asked"], cost["segments_trained"]
        detail = f"{asked - trained:,.0f} came from the store"
        if {"steps_asked", "steps_trained"} <= cost.keys() and cost["steps_asked"]:
            saved = 1 - cost["steps_trained"] / cost["steps_asked"]
            detail += f": {100 * saved:.0f} % of {cost['steps_asked']:,.0f} steps"
        found.append(("Segments trained", f"{trained:,.0f} of {asked:,.0f}", detail))
    if "wall_seconds" in cost:
        training = cost.get("train_seconds")
        detail = f"{duration(training)} of training, all processes together" if training is not None else ""
        found.append(("Time", duration(cost["wall_seconds"]), detail))
    if "energy_kwh" in cost:
        kwh = cost["energy_kwh"]
        number = f"{kwh:.3g} kWh" if kwh >= 0.001 else amount(1000 * kwh, ENERGY)
        found.append(("Energy", number, results.run.cost.energy_by))
    return found


# -- the ledger --------------------------------------------------------------------------------------------------------


def ledger_table(results: Results, place: Place) -> Table | Folded | None:
    """A row a phase of the dense network and of each level; None where the record does not tell them."""
    groups = [*results.of_role(DENSE), *sorted(results.of_role(TICKET), key=lambda group: -group.density)]
    told = [(group, phases) for group in groups if (phases := ledger(results, group))]
    if not told:
        return None
    energy = power(results.run) is not None
    head = ["network", "phase", "steps", "FLOPs", "seconds", "memory"]
    if energy:
        head.append("energy (an estimate)" if is_estimate(results.run) else "energy")
    caption = (
        "What each network needed, mean over replicates. Dense: training without a mask, counted in whole by every "
        "network that needed it, although it was trained once. Search: all else until the mask was known (masked "
        "trainings, gates, batches for scores). Sparse: its own training with its mask. FLOPs: as many as the "
        "weights that remain need. Memory: tensors at the height of one training step; of the whole, the highest. That "
        "of scoring, which is no training step, is not measured."
    )
    caption += " Energy: the run's, shared out by seconds." if energy else " Energy: not measured."
    bodies = [_body(group, phases, energy) for group, phases in told]
    table = Table(place.id("table-ledger"), caption, head, (), "ledger", bodies)
    return table if len(told) <= _FEW + 1 else Folded("Steps, FLOPs, seconds and memory of each phase", [table])


def _body(group: Group, phases: Mapping[str, MeanPhase], energy: bool) -> list[Row]:
    shown = {name: phase for name, phase in phases.items() if not phase.empty}
    if len(shown) == 2:  # one phase, which is the whole as well
        del shown["whole"]
    title = "dense" if group.role == DENSE else f"{percent(group.density)} %"
    head = Cell(title, rows=len(shown))
    return [
        Row(
            None if index else head,
            [Cell(name, "phase"), *_cells(phase, energy)],
            "whole" if name == "whole" else "part",
        )
        for index, (name, phase) in enumerate(shown.items())
    ]


def _cells(phase: MeanPhase, energy: bool) -> list[str]:
    texts = [f"{phase.steps:,.0f}"]
    for measure in (FLOPS, SECONDS, MEMORY, *([ENERGY] if energy else [])):
        found = phase.amounts[measure]
        if not found and (found is None or measure == MEMORY):  # no step takes no memory
            texts.append(NONE if phase.empty else NOT_MEASURED)
        else:
            texts.append(amount(found, measure))
    return texts
