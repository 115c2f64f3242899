"""Accuracy against measured time: tickets of a run beside the times of those that were compiled and timed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.network import TICKET, Point
from ticketry.records.speed import Saved, SpeedRecord, Timed
from ticketry.report.subject import Series, Subject, labels_of
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.wording import clean


@dataclass(frozen=True, order=True)
class Setup:
    """What has to agree before times may be compared."""

    batch: int
    precision: str
    threads: int
    cold: bool

    @classmethod
    def of(cls, timed: Timed) -> Setup:
        return cls(timed.batch, timed.precision, timed.threads, timed.cold)

    @property
    def how(self) -> str:
        """All but the batch."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.precision}, {threads}, {'cold' if self.cold else 'hot'} caches"


@dataclass(frozen=True)
class TimedPoint:
    """The tickets of a level: how good, and how long a call takes beside the fastest dense engine's."""

    group: Group
    time: float
    """Share of the fastest dense engine's time, mean over the replicates that were timed."""
    low: float
    """Of the intervals of those replicates, the least end."""
    high: float
    timed: int
    """Replicates."""
    engines: tuple[str, ...]
    """That were the fastest."""

    @property
    def metric(self) -> Summary:
        return self.group.metric()


def setups(runs: Iterable[Results], speeds: Sequence[SpeedRecord]) -> list[Setup]:
    """All in which a ticket of the runs was timed, smaller batches first."""
    names = {results.run.name for results in runs}
    return sorted({Setup.of(timed) for speed in speeds if speed.run in names for timed in speed.comparisons})


def timed_points(results: Results, speeds: Sequence[SpeedRecord], setup: Setup) -> list[TimedPoint]:
    """One a level of which a ticket was timed in that setup, the slowest first.

    Each ticket has the time of the fastest form in which it was timed: in sparse kernels, or, of whole channels, as a
    smaller network in a dense engine. Of one that was timed several times those comparisons count in which the most
    dense engines were timed, and of them the fastest.
    """
    found = []
    for group in results.of_role(TICKET):
        best = [one for point in group.points.values() if (one := _best(results, point, speeds, setup)) is not None]
        if best:
            found.append(
                TimedPoint(
                    group=group,
                    time=statistics.fmean(1 - one.saved for one in best),
                    low=min(1 - one.high for one in best),
                    high=max(1 - one.low for one in best),
                    timed=len(best),
                    engines=tuple(dict.fromkeys(one.engine for one in best)),
                )
            )
    return sorted(found, key=lambda point: -point.time)


def _best(results: Results, point: Point, speeds: Sequence[SpeedRecord], setup: Setup) -> Saved | None:
    """Of the comparisons of a point's ticket in that setup with the most dense engines, the one that saves the most:
    a ticket that was also timed beside a slow engine alone is no faster for it."""
    timings = [
        timed
        for speed in speeds
        if speed.run == results.run.name and point.ticket and _folder(speed.ticket) == _folder(point.ticket)
        for timed in speed.comparisons
        if Setup.of(timed) == setup and timed.saved
    ]
    most = max(map(_dense_engines, timings), default=0)
    saved = [one for timed in timings if _dense_engines(timed) == most for one in timed.saved]
    return max(saved, key=lambda one: one.saved, default=None)


def _dense_engines(timed: Timed) -> int:
    return sum(one.timed and not one.sparse for one in timed.times)


def _folder(path: str) -> str:
    """The last part: a run's tickets have a folder each, wherever the store was when one was timed."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


# -- at equal time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtEqualTime:
    """A timed level against unstructured tickets that take no longer."""

    point: TimedPoint
    difference: Summary
    """Metric minus theirs, replicate by replicate; above 0 it is the better one."""


Compared = Mapping[tuple[Setup, str], Mapping[int, AtEqualTime]]
"""By setup and name of a run, for each of its levels."""


def unstructured(results: Results, runs: Sequence[Results]) -> Results | None:
    """The first run whose masks have no structure, from the same seeds by the same recipe: others' replicates make no
    pairs, and what longer training is worth is not structure's."""
    return next((one for one in runs if results.pairs_with(one) and granularity(one) == UNSTRUCTURED), None)


