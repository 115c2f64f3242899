"""What networks and searches cost: the sums and means that figures, tables and files show."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from ticketry.records.network import DENSE, PHASES, TICKET, Phase, Point
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.report.tables.results import Group, Results, Summary, summarise

FLOPS, SECONDS, MEMORY, ENERGY = "FLOPs", "seconds", "memory", "energy"
MEASURES = (FLOPS, SECONDS, MEMORY, ENERGY)
NOT_MEASURED = "not measured"


def power(run: RunRecord) -> float | None:
    """Watt-hours a second of training, of all that the run trained while energy was measured; None if it was not."""
    cost = counts(run)
    kwh, seconds = cost.get("energy_kwh"), cost.get("train_seconds_now")
    return 1000 * kwh / seconds if kwh is not None and seconds else None


def is_estimate(run: RunRecord) -> bool:
    """Whether the run's energy comes from a model and no meter."""
    return "estimate" in run.cost.energy_by


def in_phase(run: RunRecord, phase: Phase, measure: str) -> float | None:
    """What a phase took: operations, seconds, bytes, watt-hours (a share of the run's, by seconds)."""
    if measure == ENERGY:
        hourly = power(run)
        return hourly * phase.seconds if hourly is not None and phase.seconds is not None else None
    return {FLOPS: phase.flops, SECONDS: phase.seconds, MEMORY: phase.memory}[measure]


def spent(run: RunRecord, point: Point, measure: str) -> float | None:
    """What the whole training of a network took; None where it was not measured."""
    return None if point.phases is None else in_phase(run, point.phases.total, measure)


def relative(results: Results, group: Group, measure: str) -> Summary | None:
    """The same as a multiple of the dense network's, replicate by replicate; None where either was not measured."""
    dense = results.dense
    ratios = []
    for replicate, point in group.points.items():
        base = dense.points.get(replicate) if dense else None
        below = spent(results.run, base, measure) if base else None
        above = spent(results.run, point, measure)
        if above is not None and below:
            ratios.append(above / below)
    return summarise(ratios) if len(ratios) == len(group.points) else None


def mean_spent(results: Results, group: Group, measure: str) -> float | None:
    """Mean over replicates; None where it was not measured for all of them."""
    found = [spent(results.run, point, measure) for point in group.points.values()]
    return mean_or_none(found)


def mean_or_none(found: list[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else None


@dataclass(frozen=True)
class SpentPoint:
    """The tickets of one level: how good, and at what cost."""

    level: int
    density: float
    values: tuple[float, ...]
    """The test metric of each replicate."""
    times_dense: dict[str, float] = field(default_factory=dict)
    """Mean over replicates, by measure; what was not measured is not there."""
    watt_hours: float | None = None

    @property
    def metric(self) -> float:
        return statistics.fmean(self.values)

    def on_axis(self, measure: str) -> float | None:
        """What a figure shows: watt-hours of energy, of everything else multiples of dense."""
        return self.watt_hours if measure == ENERGY else self.times_dense.get(measure)


def spent_points(results: Results) -> list[SpentPoint]:
    """A point a level of tickets, densest first; empty where the record tells no cost by phase."""
    found = []
    for group in sorted(results.of_role(TICKET), key=lambda group: -group.density):
        ratios = {measure: relative(results, group, measure) for measure in MEASURES}
        found.append(
            SpentPoint(
                group.level,
                group.density,
                tuple(group.values().values()),
                {measure: ratio.mean for measure, ratio in ratios.items() if ratio is not None},
                mean_spent(results, group, ENERGY),
            )
        )
    return found if any(point.times_dense for point in found) else []


@dataclass(frozen=True)
class MeanPhase:
    """A phase of one level, mean over replicates; None where it was not measured for all of them."""

    steps: float
    amounts: dict[str, float | None]
    """By measure."""

    @property
    def empty(self) -> bool:
        return not (self.steps or self.amounts[FLOPS] or self.amounts[SECONDS])


def ledger(results: Results, group: Group) -> dict[str, MeanPhase]:
    """``dense``, ``search``, ``sparse`` and ``whole`` of a level; empty where the record does not tell them."""
    told = [point.phases for point in group.points.values() if point.phases is not None]
    if len(told) < len(group.points):
        return {}
    by_name = {name: [phases.by_name[name] for phases in told] for name in PHASES}
    by_name["whole"] = [phases.total for phases in told]
    return {name: _mean_phase(results.run, phases) for name, phases in by_name.items()}


def _mean_phase(run: RunRecord, phases: list[Phase]) -> MeanPhase:
    amounts = {measure: mean_or_none([in_phase(run, phase, measure) for phase in phases]) for measure in MEASURES}
    return MeanPhase(statistics.fmean(phase.steps for phase in phases), amounts)


def counts(run: RunRecord) -> dict[str, float]:
    """The costs of a run that are numbers, by name."""
    return {name: float(item) for name, item in as_json(run.cost).items() if not isinstance(item, str)}


@dataclass(frozen=True)
class CostPoint:
    """The search up to one level, mean over the replicates that got there."""

    level: int
    density: float
    metric: float
    steps: float
    """Of the dense training and of every ticket up to this one; where masks come from trainings of their own, of those
    that this one needed and of the ticket."""
    known: float
    """The same without the ticket's own: what it took until its mask was known."""
    seconds: float | None
    n: int


def cost_points(results: Results) -> list[CostPoint]:
    """Dense and then each ticket, densest first; controls are no part of a search. Empty without steps."""
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
            CostPoint(
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


def tickets_by_density(results: Results) -> list[CostPoint]:
    """The tickets among `cost_points`, densest first."""
    return sorted((point for point in cost_points(results) if point.level), key=lambda point: -point.density)
