"""Prepare measured times for display: time saved by compiled tickets, and metric against latency of tickets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ticketry.records.metric import Metric
from ticketry.records.network import TICKET, Point
from ticketry.records.settings import upgrade_settings
from ticketry.records.ticket import BenchRecord, SpeedRecord
from ticketry.report.subject import Series, Subject, labels_of
from ticketry.report.tables.results import Group, Results, Summary, summarise
from ticketry.report.wording import MINUS, NONE, Style, percent, printable
from ticketry_engine.results import EngineTime, Saved, Timed


@dataclass(frozen=True, order=True)
class TimingSetup:
    """The conditions of a timing; only times under equal conditions are comparable."""

    batch: int
    precision: str
    threads: int
    cold: bool

    @classmethod
    def from_timing(cls, timed: Timed) -> TimingSetup:
        return cls(timed.batch, timed.precision, timed.threads, timed.cold)

    @property
    def conditions(self) -> str:
        """Description of the conditions, without the batch size."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.precision}, {threads}, {'cold' if self.cold else 'hot'} caches"


@dataclass(frozen=True)
class LatencyPoint:
    """Metric of a level's tickets, and the latency of these tickets relative to the fastest dense engine."""

    group: Group
    time: float
    """Time relative to the fastest dense engine, mean over the timed replicates."""
    low: float
    """The lowest end of the timed replicates' intervals."""
    high: float
    timed: int
    engines: tuple[str, ...]
    """Names of the engines that run the tickets fastest."""

    @property
    def metric(self) -> Summary:
        return self.group.metric()


def timing_setups(runs: Iterable[Results], speeds: Sequence[SpeedRecord]) -> list[TimingSetup]:
    """Return all timing setups in which a ticket of the runs was timed, sorted by batch size."""
    names = {results.run.name for results in runs}
    return sorted(
        {TimingSetup.from_timing(timed) for speed in speeds if speed.run in names for timed in speed.comparisons}
    )


def latency_points(results: Results, speeds: Sequence[SpeedRecord], setup: TimingSetup) -> list[LatencyPoint]:
    """Return a point for each level with a ticket that was timed in the setup, the slowest first.

    A ticket runs in sparse kernels or, if whole channels are pruned, as a smaller network in a dense engine; the faster
    way counts. If a ticket was timed several times, the fastest of the comparisons with the most dense engines counts.
    """
    found = []
    for group in results.groups_of_role(TICKET):
        best = [one for point in group.points.values() if (one := _best_saving(results, point, speeds, setup))]
        if best:
            found.append(
                LatencyPoint(
                    group=group,
                    time=statistics.fmean(1 - one.saved for one in best),
                    low=min(1 - one.high for one in best),
                    high=max(1 - one.low for one in best),
                    timed=len(best),
                    engines=tuple(dict.fromkeys(one.engine for one in best)),
                )
            )
    return sorted(found, key=lambda point: -point.time)


def _best_saving(results: Results, point: Point, speeds: Sequence[SpeedRecord], setup: TimingSetup) -> Saved | None:
    """Return the largest time saved by a ticket, from comparisons with the most dense engines; None if not timed."""
    timings = [
        timed
        for speed in speeds
        if speed.run == results.run.name and point.ticket and _folder_name(speed.ticket) == _folder_name(point.ticket)
        for timed in speed.comparisons
        if TimingSetup.from_timing(timed) == setup and timed.saved
    ]
    most = max(map(_dense_engine_count, timings), default=0)
    saved = [one for timed in timings if _dense_engine_count(timed) == most for one in timed.saved]
    return max(saved, key=lambda one: one.saved, default=None)


def _dense_engine_count(timed: Timed) -> int:
    return sum(one.timed and not one.sparse for one in timed.times)


