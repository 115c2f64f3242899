"""Choose the figures for which runs and evidence have data, and draw them as SVG or PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ticketry.errors import MissingExtraError
from ticketry.records.evidence import StabilityRecord, VerifyRecord
from ticketry.records.run import RunValues
from ticketry.records.ticket import SpeedRecord
from ticketry.report.subject import Series, Subject, labelled_runs
from ticketry.report.tables.costs import search_cost_points, ticket_cost_points, training_cost_points
from ticketry.report.tables.evidence import stability_quantities
from ticketry.report.tables.frontier import MULTIPLICATIONS, TIME, CostMeasure, recorded_measures
from ticketry.report.tables.masks import (
    detector_moments,
    first_layer_pictures,
    gate_round_chains,
    structured_level_to_draw,
)
from ticketry.report.tables.results import Results, mean_layer_densities, results_of
from ticketry.report.tables.speed import LatencyPanel

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "lab", "drawing figures") from error

from ticketry.report.figures.costs import (
    metric_by_call_cost,
    metric_by_latency,
    metric_by_search_cost,
    metric_by_training_cost,
    steps_to_ticket,
)
from ticketry.report.figures.evidence import (
    barrier_curves,
    difference_figure,
    seed_figure,
    stability_panels,
    time_by_density,
    time_by_engine,
)
from ticketry.report.figures.layout import to_png, to_svg
from ticketry.report.figures.masks import (
    density_by_layer,
    density_over_training,
    gate_histograms,
    mask_pictures,
    moment_figure,
    structure_pictures,
)
from ticketry.report.figures.metric_by_density import metric_by_density, overlay_runs
from ticketry.report.figures.style import figure_style

METRIC_BY_DENSITY, DENSITY_BY_LAYER = "metric-by-density", "density-by-layer"
FIRST_LAYER, METRIC_BY_COST = "first-layer", "metric-by-cost"
DENSITY_OVER_TRAINING, GATE_HISTOGRAMS = "density-over-training", "gate-histograms"
STEPS_TO_TICKET = "steps-to-ticket"
MOMENT, METRIC_BY_SPENT = "moment", "metric-by-whole-cost"
FOREST, SEEDS = "differences", "seeds"
TIME_BY_ENGINE, TIME_BY_DENSITY = "time-by-engine", "time-by-density"
STRUCTURE, METRIC_BY_TIME = "structure", "metric-by-time"
METRIC_BY = {TIME: "metric-by-share-of-time", MULTIPLICATIONS: "metric-by-multiplications"}
"""Name of the figure that shows the metric against a measure of inference cost, for each measure."""
STABILITY, BARRIERS = "stability-by-rewind-step", "error-barriers"

Maker = Callable[[bool], Figure]
"""Function that draws a figure; its argument says whether to draw the narrow figure, for phones."""


def measures_with_figures(drawings: Mapping[str, Drawing]) -> list[CostMeasure]:
    """Return the measures of inference cost (latency, MACs of a call) whose figure is in `drawings`."""
    return [measure for measure, name in METRIC_BY.items() if name in drawings]


@dataclass(frozen=True)
class Drawing:
    """A figure as two SVG documents: wide, and narrow for phones."""

    wide: str
    narrow: str
    """The figure for a phone: with fewer labels, and letters of the same size."""


def draw_figures(makers: Mapping[str, Maker]) -> dict[str, Drawing]:
    """Call the drawing functions `makers`, and return the figures as SVG documents in both widths, by name."""
    with figure_style():
        return {name: Drawing(*(to_svg(make(narrow)) for narrow in (False, True))) for name, make in makers.items()}


def _drawing_functions_with_data(*figures: tuple[str, object, Callable[..., Figure]]) -> dict[str, Maker]:
    """Return {name: drawing function} for the arguments (name, data, function) whose data are not empty."""
    return {name: partial(draw, shown) for name, shown, draw in figures if shown}


def _inference_cost_figures(series: Sequence[Series]) -> Iterator[tuple[str, object, Callable[..., Figure]]]:
    """Yield (name, runs with data, function) for two figures: metric against latency, and metric against MACs."""
    for measure, name in METRIC_BY.items():
        told = [one for one in series if measure in recorded_measures(one.results)]
        yield name, told, partial(metric_by_call_cost, measure)


def run_figures(results: Results) -> dict[str, Maker]:
    """Return, by name, functions that draw the figures of one run."""
    alone = [Series("", 0, results)]
    return _drawing_functions_with_data(
        *_inference_cost_figures(alone),
        (METRIC_BY_DENSITY, results.levels and results, metric_by_density),
        (DENSITY_BY_LAYER, mean_layer_densities(results), density_by_layer),
        (FIRST_LAYER, first_layer_pictures(results), mask_pictures),
        (STRUCTURE, structured_level_to_draw(results), structure_pictures),
        (DENSITY_OVER_TRAINING, gate_round_chains(results), density_over_training),
        (GATE_HISTOGRAMS, gate_round_chains(results), gate_histograms),
        (MOMENT, detector_moments(results), partial(moment_figure, results)),
        (METRIC_BY_SPENT, training_cost_points(results) and alone, metric_by_training_cost),
        (METRIC_BY_COST, search_cost_points(results) and alone, metric_by_search_cost),
    )


def comparison_figures(subject: Subject) -> list[dict[str, Maker]]:
    """Return, for each task, functions by name that draw figures with all runs of the task."""
    found = []
    for indices in subject.run_indices_by_task.values():
        series, runs = labelled_runs(subject, indices), [subject.runs[index] for index in indices]
        found.append(
            _drawing_functions_with_data(
                *_inference_cost_figures(series),
                (METRIC_BY_DENSITY, any(one.levels for one in runs) and series, overlay_runs),
                (METRIC_BY_SPENT, any(map(training_cost_points, runs)) and series, metric_by_training_cost),
                (METRIC_BY_COST, any(map(search_cost_points, runs)) and series, metric_by_search_cost),
                (STEPS_TO_TICKET, any(map(ticket_cost_points, runs)) and series, steps_to_ticket),
            )
        )
    return found


def latency_figures(panels: Sequence[LatencyPanel]) -> dict[str, Maker]:
    """Return, by the name of the figure, a function that draws the metric against latency; {} without panels."""
    return _drawing_functions_with_data((METRIC_BY_TIME, panels, metric_by_latency))


def verify_figures(verify: VerifyRecord) -> dict[str, Maker]:
    """Return, by name, functions that draw a verification: mean differences, and the values of single seeds."""
    return _drawing_functions_with_data(
        (FOREST, verify, difference_figure), (SEEDS, verify.networks and verify, seed_figure)
    )


def stability_figures(study: StabilityRecord) -> dict[str, Maker]:
    """Return, by name, functions that draw a stability analysis: distances over rewind steps, and error barriers."""
    curves = [row for row in study.rows if row.barrier]
    return _drawing_functions_with_data(
        (STABILITY, stability_quantities(study) and study, stability_panels),
        (BARRIERS, curves and study, barrier_curves),
    )


def speed_figures(speed: SpeedRecord) -> dict[str, Maker]:
    """Return, by name, functions that draw a timing: engines side by side, or latency against density."""
    timed = [row for compared in speed.comparisons for row in compared.times if row.timed]
    curves = speed.curves if any(curve.points for curve in speed.curves) else ()
    return _drawing_functions_with_data(
        (TIME_BY_ENGINE, timed and speed, time_by_engine), (TIME_BY_DENSITY, curves, time_by_density)
    )


def figure_svgs(record: RunValues) -> dict[str, str]:
    """Return the figures of a run as SVG documents, by name; figures without data are omitted.

    Names: ``metric-by-share-of-time``, ``metric-by-multiplications``, ``metric-by-density``, ``density-by-layer``,
    ``first-layer``, ``structure``, ``density-over-training``, ``gate-histograms``, ``moment``,
    ``metric-by-whole-cost`` and ``metric-by-cost``. The same record gives the same bytes.
    """
    makers = run_figures(results_of(record))
    with figure_style():
        return {name: to_svg(make(False), name.replace("-", " ")) for name, make in makers.items()}


def figure_png(record: RunValues, name: str) -> bytes | None:
    """Return the figure `name` (see `figure_svgs`) as the bytes of a PNG; None if the run has no data for it."""
    make = run_figures(results_of(record)).get(name)
    if make is None:
        return None
    with figure_style():
        return to_png(make(False))