def at_equal_time(
    results: Results, base: Results, speeds: Sequence[SpeedRecord], setup: Setup
) -> Mapping[int, AtEqualTime]:
    """By level, what a run's tickets have over unstructured ones that take no longer.

    Unstructured tickets of a time are those of a level that is as fast, or between two levels: then their metric is
    taken on the straight line between the two. Of all that take no longer the best (by mean) are compared with, so that
    a denser ticket that is worse for chance helps nobody. Levels that are faster than any unstructured one have nothing
    to be compared with, and are left out.
    """
    curve = _curve(base, timed_points(base, speeds, setup))
    found = {}
    for point in timed_points(results, speeds, setup):
        rivals = [values for time, values in curve if time <= point.time]
        between = _between(curve, point.time)
        rivals += [between] if between else []
        sign = base.run.task.metric.sign
        best = max(rivals, key=lambda values: sign * statistics.fmean(values.values()), default=None)
        shared = sorted(point.group.points.keys() & (best or {}).keys())
        if best and shared:
            own = point.group.values()
            differences = [sign * (own[r] - best[r]) for r in shared]
            found[point.group.level] = AtEqualTime(point, summarise(differences))
    return found


Values = Mapping[int, float]
"""The test metric by replicate."""


def _curve(base: Results, points: Sequence[TimedPoint]) -> list[tuple[float, Values]]:
    """Time and metric of the levels of a run and of its dense network, the fastest first."""
    found = [(point.time, point.group.values()) for point in points]
    if base.dense is not None:
        found.append((1.0, base.dense.values()))
    return sorted(found, key=lambda one: one[0])


def _between(curve: Sequence[tuple[float, Values]], time: float) -> Values | None:
    """On the line between the neighbours of a time; None where it has none on one side."""
    slower = next((one for one in curve if one[0] >= time), None)
    faster = next((one for one in reversed(curve) if one[0] < time), None)
    if slower is None or faster is None:
        return None
    share = (time - faster[0]) / (slower[0] - faster[0])
    shared = faster[1].keys() & slower[1].keys()
    return {r: (1 - share) * faster[1][r] + share * slower[1][r] for r in shared} or None


UNSTRUCTURED = "unstructured"


def granularity(results: Results) -> str:
    """In words, from what the tickets or the settings tell; ``unstructured`` where nothing is told."""
    for group in results.of_role(TICKET):
        for point in group.points.values():
            if point.structure is not None:
                return clean(point.structure.name)
    settings = results.run.settings
    if settings.get("structured") is True:
        return "channels in the search"
    pattern = settings.get("pattern")
    return f"pattern {clean(pattern)}" if isinstance(pattern, str) and pattern != UNSTRUCTURED else UNSTRUCTURED


def series_names(runs: Sequence[Results]) -> tuple[str, ...]:
    """A name of each run: its granularity, and what tells it from others where several have the same."""
    kinds = [granularity(results) for results in runs]
    if len(set(kinds)) == len(kinds):
        return tuple(kinds)
    labels = labels_of(runs)
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind} ({label})" for kind, label in zip(kinds, labels, strict=True)
    )


# -- panels ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One setup with the runs that have tickets timed in it."""

    setup: Setup
    curves: tuple[tuple[Series, tuple[TimedPoint, ...]], ...]


def panels_of(subject: Subject, indices: Sequence[int]) -> list[Panel]:
    """Of the runs of one task, named by what their masks are made of: a panel for each setup of any timed ticket."""
    runs = [subject.runs[index] for index in indices]
    series = [
        Series(name, index, results) for name, index, results in zip(series_names(runs), indices, runs, strict=True)
    ]
    found = []
    for setup in setups(runs, subject.speeds):
        curves = [(one, tuple(timed_points(one.results, subject.speeds, setup))) for one in series]
        if any(points for _, points in curves):
            found.append(Panel(setup, tuple((one, points) for one, points in curves if points)))
    return found


def compared_panels(panels: Sequence[Panel], speeds: Sequence[SpeedRecord]) -> Compared:
    """What the tickets with structure have over those without, of each panel that has both."""
    found: dict[tuple[Setup, str], Mapping[int, AtEqualTime]] = {}
    for panel in panels:
        runs = [one.results for one, _ in panel.curves]
        for results in runs:
            base = unstructured(results, runs)
            if base is not None and granularity(results) != UNSTRUCTURED:
                found[panel.setup, results.run.name] = at_equal_time(results, base, speeds, panel.setup)
    return found