def _folder_name(path: str) -> str:
    """Return the last part of a ticket's path, which stays the same if the store is moved."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


# -- at equal time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualTimeComparison:
    """A comparison of a level's metric with that of unstructured tickets that are at least as fast."""

    point: LatencyPoint
    difference: Summary
    """Paired differences of the metric; above 0, the timed level is better."""


ComparisonsBySetup = Mapping[tuple[TimingSetup, str], Mapping[int, EqualTimeComparison]]
"""Comparisons by (setup, name of the run), and then by level."""
MetricByReplicate = Mapping[int, float]
UNSTRUCTURED = "unstructured"


def compare_at_equal_time(
    results: Results, base: Results, speeds: Sequence[SpeedRecord], setup: TimingSetup
) -> Mapping[int, EqualTimeComparison]:
    """Compare each level of a run with unstructured tickets, from the run `base`, that are at least as fast.

    Candidates are all unstructured levels that are at least as fast, and the interpolation between two levels to the
    same time. The candidate with the best mean counts. Levels that are faster than all unstructured levels are omitted.
    """
    curve = _latency_curve(base, latency_points(base, speeds, setup))
    found = {}
    for point in latency_points(results, speeds, setup):
        rivals = [values for time, values in curve if time <= point.time]
        between = _interpolate_metric(curve, point.time)
        rivals += [between] if between else []
        sign = base.run.task.metric.sign
        best = max(rivals, key=lambda values: sign * statistics.fmean(values.values()), default=None)
        shared = sorted(point.group.points.keys() & (best or {}).keys())
        if best and shared:
            own = point.group.values()
            found[point.group.level] = EqualTimeComparison(
                point, summarise([sign * (own[r] - best[r]) for r in shared])
            )
    return found


def _latency_curve(base: Results, points: Sequence[LatencyPoint]) -> list[tuple[float, MetricByReplicate]]:
    """Return the time and the metric by replicate of each level and of the dense network, the fastest first."""
    found = [(point.time, point.group.values()) for point in points]
    if base.dense is not None:
        found.append((1.0, base.dense.values()))
    return sorted(found, key=lambda one: one[0])


def _interpolate_metric(curve: Sequence[tuple[float, MetricByReplicate]], time: float) -> MetricByReplicate | None:
    """Return the metric at a time, interpolated between the nearest points of the curve; None beyond its ends."""
    slower = next((one for one in curve if one[0] >= time), None)
    faster = next((one for one in reversed(curve) if one[0] < time), None)
    if slower is None or faster is None:
        return None
    share = (time - faster[0]) / (slower[0] - faster[0])
    shared = faster[1].keys() & slower[1].keys()
    return {r: (1 - share) * faster[1][r] + share * slower[1][r] for r in shared} or None


def structure_name(results: Results) -> str:
    """Return the name of the structure of a run's masks; ``unstructured`` if neither tickets nor settings name one."""
    for group in results.groups_of_role(TICKET):
        for point in group.points.values():
            if point.structure is not None:
                return printable(point.structure.name)
    settings = upgrade_settings(results.run.settings)
    structure = str(settings.get("structure", "none"))
    if structure.startswith("channels"):
        return "channels in the search"
    return UNSTRUCTURED if structure == "none" or settings.get("time") else printable(structure)


def structure_labels(runs: Sequence[Results]) -> tuple[str, ...]:
    """Return the name of each run's structure; if several runs have it, with the run's label in brackets."""
    kinds = [structure_name(results) for results in runs]
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind} ({label})"
        for kind, label in zip(kinds, labels_of(runs), strict=True)
    )


@dataclass(frozen=True)
class LatencyPanel:
    """A panel of the latency figure: a timing setup, and the runs with tickets that were timed in it."""

    setup: TimingSetup
    curves: tuple[tuple[Series, tuple[LatencyPoint, ...]], ...]

    @property
    def metric(self) -> Metric:
        return self.curves[0][0].results.run.task.metric


