"""The figures by name: as standalone SVG and PNG files, and as elements of the page in two widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ticketry.errors import MissingExtraError
from ticketry.records.evidence import StabilityRecord, VerifyRecord
from ticketry.records.run import RunValues
from ticketry.records.speed import SpeedRecord
from ticketry.report.subject import Series, Subject, series_of
from ticketry.report.tables.cost_of_call import MULTIPLICATIONS, TIME, told_measures
from ticketry.report.tables.costs import cost_points, spent_points, tickets_by_density
from ticketry.report.tables.evidence import quantities
from ticketry.report.tables.masks import drawn_level, pictures
from ticketry.report.tables.measured_time import Panel
from ticketry.report.tables.results import Results, layer_profiles, results_of
from ticketry.report.tables.search_progress import chains, watched

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "lab", "drawing figures") from error

from ticketry.report.figures import svg
from ticketry.report.figures.cost_of_call import metric_by_call
from ticketry.report.figures.costs import metric_by_cost, metric_by_spent, metric_by_time, steps_to_ticket
from ticketry.report.figures.engine_times import time_by_density, time_by_engine
from ticketry.report.figures.forest import forest, seeds
from ticketry.report.figures.masks import density_by_layer, mask_pictures, structure_pictures
from ticketry.report.figures.metric_by_density import metric_by_density, overlay
from ticketry.report.figures.search_progress import density_over_training, gate_histograms, moment_figure
from ticketry.report.figures.stability import barrier_curves, stability_panels
from ticketry.report.figures.style import drawing

METRIC_BY_DENSITY, DENSITY_BY_LAYER = "metric-by-density", "density-by-layer"
FIRST_LAYER, METRIC_BY_COST = "first-layer", "metric-by-cost"
DENSITY_OVER_TRAINING, GATE_HISTOGRAMS = "density-over-training", "gate-histograms"
STEPS_TO_TICKET = "steps-to-ticket"
MOMENT, METRIC_BY_SPENT = "moment", "metric-by-whole-cost"
FOREST, SEEDS = "differences", "seeds"
TIME_BY_ENGINE, TIME_BY_DENSITY = "time-by-engine", "time-by-density"
STRUCTURE, METRIC_BY_TIME = "structure", "metric-by-time"
METRIC_BY = {TIME: "metric-by-share-of-time", MULTIPLICATIONS: "metric-by-multiplications"}
"""Of a call, first on the page of a search for a budget."""
STABILITY, BARRIERS = "stability-by-rewind-step", "error-barriers"

Maker = Callable[[bool], Figure]
"""Draws a figure; True asks for the narrow one."""


@dataclass(frozen=True)
class Drawing:
    """One figure as SVG documents."""

    wide: str
    narrow: str
    """The same for a telephone: fewer labels, letters of the same size."""


def drawn(makers: Mapping[str, Maker]) -> dict[str, Drawing]:
    """The figures as SVG, in both widths."""
    with drawing():
        return {name: Drawing(*(svg.to_svg(make(narrow)) for narrow in (False, True))) for name, make in makers.items()}


def _made(*figures: tuple[str, object, Callable[..., Figure]]) -> dict[str, Maker]:
    """Of figures by name, what is drawn, and by which function: those that have something to draw."""
    return {name: partial(draw, shown) for name, shown, draw in figures if shown}


def _by_call(series: Sequence[Series]) -> Iterator[tuple[str, object, Callable[..., Figure]]]:
    """Figures of the runs that tell what a call costs, one for each way in which they tell it."""
    for measure, name in METRIC_BY.items():
        told = [one for one in series if measure in told_measures(one.results)]
        yield name, told, partial(metric_by_call, measure)


def run_figures(results: Results) -> dict[str, Maker]:
    """The figures that a run has something for, by name."""
    alone = [Series("", 0, results)]
    return _made(
        *_by_call(alone),
        (METRIC_BY_DENSITY, results.levels and results, metric_by_density),
        (DENSITY_BY_LAYER, layer_profiles(results), density_by_layer),
        (FIRST_LAYER, pictures(results), mask_pictures),
        (STRUCTURE, drawn_level(results), structure_pictures),
        (DENSITY_OVER_TRAINING, chains(results), density_over_training),
        (GATE_HISTOGRAMS, chains(results), gate_histograms),
        (MOMENT, watched(results), partial(moment_figure, results)),
        (METRIC_BY_SPENT, spent_points(results) and alone, metric_by_spent),
        (METRIC_BY_COST, cost_points(results) and alone, metric_by_cost),
    )


def comparison_figures(subject: Subject) -> list[dict[str, Maker]]:
    """For each task of several runs, the figures that lay its runs over each other."""
    return [_comparison(series_of(subject, indices)) for indices in subject.by_task.values()]


def _comparison(series: list[Series]) -> dict[str, Maker]:
    def having(told: Callable[[Results], object]) -> list[Series]:
        return series if any(told(one.results) for one in series) else []

    return _made(
        *_by_call(series),
        (METRIC_BY_DENSITY, having(lambda results: results.levels), overlay),
        (METRIC_BY_SPENT, having(spent_points), metric_by_spent),
        (METRIC_BY_COST, having(cost_points), metric_by_cost),
        (STEPS_TO_TICKET, having(tickets_by_density), steps_to_ticket),
    )


def timed_figures(panels: Sequence[Panel]) -> dict[str, Maker]:
    """The metric against measured time, where any ticket was timed."""
    return _made((METRIC_BY_TIME, panels, metric_by_time))


def verify_figures(verify: VerifyRecord) -> dict[str, Maker]:
    """The differences, and the seeds where the record has their values."""
    return _made((FOREST, verify, forest), (SEEDS, verify.networks and verify, seeds))


def stability_figures(study: StabilityRecord) -> dict[str, Maker]:
    """The panels over rewind steps, and the curves of the barriers where there are any."""
    curves = [row for row in study.rows if row.barrier]
    return _made(
        (STABILITY, quantities(study) and study, stability_panels), (BARRIERS, curves and study, barrier_curves)
    )


def speed_figures(speed: SpeedRecord) -> dict[str, Maker]:
    """The engines side by side, and time against density where the record has it."""
    timed = [row for compared in speed.comparisons for row in compared.times if row.timed]
    curves = speed.curves if any(curve.points for curve in speed.curves) else ()
    return _made((TIME_BY_ENGINE, timed and speed, time_by_engine), (TIME_BY_DENSITY, curves, time_by_density))


def figure_svgs(record: RunValues) -> dict[str, str]:
    """Standalone SVG documents of a run by name, where there are data for them.

    ``metric-by-share-of-time``, ``metric-by-multiplications``, ``metric-by-density``, ``density-by-layer``,
    ``first-layer``, ``structure``, ``density-over-training``, ``gate-histograms``, ``moment``,
    ``metric-by-whole-cost`` and ``metric-by-cost``. The same record gives the same bytes.

    Raises:
        StoreError: if the record is malformed.
    """
    makers = run_figures(results_of(record))
    with drawing():
        return {name: svg.to_svg(make(False), name.replace("-", " ")) for name, make in makers.items()}


def figure_png(record: RunValues, name: str) -> bytes | None:
    """One of `figure_svgs` as the bytes of a PNG; None where the run has nothing for it."""
    make = run_figures(results_of(record)).get(name)
    if make is None:
        return None
    with drawing():
        return svg.to_png(make(False))
