"""Compare tickets, controls and dense networks by metric and cost of a call: measured latency, or MACs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.network import DENSE, LATENCY_MATCHED, TICKET, Point, is_matched_dense
from ticketry.report.subject import Subject
from ticketry.report.tables.results import Group, Results, Summary, margin_and_text, summarise
from ticketry.report.tables.rows import Cell, Rows
from ticketry.report.wording import NONE, Style, percent

EQUAL_COST = 0.03
"""Largest relative difference between the costs of two networks that count as equally costly."""


@dataclass(frozen=True)
class CostMeasure:
    """A measure of inference cost: latency or MACs of one forward call, relative to the dense network."""

    name: str
    rival: str
    """Name of the control that is a dense network with the ticket's cost."""
    setting: str
    """The search setting that limits this cost."""
    of: Callable[[Point], float | None]
    """Function that returns the recorded cost of a network; None if the record lacks this cost."""


MULTIPLICATIONS = CostMeasure("multiplications", "dense_of_flops", "flops", lambda point: point.multiplications)
TIME = CostMeasure("time", LATENCY_MATCHED, "time", lambda point: None if point.timed is None else point.timed.share)
COSTS_OF_CALL = (TIME, MULTIPLICATIONS)
"""All measures of inference cost, in the order in which a page shows them."""


@dataclass(frozen=True)
class CallCostPoint:
    """Metric and inference cost of the networks with the same role and level, a point of a figure."""

    group: Group
    cost: float
    """Cost relative to the dense network, mean over replicates."""
    costs: Mapping[int, float]

    @property
    def metric(self) -> Summary:
        return self.group.metric()

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that are not the task's network."""
        return tuple(dict.fromkeys(point.model for point in self.group.points.values() if point.model))


def call_cost_points(results: Results, role: str, measure: CostMeasure) -> list[CallCostPoint]:
    """Return a point for each level whose networks of this role all have a recorded cost, the most expensive first."""
    dense = results.dense
    full = statistics.fmean([_network_call_cost(one, measure) or 0 for one in dense.points.values()]) if dense else 0.0
    found = []
    for group in results.groups_of_role(role) if full else ():
        recorded = {replicate: _network_call_cost(point, measure) for replicate, point in group.points.items()}
        known = {replicate: cost / full for replicate, cost in recorded.items() if cost is not None}
        if len(known) == len(recorded):
            found.append(CallCostPoint(group, statistics.fmean(known.values()), known))
    return sorted(found, key=lambda point: -point.cost)


def _network_call_cost(point: Point, measure: CostMeasure) -> float | None:
    """Return the recorded cost of a network; the latency of an untimed dense network is 1, the unit of latency."""
    return 1.0 if measure is TIME and point.role == DENSE and point.timed is None else measure.of(point)


def relative_call_cost(results: Results, group: Group, measure: CostMeasure) -> float | None:
    """Return the mean cost of a group's networks relative to the dense network; None if it is not recorded."""
    found = (point.cost for point in call_cost_points(results, group.role, measure) if point.group.level == group.level)
    return next(found, None)


def recorded_measures(results: Results) -> list[CostMeasure]:
    """Return the cost measures that a run has recorded for both its tickets and its dense network."""
    return [
        measure
        for measure in COSTS_OF_CALL
        if all(call_cost_points(results, role, measure) for role in (TICKET, DENSE))
    ]


def measure_limited_by_budget(results: Results) -> CostMeasure | None:
    """Return the cost measure that the run's budgets limit; None if it is not recorded, or the search has no budget."""
    found = (measure for measure in recorded_measures(results) if results.run.settings.get(measure.setting))
    return next(found, None)


@dataclass(frozen=True)
class FrontierLine:
    """A curve of a figure: networks of one role of one run, or dense networks of one kind."""

    run: int | None
    """Index of the run; None for dense networks of matched cost, which all runs share."""
    role: str
    points: tuple[CallCostPoint, ...]


