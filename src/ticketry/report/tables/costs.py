"""Compute costs of networks and searches: totals, means, and ratios to the dense network."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ticketry.records.network import DENSE, PHASES, TICKET, Phase, Point
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.wording import NONE, cost_text, factor_text, format_duration

FLOPS, SECONDS, MEMORY, ENERGY = "FLOPs", "seconds", "memory", "energy"
MEASURES = (FLOPS, SECONDS, MEMORY, ENERGY)
NOT_MEASURED = "not measured"


def watt_hours_per_second(run: RunRecord) -> float | None:
    """Return a run's energy per second of training, in watt-hours; None if its energy was not measured."""
    cost = numeric_costs(run)
    kwh, seconds = cost.get("energy_kwh"), cost.get("train_seconds_now")
    return 1000 * kwh / seconds if kwh is not None and seconds else None


def phase_cost(run: RunRecord, phase: Phase, measure: str) -> float | None:
    """Return a training phase's cost by `measure`: FLOPs, seconds, bytes, or watt-hours (part of the run's energy)."""
    if measure == ENERGY:
        hourly = watt_hours_per_second(run)
        return hourly * phase.seconds if hourly is not None and phase.seconds is not None else None
    return {FLOPS: phase.flops, SECONDS: phase.seconds, MEMORY: phase.memory}[measure]


def total_cost(run: RunRecord, point: Point, measure: str) -> float | None:
    """Return the cost of a network's whole training by `measure`, such as seconds; None if it was not measured."""
    return None if point.phases is None else phase_cost(run, point.phases.total, measure)


def cost_relative_to_dense(results: Results, group: Group, measure: str) -> Summary | None:
    """Return the ratio of a group's cost to the dense network's cost, over replicates; None if a cost is missing."""
    dense = results.dense
    ratios = []
    for replicate, point in group.points.items():
        base = dense.points.get(replicate) if dense else None
        below = total_cost(results.run, base, measure) if base else None
        above = total_cost(results.run, point, measure)
        if above is not None and below:
            ratios.append(above / below)
    return summarise(ratios) if len(ratios) == len(group.points) else None


def mean_total_cost(results: Results, group: Group, measure: str) -> float | None:
    """Return a group's mean cost over replicates; None if some replicate's cost was not measured."""
    found = [total_cost(results.run, point, measure) for point in group.points.values()]
    return mean_or_none(found)


