"""The axis of a metric: ratios look equal on a logarithmic one."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from made_records import add_verdicts
from ticketry.records.run import read_run
from ticketry.report.figures import METRIC_BY_DENSITY, figure_svgs
from ticketry.report.figures.layout import (
    Scale,
    figure_with_panels,
    finish_layout,
    round_ticks,
    set_up_density_axis,
    set_up_log_axis,
)
from ticketry.report.figures.metric_by_density import y_limits_near_dense, y_limits_of_all_networks
from ticketry.report.page import PagePart, template_macro
from ticketry.report.tables.results import Results, Summary

_AXES = Figure().subplots()


@pytest.mark.parametrize("log", [True, False])
def test_room_is_the_same_share_on_both_sides(log: bool) -> None:
    scale = Scale(log)
    low, high = scale.limits_with_room(80.0, 640.0, 0.1)
    edges = [scale.position(value) for value in (low, 80.0, 640.0, high)]
    assert edges[1] - edges[0] == pytest.approx(0.1 * (edges[2] - edges[1]))
    assert edges[3] - edges[2] == pytest.approx(0.1 * (edges[2] - edges[1]))
    one, other = scale.limits_with_room(80.0, 80.0, 0.1)
    assert one < 80 < other


def test_bands_that_reach_below_0_end_at_half_the_mean() -> None:
    summary = Summary(mean=200.0, sd=140.0, n=2)
    assert Scale(True).clip_low_end(-50.0, summary) == pytest.approx(100.0)
    assert Scale(False).clip_low_end(-50.0, summary) == -50.0


@given(
    low=st.floats(min_value=1e-3, max_value=1e6),
    ratio=st.floats(min_value=1.001, max_value=1e6),
    most=st.integers(3, 9),
)
def test_ticks_are_few_round_numbers_in_the_range(low: float, ratio: float, most: int) -> None:
    found = round_ticks(low, low * ratio, most)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= most
    assert all(low <= tick <= low * ratio for tick in found)
    if ratio > 10:
        assert len(found) >= 2


@given(low=st.floats(min_value=1e-3, max_value=1e6), ratio=st.floats(min_value=1.25, max_value=1e6))
@settings(deadline=None)
def test_two_labels_of_a_logarithmic_axis_differ(low: float, ratio: float) -> None:
    """One alone says nothing of the others' distance."""
    places = set_up_log_axis(_AXES, "y", low, low * ratio)
    assert all(low <= place <= low * ratio for place in places)
    assert len({_AXES.yaxis.get_major_formatter()(place) for place in places}) == len(places) >= 2


def perplexities(make_record, **changes):
    """A record whose metric is e to the (100 - accuracy) / 20."""
    record = make_record(levels=6, **changes)
    record["task"]["metric"] = {"name": "perplexity", "unit": "", "higher_is_better": False, "scale": "log"}
    for point in record["points"]:
        for split in ("validation", "test"):
            point[split]["perplexity"] = 60 * math.exp((100 - point[split]["accuracy"]) / 8)
    return record


def test_the_figure_of_a_perplexity(make_record) -> None:
    record = perplexities(make_record)
    results = Results(read_run(record))
    low, high = y_limits_of_all_networks(results)
    assert 0 < low < high
    near = y_limits_near_dense(results)
    assert near is None or ((low <= near[0] or near[0] > 0) and near[0] < near[1] <= high * 1.2)
    svg = figure_svgs(record)[METRIC_BY_DENSITY]
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "test perplexity (log scale)" in texts
    assert any(text in texts for text in ("60", "70", "80", "100", "200"))


def test_verdicts_name_differences_as_they_are_counted(make_record) -> None:
    """Above 0 is in the tickets' favour: of perplexities it is the ticket's that is taken away."""
    for record, heads in (
        (add_verdicts(perplexities(make_record)), ("dense minus tickets", "shuffled masks minus tickets")),
        (add_verdicts(make_record(levels=6)), ("tickets minus dense", "minus shuffled masks")),
    ):
        found = template_macro("results.html", "verdicts_section")(Results(read_run(record)), PagePart())
        assert all(f">{head}<" in found for head in heads)


def test_a_picture_of_twice_the_pixels_has_the_same_labels() -> None:
    """Twenty densities on a narrow figure: labels that have no room at its own size have none at twice that size."""
    figure, (axes,) = figure_with_panels(1, True, 200)
    set_up_density_axis(axes, [0.8**level for level in range(20)])
    finish_layout(figure)
    shown = list(axes.xaxis.get_major_locator()())
    assert 3 < len(shown) < 20
    figure.set_dpi(2 * figure.dpi)
    assert list(axes.xaxis.get_major_locator()()) == shown