def frontier_lines(
    runs: Sequence[Results] | Mapping[int, Results], indices: Sequence[int], measure: CostMeasure
) -> list[FrontierLine]:
    """Return the curves of the runs with these indices; the runs have one task.

    Each run has a curve of tickets; a single run also has curves of its controls. Dense networks of one kind form one
    curve for all runs. The task's own network belongs to the curve of its narrower versions.
    """
    shown = [(index, runs[index]) for index in indices if measure in recorded_measures(runs[index])]
    lines = [FrontierLine(index, TICKET, tuple(call_cost_points(results, TICKET, measure))) for index, results in shown]
    for index, results in shown if len(shown) == 1 else ():
        plain = [role for role in results.controls if not is_matched_dense(role)]
        lines += [
            FrontierLine(index, role, tuple(points))
            for role in plain
            if (points := call_cost_points(results, role, measure))
        ]
    for role in dict.fromkeys(role for _, results in shown for role in results.roles if is_matched_dense(role)):
        whole = call_cost_points(shown[0][1], DENSE, measure) if ":" not in role else []
        if narrower := _matched_dense_points(role, (results for _, results in shown), measure):
            lines.append(FrontierLine(None, role, (*whole, *narrower)))
    return lines


def _matched_dense_points(role: str, runs: Iterable[Results], measure: CostMeasure) -> list[CallCostPoint]:
    found: dict[tuple[str, ...], CallCostPoint] = {}
    for results in runs:
        for point in call_cost_points(results, role, measure):
            found.setdefault(tuple(sorted(one.key for one in point.group.points.values())), point)
    return sorted(found.values(), key=lambda point: -point.cost)


@dataclass(frozen=True)
class EqualCostComparison:
    """The metric's difference between tickets and the best dense network of about the same inference cost."""

    rival: CallCostPoint
    difference: Summary
    """Difference of the metric; above 0, the tickets are better."""


def compare_at_equal_cost(
    results: Results, point: CallCostPoint, runs: Sequence[Results], measure: CostMeasure
) -> EqualCostComparison | None:
    """Compare tickets with the best dense network of the same cost; return None if there is no such network.

    Metrics are paired by replicate. Candidates are the dense networks that the run itself trained as controls at this
    level, and those of other runs with the same seeds and recipe whose cost differs by at most `EQUAL_COST`.
    """
    metric, found = results.run.task.metric, list[CallCostPoint]()
    for other in runs:
        for role in other.roles if results.can_be_paired_with(other) else ():
            if is_matched_dense(role):
                beside = other is results and role.partition(":")[0] == measure.rival
                found += [
                    one
                    for one in call_cost_points(other, role, measure)
                    if (beside and one.group.level == point.group.level)
                    or (other is not results and abs(one.cost / point.cost - 1) <= EQUAL_COST)
                ]
    shared = [one for one in found if one.group.points.keys() & point.group.points.keys()]
    if not shared:
        return None
    best = max(shared, key=lambda one: metric.sign * one.metric.mean)
    own, theirs = point.group.values(), best.group.values()
    return EqualCostComparison(
        best, summarise(metric.sign * (own[r] - theirs[r]) for r in sorted(own.keys() & theirs.keys()))
    )


def frontier_rows(runs: Sequence[Results], lines: Sequence[FrontierLine], measure: CostMeasure) -> Rows:
    """Return a row with metric and cost for every point of the curves."""
    rows: list[dict[str, Cell]] = []
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


# -- the lowest cost at which tickets are as good as dense -------------------------------------------------------------


@dataclass(frozen=True)
class LowestCost:
    """The lowest relative cost at which tickets match the dense network's metric, or the ratio of two such costs."""

    value: float
    interval: tuple[float, float] | None
    """95 % interval (jackknife over replicates, Student's t on the logarithm); None for fewer than three replicates, or
    if `value` is only a bound."""
    reached: bool
    """Whether some level is worse than the margin allows; otherwise `value` is a bound: the cheapest level's cost."""
    at_least: bool = False
    """Whether a ratio that is only a bound is a lower bound."""

    @property
    def bound_prefix(self) -> str:
        """Words to write before `value` if it is only a bound; otherwise empty."""
        return "" if self.reached else "at least " if self.at_least else "at most "

    @property
    def text(self) -> str:
        """The value in per cent with its interval: ``18.1 [15.0, 21.9]``."""
        ends = "" if self.interval is None else f" [{percent(self.interval[0])}, {percent(self.interval[1])}]"
        return f"{percent(self.value)}{ends}"


