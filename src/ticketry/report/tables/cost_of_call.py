"""The metric against what a call costs: tickets, controls and dense networks, by measured time or multiplications."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.network import DENSE, LATENCY_MATCHED, TICKET, Point, is_matched_dense
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.tables.rows import Rows

NEAR = 0.03
"""Relative difference of cost up to which networks are said to cost the same."""


@dataclass(frozen=True)
class Measure:
    """What a call costs, as a share of what it costs in the dense network."""

    name: str
    """In names of columns and figures."""
    rival: str
    """The control that is a dense network of the ticket's cost."""
    setting: str
    """Of searches that are given a budget of it."""
    of: Callable[[Point], float | None]
    """None where the record does not tell it."""


MULTIPLICATIONS = Measure("multiplications", "dense_of_flops", "flops", lambda point: point.multiplications)
TIME = Measure("time", LATENCY_MATCHED, "time", lambda point: None if point.timed is None else point.timed.share)
MEASURES = (TIME, MULTIPLICATIONS)
"""The first that a run tells is the first that is shown of it."""


@dataclass(frozen=True)
class CostPoint:
    """The networks of a role at a level: how good, and what a call costs."""

    group: Group
    cost: float
    """Share of the dense network's cost, mean over replicates."""
    costs: Mapping[int, float]
    """By replicate."""

    @property
    def metric(self) -> Summary:
        return self.group.metric()

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of networks that are not the task's own."""
        return tuple(dict.fromkeys(point.model for point in self.group.points.values() if point.model))


def cost_points(results: Results, role: str, measure: Measure) -> list[CostPoint]:
    """One a level whose networks tell what they cost, the dearest first."""
    full = _whole(results, measure)
    found = []
    for group in results.of_role(role) if full else ():
        told = {replicate: _cost(point, measure) for replicate, point in group.points.items()}
        known = {replicate: cost / full for replicate, cost in told.items() if cost is not None}
        if len(known) == len(told):
            found.append(CostPoint(group, statistics.fmean(known.values()), known))
    return sorted(found, key=lambda point: -point.cost)


def _whole(results: Results, measure: Measure) -> float:
    """What the dense network costs, in the unit of the points; 0 where that is not told."""
    if results.dense is None:
        return 0.0
    return statistics.fmean([_cost(one, measure) or 0 for one in results.dense.points.values()])


def _cost(point: Point, measure: Measure) -> float | None:
    """A time is told as a share of the dense network's, whose own is not."""
    whole = measure is TIME and point.role == DENSE and point.timed is None
    return 1.0 if whole else measure.of(point)


def cost_of(results: Results, group: Group, measure: Measure) -> float | None:
    """The share of the cost that networks of a level take; None where that is not told."""
    found = (point.cost for point in cost_points(results, group.role, measure) if point.group.level == group.level)
    return next(found, None)


def told_measures(results: Results) -> list[Measure]:
    """By which a run tells what its tickets cost."""
    return [measure for measure in MEASURES if all(cost_points(results, role, measure) for role in (TICKET, DENSE))]


def asked_measure(results: Results) -> Measure | None:
    """What the run's budget is of, if it tells what came of it; None for a search by density."""
    told = (measure for measure in told_measures(results) if results.run.settings.get(measure.setting))
    return next(told, None)


@dataclass(frozen=True)
class Line:
    """A curve: networks of one role of one run, or dense networks of one kind."""

    run: int | None
    """Number of the run; None for dense networks, which belong to none."""
    role: str
    points: tuple[CostPoint, ...]


def lines_of(runs: Sequence[Results] | Mapping[int, Results], indices: Sequence[int], measure: Measure) -> list[Line]:
    """The curves of some runs of one task; of one that is alone with its controls.

    Dense networks of one kind are one curve, whichever run trained them, with the dense network itself as its end.
    """
    told = [(index, runs[index]) for index in indices if measure in told_measures(runs[index])]
    alone = len(told) == 1
    lines = [Line(index, TICKET, tuple(cost_points(results, TICKET, measure))) for index, results in told]
    for index, results in told if alone else ():
        plain = [role for role in results.controls if not is_matched_dense(role)]
        lines += [Line(index, role, tuple(points)) for role in plain if (points := cost_points(results, role, measure))]
    kinds = dict.fromkeys(role for _, results in told for role in results.roles if is_matched_dense(role))
    for role in kinds:
        whole = cost_points(told[0][1], DENSE, measure) if ":" not in role else []
        if narrower := _dense(role, (results for _, results in told), measure):
            lines.append(Line(None, role, (*whole, *narrower)))
    return lines


def _dense(role: str, runs: Iterable[Results], measure: Measure) -> list[CostPoint]:
    """The points of a kind of dense networks, each once."""
    found: dict[tuple[str, ...], CostPoint] = {}
    for results in runs:
        for point in cost_points(results, role, measure):
            found.setdefault(tuple(sorted(one.key for one in point.group.points.values())), point)
    return sorted(found.values(), key=lambda point: -point.cost)


@dataclass(frozen=True)
class AtEqualCost:
    """Tickets minus the dense networks of their cost."""

    rival: CostPoint
    difference: Summary
    """Above 0 the tickets are better."""


def at_equal_cost(results: Results, point: CostPoint, runs: Sequence[Results], measure: Measure) -> AtEqualCost | None:
    """What tickets have over the best dense network that costs as much, replicate by replicate.

    Those that its own run trained beside them for that; or of a run from the same seeds by the same recipe, within
    `NEAR`.
    """
    metric, found = results.run.task.metric, list[CostPoint]()
    for other in runs:
        for role in other.roles if results.pairs_with(other) else ():
            if is_matched_dense(role):
                beside = other is results and role.partition(":")[0] == measure.rival
                found += [
                    one
                    for one in cost_points(other, role, measure)
                    if (beside and one.group.level == point.group.level)
                    or (other is not results and abs(one.cost / point.cost - 1) <= NEAR)
                ]
    shared = [one for one in found if one.group.points.keys() & point.group.points.keys()]
    if not shared:
        return None
    best = max(shared, key=lambda one: metric.sign * one.metric.mean)
    own, theirs = point.group.values(), best.group.values()
    return AtEqualCost(best, summarise(metric.sign * (own[r] - theirs[r]) for r in sorted(own.keys() & theirs.keys())))


def frontier_rows(runs: Sequence[Results], lines: Sequence[Line], measure: Measure) -> Rows:
    """Metric and cost of every point of the frontier."""
    rows: Rows = []
    for line in lines:
        for point in line.points:
            group, metric, (low, high) = point.group, point.metric, point.metric.interval or (None, None)
            rows.append(
                {
                    "run": runs[line.run].run.name if line.run is not None else "",
                    "role": group.role,
                    "level": group.level,
                    "density": group.density,
                    "measure": measure.name,
                    "cost_by_dense": point.cost,
                    "networks": " ".join(point.networks),
                    "n": metric.n,
                    "mean": metric.mean,
                    "sd": metric.sd,
                    "low": low,
                    "high": high,
                }
            )
    return rows
