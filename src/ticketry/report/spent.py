"""The cost of whole trainings, each beside that of the dense network: what figures, tables and files show of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from ticketry.report.aggregate import Group, Results, Summary, summarise
from ticketry.report.phases import PHASES, Phase
from ticketry.report.record import TICKET, Point, Run

FLOPS, SECONDS, MEMORY, ENERGY = "FLOPs", "seconds", "memory", "energy"
MEASURES = (FLOPS, SECONDS, MEMORY, ENERGY)
NOT_MEASURED = "not measured"


def power(run: Run) -> float | None:
    """Watt-hours a second of training, of all that the run trained while energy was measured; None if it was not."""
    kwh, seconds = _number(run, "energy_kwh"), _number(run, "train_seconds_now")
    return 1000 * kwh / seconds if kwh is not None and seconds else None


def is_estimate(run: Run) -> bool:
    """Whether the run's energy comes from a model and no meter."""
    by = run.cost.get("energy_by")
    return isinstance(by, str) and "estimate" in by


def in_phase(run: Run, phase: Phase, measure: str) -> float | None:
    """What a phase took: operations, seconds, bytes, watt-hours (a share of the run's, by seconds)."""
    if measure == ENERGY:
        hourly = power(run)
        return hourly * phase.seconds if hourly is not None and phase.seconds is not None else None
    return {FLOPS: phase.flops, SECONDS: phase.seconds, MEMORY: phase.memory}[measure]


def spent(run: Run, point: Point, measure: str) -> float | None:
    """What the whole training of a network took; None where it was not measured."""
    return None if point.phases is None else in_phase(run, point.phases.whole, measure)


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
                tuple(point.test for point in group.points.values()),
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
    by_name = {name: [phases.each[name] for phases in told] for name in PHASES}
    by_name["whole"] = [phases.whole for phases in told]
    return {name: _mean_phase(results.run, phases) for name, phases in by_name.items()}


def _mean_phase(run: Run, phases: list[Phase]) -> MeanPhase:
    amounts = {measure: mean_or_none([in_phase(run, phase, measure) for phase in phases]) for measure in MEASURES}
    return MeanPhase(statistics.fmean(phase.steps for phase in phases), amounts)


def _number(run: Run, key: str) -> float | None:
    """A cost that can be used; a strange one is as good as none."""
    found = run.cost.get(key)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < 1e15
    return float(found) if usable and found is not None else None