@dataclass(frozen=True)
class _DifferenceCurve:
    """Metric of tickets minus the dense network's (positive: better), by level (most expensive first) and replicate."""

    costs: Sequence[CallCostPoint]
    differences: Sequence[dict[int, float]]
    replicates: frozenset[int]

    def lowest_log_cost(self, replicates: Sequence[int], margin: float) -> tuple[float, bool]:
        """Return the log cost at which the mean difference first falls below -`margin`, and True.

        If no level falls below, return the lowest log cost of all levels, and False.
        """
        above = (0.0, 0.0)  # the dense network
        for point, differences in zip(self.costs, self.differences, strict=True):
            cost = math.log(statistics.fmean(point.costs[one] for one in replicates))
            difference = statistics.fmean(differences[one] for one in replicates)
            if difference < -margin:
                share = (above[1] + margin) / (above[1] - difference)
                return above[0] + share * (cost - above[0]), True
            above = (cost, difference)
        return above[0], False


def lowest_matching_cost(results: Results, measure: CostMeasure, margin: float) -> LowestCost | None:
    """Return the lowest cost at which the mean of the tickets is at most `margin` worse than the dense network.

    The curve of mean differences begins at the dense network (cost 1, difference 0) and goes through all levels. Only
    its first crossing of the margin counts, so that a lucky level beyond it has no effect.

    Returns:
        None if no level has a recorded cost, or no replicate has all levels.
    """
    curve = _difference_curve(results, measure)
    if curve is None:
        return None
    (value, reached), ends = _jackknife_estimate(
        sorted(curve.replicates), lambda some: curve.lowest_log_cost(some, margin)
    )
    if ends is None or not reached:
        return LowestCost(math.exp(value), None, reached)
    # There is no doubt at the cost of the dense network.
    return LowestCost(math.exp(value), (ends[0], min(1.0, ends[1])), reached)


def lowest_cost_ratio(one: Results, other: Results, measure: CostMeasure, margin: float) -> LowestCost | None:
    """Return the lowest cost at which tickets of `one` match the dense network, relative to that of `other`.

    Only replicates that both runs have are used. Tickets match as long as they are at most `margin` worse than the
    dense network. If only one of the runs has tickets that do not match, the ratio is a bound.

    Returns:
        None if a cost is not recorded, if neither run becomes worse, or if seeds or recipes of the runs differ.
    """
    first, second = _difference_curve(one, measure), _difference_curve(other, measure)
    if first is None or second is None or not one.can_be_paired_with(other):
        return None
    shared = sorted(first.replicates & second.replicates)
    if not shared:
        return None

    def log_ratio_of_lowest_costs(replicates: Sequence[int]) -> tuple[float, bool]:
        (above, fell), (below, also) = (
            first.lowest_log_cost(replicates, margin),
            second.lowest_log_cost(replicates, margin),
        )
        return above - below, fell and also

    fell, also = (curve.lowest_log_cost(shared, margin)[1] for curve in (first, second))
    if not fell and not also:
        return None
    (value, reached), ends = _jackknife_estimate(shared, log_ratio_of_lowest_costs)
    return LowestCost(math.exp(value), ends if reached else None, reached, at_least=fell and not reached)


def _difference_curve(results: Results, measure: CostMeasure) -> _DifferenceCurve | None:
    points, dense = call_cost_points(results, TICKET, measure), results.dense
    if not points or dense is None:
        return None
    sign, whole = results.run.task.metric.sign, dense.values()
    values = [point.group.values() for point in points]
    shared = frozenset(whole).intersection(*values)
    if not shared:
        return None
    return _DifferenceCurve(
        points, [{one: sign * (each[one] - whole[one]) for one in shared} for each in values], shared
    )