def mean_or_none(found: list[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else None


def has_measured_energy(runs: Sequence[Results]) -> bool:
    """Return whether the energy of any of the runs was measured."""
    return any(watt_hours_per_second(results.run) is not None for results in runs)


def cost_table_rows(results: Results) -> list[tuple[str, str, str]]:
    """Return name, number and remark of each recorded cost: search, controls, stored trainings, time and energy."""
    cost, found = numeric_costs(results.run), []
    if "search_steps_per_replicate" in cost:
        steps, dense = cost["search_steps_per_replicate"], cost.get("dense_steps", 0)
        ratio = (f"{factor_text(steps / dense)} × dense", f"{steps:,.0f} steps; dense: {dense:,.0f}") if dense else None
        found.append(("Search, per replicate", *(ratio or (f"{steps:,.0f} steps", ""))))
    if "control_steps" in cost:
        found.append(("Controls, all replicates", f"{cost['control_steps']:,.0f} steps", "not part of the search"))
    if {"segments_asked", "segments_trained"} <= cost.keys():
        requested, trained = cost["segments_asked"], cost["segments_trained"]
        detail = f"{requested - trained:,.0f} came from the store"
        if {"steps_asked", "steps_trained"} <= cost.keys() and cost["steps_asked"]:
            saved = 1 - cost["steps_trained"] / cost["steps_asked"]
            detail += f": {100 * saved:.0f} % of {cost['steps_asked']:,.0f} steps"
        found.append(("Segments trained", f"{trained:,.0f} of {requested:,.0f}", detail))
    if "wall_seconds" in cost:
        training = cost.get("train_seconds")
        detail = f"{format_duration(training)} of training, all processes together" if training is not None else ""
        found.append(("Time", format_duration(cost["wall_seconds"]), detail))
    if "energy_kwh" in cost:
        kwh = cost["energy_kwh"]
        number = f"{kwh:.3g} kWh" if kwh >= 0.001 else cost_text(1000 * kwh, ENERGY)
        found.append(("Energy", number, results.run.cost.energy_by))
    return found


@dataclass(frozen=True)
class TrainingCostPoint:
    """Metric and training cost of the tickets of one level."""

    level: int
    density: float
    values: tuple[float, ...]
    """The test metric of each replicate."""
    times_dense: dict[str, float] = field(default_factory=dict)
    """Mean cost relative to the dense network, by measure; measures without values are missing."""
    watt_hours: float | None = None

    @property
    def metric(self) -> float:
        return statistics.fmean(self.values)

    def cost_to_draw(self, measure: str) -> float | None:
        """Return the cost that a figure shows: energy in watt-hours, other measures relative to the dense network."""
        return self.watt_hours if measure == ENERGY else self.times_dense.get(measure)


def training_cost_points(results: Results) -> list[TrainingCostPoint]:
    """Return a point for each level of tickets, densest first; empty if the record has no costs by phase."""
    found = []
    for group in sorted(results.groups_of_role(TICKET), key=lambda group: -group.density):
        ratios = {measure: cost_relative_to_dense(results, group, measure) for measure in MEASURES}
        found.append(
            TrainingCostPoint(
                group.level,
                group.density,
                tuple(group.values().values()),
                {measure: ratio.mean for measure, ratio in ratios.items() if ratio is not None},
                mean_total_cost(results, group, ENERGY),
            )
        )
    return found if any(point.times_dense for point in found) else []


@dataclass(frozen=True)
class MeanPhase:
    """Costs of a training phase at one level, as means over replicates."""

    steps: float
    amounts: dict[str, float | None]
    """Mean cost by measure; None if some replicate was not measured."""

    @property
    def is_empty(self) -> bool:
        return not (self.steps or self.amounts[FLOPS] or self.amounts[SECONDS])

    def text(self, measure: str) -> str:
        """Return the cost by `measure` with its unit; a dash if the phase did not occur, words if unmeasured."""
        found = self.amounts[measure]
        if not found and (found is None or measure == MEMORY):
            return NONE if self.is_empty else NOT_MEASURED
        return cost_text(found, measure)


def phase_costs(results: Results, group: Group) -> dict[str, MeanPhase]:
    """Return a level's mean costs by training phase: ``dense``, ``search``, ``sparse``, ``whole`` (their sum).

    The result is empty if costs were not recorded.
    """
    recorded = [point.phases for point in group.points.values() if point.phases is not None]
    if len(recorded) < len(group.points):
        return {}
    by_name = {name: [phases.by_name[name] for phases in recorded] for name in PHASES}
    by_name["whole"] = [phases.total for phases in recorded]
    found = {}
    for name, phases in by_name.items():
        amounts = {one: mean_or_none([phase_cost(results.run, phase, one) for phase in phases]) for one in MEASURES}
        found[name] = MeanPhase(statistics.fmean(phase.steps for phase in phases), amounts)
    return found


def phase_costs_by_level(results: Results) -> list[tuple[Group, dict[str, MeanPhase]]]:
    """Return the dense networks and each level's tickets, with their mean costs by training phase.

    Phases that did not occur are omitted, as is their sum ``whole`` if only one phase occurred.
    """
    found = []
    for group in (
        *results.groups_of_role(DENSE),
        *sorted(results.groups_of_role(TICKET), key=lambda group: -group.density),
    ):
        phases = {name: phase for name, phase in phase_costs(results, group).items() if not phase.is_empty}
        if len(phases) == 2:
            del phases["whole"]
        if phases:
            found.append((group, phases))
    return found


def numeric_costs(run: RunRecord) -> dict[str, float]:
    """Return, by name, the costs of a run that are numbers."""
    return {name: float(item) for name, item in as_json(run.cost).items() if not isinstance(item, str)}


@dataclass(frozen=True)
class SearchCostPoint:
    """Cost of the search up to one level, as means over the replicates that reached the level."""

    level: int
    density: float
    metric: float
    steps: float
    """Training steps of the dense network and of all tickets up to this level; if masks come from separate trainings,
    the steps of the trainings behind this ticket's mask, and of the ticket."""
    known: float
    """Training steps until the mask was known, which excludes the ticket's own training."""
    seconds: float | None
    n: int


def search_cost_points(results: Results) -> list[SearchCostPoint]:
    """Return a point for the dense network and each level of tickets, densest first; empty without recorded steps."""
    paths: dict[int, list[tuple[Point, float, float | None]]] = {}
    for replicate in sorted({point.replicate for point in results.run.points}):
        steps, seconds = 0.0, 0.0
        timed = True
        searched = [p for p in results.run.points if p.replicate == replicate and p.role in (DENSE, TICKET)]
        for point in sorted(searched, key=lambda point: (point.role == TICKET, point.level)):
            if point.steps is None:
                break
            if point.search_steps is not None:
                timed = timed and point.search_seconds is not None
                steps, seconds = float(point.search_steps), point.search_seconds or 0
            timed = timed and point.seconds is not None
            steps, seconds = steps + point.steps, seconds + (point.seconds or 0)
            paths.setdefault(point.level, []).append((point, steps, seconds if timed else None))
    found, name = [], results.run.task.metric.name
    for level, entries in sorted(paths.items()):
        found.append(
            SearchCostPoint(
                level,
                density=statistics.fmean(point.density for point, _, _ in entries),
                metric=statistics.fmean(point.metric(name) for point, _, _ in entries),
                steps=statistics.fmean(steps for _, steps, _ in entries),
                known=statistics.fmean(steps - (point.steps or 0) for point, steps, _ in entries),
                seconds=mean_or_none([seconds for _, _, seconds in entries]),
                n=len(entries),
            )
        )
    return found if any(point.level for point in found) else []


def ticket_cost_points(results: Results) -> list[SearchCostPoint]:
    """Return the `search_cost_points` without the dense network, densest first."""
    return sorted((point for point in search_cost_points(results) if point.level), key=lambda point: -point.density)
