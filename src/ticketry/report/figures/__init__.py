"""The figures by name: as standalone SVG and PNG files, and as elements of the page in two widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Results, layer_profiles
from ticketry.report.evidence_record import StabilityStudy, Verify
from ticketry.report.figures import svg
from ticketry.report.figures.cost import cost_by_metric, cost_points
from ticketry.report.figures.forest import forest, seeds
from ticketry.report.figures.gates import chains, density_over_training, gate_histograms
from ticketry.report.figures.known import known_points, steps_to_ticket
from ticketry.report.figures.layers import density_by_layer
from ticketry.report.figures.masks import mask_pictures, pictures
from ticketry.report.figures.metric import metric_by_density
from ticketry.report.figures.moment import moment_figure, watched
from ticketry.report.figures.overlay import Series, overlay
from ticketry.report.figures.saved import time_by_density, time_by_engine
from ticketry.report.figures.spent import metric_by_spent
from ticketry.report.figures.stability import barrier_curves, main_curve, quantities, stability_panels
from ticketry.report.figures.structure import drawn_level, structure_pictures
from ticketry.report.figures.timed import Panel, metric_by_time, timed_panels
from ticketry.report.granularity import series_names
from ticketry.report.record import read
from ticketry.report.speed_record import Speed
from ticketry.report.spent import spent_points
from ticketry.report.subject import Subject, labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC_BY_DENSITY, DENSITY_BY_LAYER = "metric-by-density", "density-by-layer"
FIRST_LAYER, METRIC_BY_COST = "first-layer", "metric-by-cost"
DENSITY_OVER_TRAINING, GATE_HISTOGRAMS = "density-over-training", "gate-histograms"
STEPS_TO_TICKET = "steps-to-ticket"
MOMENT, METRIC_BY_SPENT = "moment", "metric-by-whole-cost"
FOREST, SEEDS = "differences", "seeds"
TIME_BY_ENGINE, TIME_BY_DENSITY = "time-by-engine", "time-by-density"
STRUCTURE, METRIC_BY_TIME = "structure", "metric-by-time"
STABILITY, BARRIERS = "stability-by-rewind-step", "error-barriers"

Maker = Callable[[bool], "Figure"]
"""Draws a figure; True asks for the narrow one."""


@dataclass(frozen=True)
class Drawing:
    """One figure as SVG documents."""

    wide: str
    narrow: str
    """The same for a telephone: fewer labels, letters of the same size."""


def drawn(makers: Mapping[str, Maker]) -> dict[str, Drawing]:
    """The figures as SVG, in both widths."""
    with svg.drawing():
        return {name: Drawing(*(svg.to_svg(make(narrow)) for narrow in (False, True))) for name, make in makers.items()}


def run_figures(results: Results) -> dict[str, Maker]:
    """The figures that a run has something for, by name."""
    makers: dict[str, Maker] = {}
    if results.levels:
        makers[METRIC_BY_DENSITY] = lambda narrow: metric_by_density(results, narrow)
    if profiles := layer_profiles(results):
        makers[DENSITY_BY_LAYER] = lambda narrow: density_by_layer(profiles, narrow)
    if shown := pictures(results):
        makers[FIRST_LAYER] = lambda narrow: mask_pictures(shown, narrow)
    if level := drawn_level(results):
        makers[STRUCTURE] = lambda narrow: structure_pictures(level, narrow)
    if lines := chains(results):
        makers[DENSITY_OVER_TRAINING] = lambda narrow: density_over_training(lines, narrow)
        makers[GATE_HISTOGRAMS] = lambda narrow: gate_histograms(lines, narrow)
    if looks := watched(results):
        makers[MOMENT] = lambda narrow: moment_figure(results, looks, narrow)
    if spent_points(results):
        makers[METRIC_BY_SPENT] = lambda narrow: metric_by_spent([Series("", 0, results)], narrow)
    if cost_points(results):
        makers[METRIC_BY_COST] = lambda narrow: cost_by_metric([Series("", 0, results)], narrow)
    return makers


def comparison_figures(subject: Subject) -> list[dict[str, Maker]]:
    """For each task of several runs, the figures that lay its runs over each other."""
    return [_comparison(_series(subject, indices)) for indices in subject.by_task.values()]


def timed_figures(panels: Sequence[Panel]) -> dict[str, Maker]:
    """The metric against measured time, where any ticket was timed."""
    return {METRIC_BY_TIME: lambda narrow: metric_by_time(panels, narrow)} if panels else {}


def panels_of(subject: Subject, indices: Sequence[int]) -> list[Panel]:
    """The timed tickets of the runs of one task: a series a run, named by what its masks are made of."""
    runs = [subject.runs[index] for index in indices]
    series = [
        Series(name, index, results) for name, index, results in zip(series_names(runs), indices, runs, strict=True)
    ]
    return timed_panels(series, subject.speeds)


def _series(subject: Subject, indices: Sequence[int]) -> list[Series]:
    """The runs of one task: each with the colour it has on the whole page, named among these alone."""
    labels = labels_of([subject.runs[index] for index in indices])
    return [Series(label, index, subject.runs[index]) for label, index in zip(labels, indices, strict=True)]


def _comparison(series: list[Series]) -> dict[str, Maker]:
    makers: dict[str, Maker] = {}
    if any(one.results.levels for one in series):
        makers[METRIC_BY_DENSITY] = lambda narrow: overlay(series, narrow)
    if any(spent_points(one.results) for one in series):
        makers[METRIC_BY_SPENT] = lambda narrow: metric_by_spent(series, narrow)
    if any(cost_points(one.results) for one in series):
        makers[METRIC_BY_COST] = lambda narrow: cost_by_metric(series, narrow)
    if any(known_points(one.results) for one in series):
        makers[STEPS_TO_TICKET] = lambda narrow: steps_to_ticket(series, narrow)
    return makers


def verify_figures(verify: Verify) -> dict[str, Maker]:
    """The differences, and the seeds where the record has their values."""
    makers: dict[str, Maker] = {FOREST: lambda narrow: forest(verify, narrow)}
    if verify.networks:
        makers[SEEDS] = lambda narrow: seeds(verify, narrow)
    return makers


def stability_figures(study: StabilityStudy) -> dict[str, Maker]:
    """The panels over rewind steps, and the curves of the barriers where there are any."""
    makers: dict[str, Maker] = {}
    if quantities(study):
        makers[STABILITY] = lambda narrow: stability_panels(study, narrow)
    if any(main_curve(row) for row in study.rows):
        makers[BARRIERS] = lambda narrow: barrier_curves(study, narrow)
    return makers


def speed_figures(speed: Speed) -> dict[str, Maker]:
    """The engines side by side, and time against density where the record has it."""
    makers: dict[str, Maker] = {}
    if any(row.seconds is not None for timed in speed.comparisons for row in timed.times):
        makers[TIME_BY_ENGINE] = lambda narrow: time_by_engine(speed, narrow)
    if any(curve.points for curve in speed.curves):
        makers[TIME_BY_DENSITY] = lambda narrow: time_by_density(speed.curves, narrow)
    return makers


def figure_svgs(record: Mapping[str, Any]) -> dict[str, str]:
    """Standalone SVG documents of a run by name, where there are data for them.

    ``metric-by-density``, ``density-by-layer``, ``first-layer``, ``structure``, ``density-over-training``,
    ``gate-histograms``, ``moment``, ``metric-by-whole-cost`` and ``metric-by-cost``. The same record gives the same
    bytes.

    Raises:
        StoreError: if the record is malformed.
    """
    makers = run_figures(Results(read(record)))
    with svg.drawing():
        return {name: svg.to_svg(make(False)) for name, make in makers.items()}