def _jackknife_estimate(
    replicates: Sequence[int], statistic: Callable[[Sequence[int]], tuple[float, bool]]
) -> tuple[tuple[float, bool], tuple[float, float] | None]:
    """Return `statistic` (log cost, whether it was reached) of all replicates, and the cost's jackknife interval."""
    whole, n = statistic(replicates), len(replicates)
    if n < 3:
        return whole, None
    without = [statistic([one for one in replicates if one != left])[0] for left in replicates]
    ends = summarise(n * whole[0] - (n - 1) * each for each in without).interval
    half = (ends[1] - ends[0]) / 2 if ends is not None else 0.0
    return whole, (math.exp(whole[0] - half), math.exp(whole[0] + half))


# -- text --------------------------------------------------------------------------------------------------------------


def frontier_sentences(results: Results, measure: CostMeasure, name: str, alone: bool) -> str:
    """Return sentences on the cost down to which tickets are as good as dense, and on dense networks of equal cost."""
    sentences, style = [], Style.for_results(results)
    if alone and results.dense is not None:
        margin, margin_text = margin_and_text(results, results.dense)
        found = lowest_matching_cost(results, measure, margin)
        if found is not None and found.value < 1:
            how = "" if found.reached else ", the lowest that was tried"
            sentences.append(
                f"The mean of the tickets is within {margin_text} of the dense network's down to {found.text} % of the"
                f" {name}{how}."
            )
    rivals = []
    for point in call_cost_points(results, TICKET, measure):
        against = compare_at_equal_cost(results, point, [results], measure)
        if against is not None:
            ends = against.difference.interval
            interval = f" [{style.format_interval(ends)}]" if ends else ""
            cost = f"{percent(point.cost)} % (theirs: {percent(against.rival.cost)} %)"
            rivals.append(f"{style.format_number(against.difference.mean, True)}{interval} at {cost}")
    if rivals:
        sentences.append(f"Tickets minus dense networks of equal cost, by share of the {name}: {'; '.join(rivals)}.")
    return " ".join(sentences)


def requested_budgets(runs: Sequence[Results], measure: CostMeasure) -> list[str]:
    """Return, as text, the budgets that the runs requested, without repeats: ``flops 0.25, 0.125``."""
    found = []
    for results in runs:
        shares = results.run.settings.get(measure.setting)
        if isinstance(shares, list | tuple) and shares:
            texts = (f"{share:g}" if isinstance(share, float) else str(share) for share in shares)
            found.append(f"{measure.setting} {', '.join(texts)}")
    return list(dict.fromkeys(found))


def lowest_cost_table(
    subject: Subject, run_indices: Sequence[int], measure: CostMeasure
) -> tuple[str, list[list[str]]]:
    """Return the margin as text, and a row for each run: its lowest matching cost, and the best run's divided by it."""
    runs = {index: subject.runs[index] for index in run_indices}
    margins = {
        index: margin_and_text(results, results.dense) for index, results in runs.items() if results.dense is not None
    }
    costs = {index: lowest_matching_cost(runs[index], measure, margin) for index, (margin, _) in margins.items()}
    found = {index: least for index, least in costs.items() if least is not None}
    ordered, lines = sorted(found, key=lambda index: found[index].value), []
    for index in ordered:
        ratio = None
        if index != ordered[0]:
            ratio = lowest_cost_ratio(runs[ordered[0]], runs[index], measure, margins[index][0])
        ends = NONE if ratio is None or ratio.interval is None else "{:.2f} to {:.2f}".format(*ratio.interval)
        least = f"{found[index].bound_prefix}{found[index].text}"
        lines.append([subject.labels[index], least, f"{ratio.bound_prefix}{ratio.value:.2f}" if ratio else NONE, ends])
    return next((text for _, text in margins.values()), ""), lines