def latency_panels(subject: Subject, indices: Sequence[int]) -> list[LatencyPanel]:
    """Return a panel for each timing setup of the runs with these indices, which have one task."""
    runs = subject.runs_with_indices(indices)
    series = [Series(*one) for one in zip(structure_labels(runs), indices, runs, strict=True)]
    found = []
    for setup in timing_setups(runs, subject.speeds):
        curves = [(one, tuple(latency_points(one.results, subject.speeds, setup))) for one in series]
        if any(points for _, points in curves):
            found.append(LatencyPanel(setup, tuple((one, points) for one, points in curves if points)))
    return found


def compare_with_unstructured_tickets(
    panels: Sequence[LatencyPanel], speeds: Sequence[SpeedRecord]
) -> ComparisonsBySetup:
    """Compare structured with unstructured tickets of equal latency, in each panel that has both."""
    found: dict[tuple[TimingSetup, str], Mapping[int, EqualTimeComparison]] = {}
    for panel in panels:
        runs = [one.results for one, _ in panel.curves]
        for results in runs:
            base = next(
                (one for one in runs if results.can_be_paired_with(one) and structure_name(one) == UNSTRUCTURED), None
            )
            if base is not None and structure_name(results) != UNSTRUCTURED:
                found[panel.setup, results.run.name] = compare_at_equal_time(results, base, speeds, panel.setup)
    return found


def has_comparison(panel: LatencyPanel, compared: ComparisonsBySetup) -> bool:
    return any(compared.get((panel.setup, one.results.run.name)) for one, _ in panel.curves)


def best_equal_time_sentence(panel: LatencyPanel, compared: ComparisonsBySetup) -> str:
    """Return a sentence about the structured level that is best compared with unstructured tickets of equal latency."""
    found = [
        (one, level)
        for one, _ in panel.curves
        for level in compared.get((panel.setup, one.results.run.name), {}).values()
    ]
    if not found:
        return ""
    one, best = max(found, key=lambda each: each[1].difference.mean)
    style, ends = Style.for_results(one.results), best.difference.interval
    interval = f" (95 % interval {style.format_interval(ends)})" if ends else ""
    what = "largest gain of a structured level" if best.difference.mean > 0 else "smallest loss of a structured level"
    count = (
        "the only comparable level"
        if len(found) == 1
        else f"the best of {len(found)} comparable levels, so an upper estimate"
    )
    where = f"{one.label} at {percent(best.point.group.density)} % of the weights"
    return (
        f"Batch {panel.setup.batch}: at equal time the {what} over unstructured tickets is"
        f" {style.format_number(best.difference.mean, True)}{interval}: {where},"
        f" in {100 * best.point.time:.0f} % of the dense time; {count}."
    )


# -- of one compiled ticket --------------------------------------------------------------------------------------------

_CLOSE = 0.01
"""Share of time by which a saving computed from medians may leave the interval without contradicting it visibly."""
_STEADY = 2
"""Largest ratio of the third to the first quartile of an engine's times that counts as steady."""


def savings_sentence(speed: SpeedRecord) -> str:
    """Return a sentence that says how much time a call saves at each batch size, or that no difference is shown."""
    takes, unknown = [], []
    for timed in speed.comparisons:
        if (best := _sparse_engine_saving(timed)) is None:
            continue
        if best.low <= 0 <= best.high:
            unknown.append(f"at batch {timed.batch} (saved: {_saving_interval_text(best)}; against {best.against})")
        else:
            takes.append(f"{_format_saving(best.saved)} at batch {timed.batch} (against {best.against})")
    shown = [f"a call takes {', '.join(takes)}"] if takes else []
    shown += [f"no difference is shown {', '.join(unknown)}"] if unknown else []
    if not shown:
        return "Nothing was compared."
    return f"Against the fastest dense engine in the same rounds, {'; '.join(shown)}."


def _format_saving(saved: float) -> str:
    return f"{abs(100 * saved):.0f} % {'less' if saved >= 0 else 'more'}"


