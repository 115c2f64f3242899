"""The metric against counted cost: tickets, controls and dense networks by the multiplications of a call."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.network import DENSE, TICKET, is_dense_rival
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.tables.rows import Rows

NEAR = 0.03
"""Relative difference of cost up to which networks are said to cost the same."""


@dataclass(frozen=True)
class CountedPoint:
    """The networks of a role at a level: how good, and what a call takes."""

    group: Group
    cost: float
    """Share of the dense network's multiplications, mean over replicates."""

    @property
    def metric(self) -> Summary:
        return self.group.metric()

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of networks that are not the task's own."""
        return tuple(dict.fromkeys(point.model for point in self.group.points.values() if point.model))


def counted_points(results: Results, role: str) -> list[CountedPoint]:
    """One a level whose networks tell their multiplications, the dearest first."""
    if results.dense is None:
        return []
    full = statistics.fmean([one.multiplications or 0 for one in results.dense.points.values()])
    found = []
    for group in results.of_role(role):
        counts = [point.multiplications for point in group.points.values()]
        known = [count for count in counts if count is not None]
        if full and len(known) == len(counts):
            found.append(CountedPoint(group, statistics.fmean(known) / full))
    return sorted(found, key=lambda point: -point.cost)


def cost_of(results: Results, group: Group) -> float | None:
    """The share of the multiplications that networks of a level take; None where that is not told."""
    found = (point.cost for point in counted_points(results, group.role) if point.group.level == group.level)
    return next(found, None)


def is_counted(results: Results) -> bool:
    """Whether a run tells what its tickets cost."""
    return bool(counted_points(results, TICKET) and counted_points(results, DENSE))


def asked_budget(results: Results) -> str:
    """The setting that names the budget; empty for a search by density."""
    return "flops" if results.run.settings.get("flops") else ""


@dataclass(frozen=True)
class Line:
    """A curve: networks of one role of one run, or dense networks of one kind."""

    run: int | None
    """Number of the run; None for dense networks, which belong to none."""
    role: str
    points: tuple[CountedPoint, ...]


def lines_of(runs: Sequence[Results] | Mapping[int, Results], indices: Sequence[int]) -> list[Line]:
    """The curves of some runs of one task; of one that is alone with its controls.

    Dense networks of one kind are one curve, whichever run trained them, with the dense network itself as its end.
    """
    told = [(index, runs[index]) for index in indices if is_counted(runs[index])]
    alone = len(told) == 1
    lines = [Line(index, TICKET, tuple(counted_points(results, TICKET))) for index, results in told]
    for index, results in told if alone else ():
        plain = [role for role in results.controls if not is_dense_rival(role)]
        lines += [Line(index, role, tuple(points)) for role in plain if (points := counted_points(results, role))]
    kinds = dict.fromkeys(role for _, results in told for role in results.roles if is_dense_rival(role))
    for role in kinds:
        whole = counted_points(told[0][1], DENSE) if ":" not in role else []
        lines.append(Line(None, role, (*whole, *_dense(role, (results for _, results in told)))))
    return lines


def _dense(role: str, runs: Iterable[Results]) -> list[CountedPoint]:
    """The points of a kind of dense networks, each once."""
    found: dict[tuple[str, ...], CountedPoint] = {}
    for results in runs:
        for point in counted_points(results, role):
            found.setdefault(tuple(sorted(one.key for one in point.group.points.values())), point)
    return sorted(found.values(), key=lambda point: -point.cost)


@dataclass(frozen=True)
class AtEqualCost:
    """Tickets minus the dense networks of their cost."""

    rival: CountedPoint
    difference: Summary
    """Above 0 the tickets are better."""


def at_equal_cost(results: Results, point: CountedPoint, runs: Sequence[Results]) -> AtEqualCost | None:
    """What tickets have over the best dense network that costs as much, replicate by replicate.

    Those that its own run trained beside them; or of a run from the same seeds by the same recipe, within `NEAR`.
    """
    metric, found = results.run.task.metric, list[CountedPoint]()
    for other in runs:
        same = (other.run.seeds, other.run.recipe) == (results.run.seeds, results.run.recipe)
        for role in other.roles if other is results or same else ():
            if is_dense_rival(role):
                found += [
                    one
                    for one in counted_points(other, role)
                    if (other is results and one.group.level == point.group.level)
                    or (other is not results and abs(one.cost / point.cost - 1) <= NEAR)
                ]
    shared = [one for one in found if one.group.points.keys() & point.group.points.keys()]
    if not shared:
        return None
    best = max(shared, key=lambda one: metric.sign * one.metric.mean)
    own, theirs = point.group.values(), best.group.values()
    return AtEqualCost(best, summarise(metric.sign * (own[r] - theirs[r]) for r in sorted(own.keys() & theirs.keys())))


def frontier_rows(runs: Sequence[Results], lines: Sequence[Line]) -> Rows:
    """Metric and multiplications of every point of the frontier."""
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
                    "multiplications_by_dense": point.cost,
                    "networks": " ".join(point.networks),
                    "n": metric.n,
                    "mean": metric.mean,
                    "sd": metric.sd,
                    "low": low,
                    "high": high,
                }
            )
    return rows