def _saving_interval_text(best: Saved) -> str:
    return f"{100 * best.low:.1f} to {100 * best.high:.1f} %".replace("-", MINUS)


def _sparse_engine_saving(timed: Timed) -> Saved | None:
    """Return the time saved by the sparse engine, the first entry of `timed.saved`; None if there is no entry."""
    return next(iter(timed.saved), None)


def unsteady_timing_warning(speed: SpeedRecord) -> str:
    """Return a warning if times varied so much that savings and medians may disagree; otherwise the empty string."""
    apart = {
        timed.batch: _format_saving(saved)
        for timed in speed.comparisons
        if (saved := _saving_outside_interval(timed)) is not None
    }
    batches = [
        str(timed.batch)
        for timed in speed.comparisons
        if timed.batch in apart
        or any(row.low and row.high and row.high > _STEADY * row.low for row in _times_of_compared_engines(timed))
    ]
    if not batches:
        return ""
    medians = ", ".join(f"{less} at batch {batch}" for batch, less in apart.items())
    return (
        f"Times varied a lot (batch {', '.join(batches)}), as they do beside other work on the machine. The saving is"
        " the median of ratios within rounds, which then need not agree with the medians in figure and table"
        f"{f', by which a call takes {medians}' if medians else ''}. Measure again on an idle machine."
    )


def _saving_outside_interval(timed: Timed) -> float | None:
    """Return the saving according to median times if it is outside the interval of the saving; otherwise None."""
    best, seconds = (
        _sparse_engine_saving(timed),
        [row.seconds for row in _times_of_compared_engines(timed) if row.seconds is not None],
    )
    if best is None or len(seconds) < 2:
        return None
    saved = 1 - seconds[0] / seconds[1]
    return None if best.low - _CLOSE <= saved <= best.high + _CLOSE else saved


def _times_of_compared_engines(timed: Timed) -> list[EngineTime]:
    """Return the times of the sparse engine, and of the dense engine that it is compared with."""
    best, rows = _sparse_engine_saving(timed), {row.engine: row for row in timed.times}
    return [rows[name] for name in (best.engine, best.against) if name in rows] if best else []


def savings_table_rows(speed: SpeedRecord) -> list[tuple[str, str, str]]:
    """Return name, number and remark of the time saved at each batch size, and of the compile time."""
    found = []
    for timed in speed.comparisons:
        best = _sparse_engine_saving(timed)
        if best is None:
            found.append((f"Batch {timed.batch}", NONE, "not compared"))
        else:
            number = f"{100 * best.saved:.1f} %".replace("-", MINUS)
            found.append(
                (f"Time saved, batch {timed.batch}", number, f"{_saving_interval_text(best)}; against {best.against}")
            )
    if isinstance(speed, BenchRecord) and speed.compile_seconds is not None:
        found.append(
            ("Compiled in", f"{speed.compile_seconds:.2f} s", "kernels and their tables; later ones are cached")
        )
    return found


def engine_time_rows(speed: SpeedRecord) -> list[list[str]]:
    """Return a row for each engine: median and quartiles in milliseconds at each batch size, or why it has no times."""
    names = dict.fromkeys(row.engine for timed in speed.comparisons for row in timed.times)
    return [[name, *(_engine_time_text(timed, name) for timed in speed.comparisons)] for name in names]


def _engine_time_text(timed: Timed, name: str) -> str:
    row = next((row for row in timed.times if row.engine == name), None)
    if row is None or row.seconds is None:
        return row.why if row else NONE
    quartiles = "" if row.low is None or row.high is None else f" ({1e3 * row.low:.3g} to {1e3 * row.high:.3g})"
    return f"{1e3 * row.seconds:.3g}{quartiles}"


def lowest_confidence(speed: SpeedRecord) -> float:
    """Return the lowest confidence level of the recorded intervals of the time saved."""
    return min((saved.confidence for timed in speed.comparisons for saved in timed.saved), default=0.0)
