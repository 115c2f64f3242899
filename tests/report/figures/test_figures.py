"""The figures: valid, reproducible SVG; a y range that shows what matters; labels that do not touch."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.lines import Line2D

from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run
from ticketry.report.figures import (
    BARRIERS,
    DENSITY_BY_LAYER,
    FIRST_LAYER,
    FOREST,
    METRIC_BY_COST,
    METRIC_BY_DENSITY,
    STABILITY,
    comparison_figures,
    draw_figures,
    figure_svgs,
    run_figures,
    stability_figures,
    verify_figures,
)
from ticketry.report.figures.layout import (
    add_legend,
    empty_figure,
    indices_of_fitting_labels,
    spread_label_positions,
    to_inline_element,
    to_svg,
)
from ticketry.report.figures.masks import shorten_layer_names
from ticketry.report.figures.metric_by_density import y_limits_near_dense, y_limits_of_all_networks
from ticketry.report.figures.style import COLOURS, run_plot_options
from ticketry.report.figures.style import figure_style as drawing_style
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.costs import search_cost_points
from ticketry.report.tables.masks import first_layer_pictures, mask_pixels, mean_retained_share
from ticketry.report.tables.results import Results

_SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def test_the_figures_are_valid_svg_that_loads_nothing(make_record):
    figures = figure_svgs(make_record(levels=2))
    assert list(figures) == [METRIC_BY_DENSITY, DENSITY_BY_LAYER, METRIC_BY_COST]
    for svg in figures.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{_SVG}svg"
        for element in root.iter():
            assert element.tag not in (f"{_SVG}script", f"{_SVG}image", f"{_SVG}a")
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")


def test_another_process_imports_little_and_draws_the_same_bytes(make_record, tmp_path):
    record = make_record(levels=1, replicates=2)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    code = (
        "import hashlib, json, sys, ticketry; before = set(sys.modules); import ticketry.report;"
        "early = sorted({'torch', 'matplotlib', 'rich'} & (set(sys.modules) - before));"
        "from ticketry.report.figures import figure_svgs;"
        "figures = figure_svgs(json.load(open(sys.argv[1])));"
        "digest = hashlib.sha256(''.join(figures.values()).encode()).hexdigest();"
        "print(early, digest, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    digest = hashlib.sha256("".join(figure_svgs(record).values()).encode()).hexdigest()
    assert other.stdout.split() == ["[]", digest, "False"]


def test_the_inlined_figure_has_variables_for_colours_and_ids_of_its_own(make_record):
    svg = figure_svgs(make_record(levels=2))[METRIC_BY_DENSITY]
    assert ElementTree.fromstring(svg)[0].text == "metric by density"
    element = to_inline_element(svg, "mine", "the-caption")
    assert "var(--ticket)" in element
    assert not any(colour in element for colour in COLOURS.values())
    ids = [part.split('"')[0] for part in element.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("mine-") for name in ids)
    for reference in [*element.split("url(#")[1:], *element.split('href="#')[1:]]:
        assert reference.split(")")[0].split('"')[0] in ids
    read = ElementTree.fromstring(element.replace("xlink:href", "href"))
    assert (read.get("role"), read.get("aria-labelledby")) == ("img", "the-caption")
    assert not list(read.iter("title"))


@pytest.mark.parametrize("name", ["_$\\frac<script>\x00\x1b a&b 漢字" + 300 * "x", ""])
def test_hostile_names_are_drawn_as_text(make_record, name):
    record = make_record(levels=1, replicates=1, metric=(name, "$", True), shapes={name: (4, 4), "other": (2, 2)})
    for svg in figure_svgs(record).values():
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_main_panel_shows_the_better_half(make_record, higher_is_better):
    results = Results(read_run(make_record(metric=("score", "", higher_is_better))))
    (low, high), (lowest, highest) = y_limits_near_dense(results), y_limits_of_all_networks(results)
    assert lowest <= low < high <= highest + 1e-9
    assert high - low < 0.5 * (highest - lowest)
    assert low < results.dense.metric().mean < high
    means = [group.metric().mean for role in results.roles for group in results.groups_of_role(role)]
    assert sum(low <= mean <= high for mean in means) >= len(means) / 2


@pytest.mark.parametrize(("densities", "accuracy"), [([1.0], 50.0), ([0.5, 0.5000001], 50.0), ([1e-7, 0.9], 0.0)])
def test_odd_axes(make_record, densities, accuracy):
    record = make_record(levels=len(densities), replicates=1, controls=())
    for point in record["points"]:
        point["test"]["accuracy"] = accuracy
        point["density"] = densities[point["level"] - 1] if point["level"] else 1.0
    with drawing_style():
        run_figures(Results(read_run(record)))[METRIC_BY_DENSITY](False)


def test_an_empty_layer_is_drawn_as_0(make_record):
    record = make_record(levels=3, replicates=1)
    record["points"][-4]["layers"][1]["kept"] = 0
    assert "0" in _texts(figure_svgs(record)[DENSITY_BY_LAYER])


def test_figures_without_data_are_left_out(make_record):
    record = make_record(levels=1)
    for point in record["points"]:
        point["layers"] = None
        del point["steps"]
    assert list(figure_svgs(record)) == [METRIC_BY_DENSITY]
    assert figure_svgs({**record, "points": record["points"][:1]}) == {}


@given(st.lists(st.floats(0, 900), min_size=1, max_size=40), st.data())
def test_labels_never_touch(positions, data):
    positions.sort()
    labels = [data.draw(st.text("0123456789.", min_size=1, max_size=6)) for _ in positions]
    chosen = indices_of_fitting_labels(positions, labels)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    for i, j in itertools.pairwise(chosen):
        assert positions[j] - 3.7 * len(labels[j]) > positions[i] + 3.7 * len(labels[i])


def test_names_of_layers_keep_what_tells_them_apart():
    assert shorten_layer_names(["a.weight", "b.weight"], 10) == ["a", "b"]
    assert shorten_layer_names(["a.weight", "b.bias"], 10) == ["a.weight", "b.bias"]
    assert shorten_layer_names(["transformer.h.11.mlp.c_proj"], 12) == ["….mlp.c_proj"]


def test_the_forest_shows_every_difference_and_the_margin(make_verify):
    drawing = draw_figures(verify_figures(read_evidence(make_verify())))[FOREST]
    for texts in (_texts(drawing.wide), _texts(drawing.narrow)):
        for name in ("dense", "random re-initialisation", "shuffled masks", "small dense network", "margin −0.50"):
            assert name in texts
        assert "ticket, other seeds (A/A)" in texts
        (written,) = [text for text in texts if text.startswith("+0.27")]
        assert written.endswith("p = 0.004")


def test_a_study_has_a_row_for_each_density_and_a_column_for_each_quantity(make_stability):
    makers = stability_figures(read_evidence(make_stability(levels=(3, 7))))
    with drawing_style():
        texts, barriers = (_texts(to_svg(makers[name](False))) for name in (STABILITY, BARRIERS))
    assert [text for text in texts if text.startswith("weights remaining")] == [
        "weights remaining: 51.2 %",
        "weights remaining: 21.0 %",
    ]
    for name in ("test accuracy (%)", "L2 distance", "angle (°)", "error barrier (%)"):
        assert texts.count(name) == 2
    assert texts.count("0.5%") == 8
    assert "step 43 (1%)" in barriers


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True))
@pytest.mark.slow
def test_any_rewind_steps_can_be_drawn(make_stability, steps):
    record = make_stability(replicates=1, levels=(3,), layers=False)
    rows = [row for row in record["rows"] if row["step"] == 0]
    record["rows"] = [{**row, "step": step} for step in steps for row in rows]
    record["total_steps"] = max(1, *steps)
    for make in stability_figures(read_evidence(record)).values():
        make(True)


def test_costs_are_the_sums_of_dense_and_tickets(make_record):
    record = make_record(levels=3, replicates=2)
    for point in record["points"]:
        point["steps"], point["seconds"] = 100 * (point["level"] + 1), 1.5 * (point["replicate"] + 1)
    points = search_cost_points(Results(read_run(record)))
    assert [point.steps for point in points] == [100, 300, 600, 1000]
    assert [point.seconds for point in points] == [2.25, 4.5, 6.75, 9.0]
    assert [point.n for point in points] == [2] * 4
    del record["points"][0]["steps"]
    assert [point.n for point in search_cost_points(Results(read_run(record)))] == [1] * 4


def test_filters_are_tiles_in_the_colours_of_the_channels_kept(make_record):
    record = with_filters(make_record(levels=2, replicates=1))
    picture = first_layer_pictures(Results(read_run(record)))[0].layer
    pixels = mask_pixels(picture)
    bits = numpy.array([[(byte >> (7 - bit)) & 1 for bit in range(8)] for byte in picture.data]).reshape(-1)[
        : 5 * 3 * 4
    ]
    filters = bits.reshape(5, 3, 2, 2)
    tiles = [pixels[3 * row : 3 * row + 2, 3 * column : 3 * column + 2] for row in range(2) for column in range(3)]
    for tile, kept in zip(tiles, filters, strict=False):
        assert (tile[:, :, :3] == 255 * kept.transpose(1, 2, 0)).all()
        assert (tile[:, :, 3] == 255).all()
    assert (tiles[5] == 0).all()  # no sixth filter
    assert mean_retained_share(picture) == pytest.approx(bits.mean())
    assert FIRST_LAYER in figure_svgs(record)


def with_filters(record):
    for point in record["points"]:
        if point["role"] == "ticket":
            data = bytes([0b10110010, 0b01011100, 0xFF, 0x00, 0b11100011, 0b01010101, 0b10011001, 0b11000000])
            point["first_layer"] = {
                "name": "conv.weight",
                "kind": "filters",
                "shape": [5, 3, 2, 2],
                "data": base64.b64encode(data).decode(),
            }
    return record


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_at_line_ends_are_apart_and_in_order(places):
    places.sort()
    spots = spread_label_positions(places, 14, 0, 300)
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(spots))
    assert spots[-1] <= 300 + 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_one_collapsed_control_does_not_set_the_scale_of_the_tickets(make_record, sign):
    """One level, tickets 0.4 from dense and the only control 60 from it: the main panel shows the tickets."""
    record = make_record(levels=1, replicates=3, controls=("shuffled",))
    record["task"]["metric"]["higher_is_better"] = sign > 0
    for point in record["points"]:
        short = {"dense": 0.0, "ticket": 0.4, "shuffled": 60.0}[point["role"]] + 0.05 * point["replicate"]
        point["test"]["accuracy"] = 80 - sign * short
    results = Results(read_run(record))
    low, high = y_limits_near_dense(results)
    assert low < 80 - sign * 0.5 < high
    assert high - low < 5
    assert y_limits_of_all_networks(results)[sign < 0] * sign < (80 - sign * 55) * sign


def test_runs_are_overlaid_with_their_names(rewind_runs):
    subject = read_report_subject(rewind_runs)
    assert subject.labels == tuple(f"iterative, rewind {step}" for step in ("0", "1%", "3%", "10%"))
    (makers,) = comparison_figures(subject)
    with drawing_style():
        texts = _texts(to_svg(makers[METRIC_BY_DENSITY](True)))
    assert {*subject.labels, "shuffled masks", "random pruning"} <= set(texts)


def test_colour_and_marker_tell_runs_apart():
    looks = [(look["color"], look["marker"]) for look in map(run_plot_options, range(64))]
    assert len(set(looks)) == 64
    assert len(set(looks[:8])) == len({colour for colour, _ in looks[:8]}) == len({marker for _, marker in looks[:8]})


@pytest.fixture
def early_runs(make_record):
    """What a comparison of pruning at the start has: many runs of one method, each with settings of its own."""
    usual = {"score": "crop", "when": "0", "iterations": 1, "distribution": "global", "every": "1ep", "regrow": False}
    changes = [
        {},
        {"score": "snip"},
        {"score": "random", "distribution": "uniform"},
        {"score": "synflow", "iterations": 100, "regrow": True},
        {"when": "detect", "iterations": 7, "every": "2.5%"},
    ]
    runs = [make_record(levels=1, replicates=2) for _ in (*changes, None)]
    for number, (run, change) in enumerate(zip(runs, (*changes, {}), strict=True)):
        run |= {"run": f"run-{number}", "method": "early", "settings": {**usual, **change}}
    runs[-1] |= {"method": "gradual", "settings": {"score": "magnitude", "until": "50%"}}
    return runs


def test_of_many_runs_of_a_method_only_what_is_unusual_is_told(early_runs):
    assert read_report_subject(early_runs).labels == (
        "early, crop",
        "early, snip",
        "early, random, distribution uniform",
        "early, synflow, iterations 100, regrow",
        "early, crop, when detect, iterations 7, every 2.5%",
        "gradual",
    )


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys("abc", st.integers(0, 2))), min_size=2, max_size=7))
def test_runs_with_the_same_settings_in_different_values_never_share_a_label(make_record, settings):
    runs = [make_record(levels=1, replicates=1) for _ in settings]
    for number, (run, own) in enumerate(zip(runs, settings, strict=True)):
        run |= {"run": f"run-{number}", "settings": own}
    labels = read_report_subject(runs).labels
    assert len(set(labels)) == len(runs)
    complete = all(own.keys() == settings[0].keys() for own in settings)
    if complete and all(one != other for one, other in itertools.combinations(settings, 2)):
        assert not {run["run"] for run in runs} & {*labels}


def test_runs_are_named_by_the_fewest_facts_that_tell_them_apart(make_record):
    runs = [make_record(levels=1, replicates=n) for n in (1, 2, 2)]
    for number, run in enumerate(runs):
        run["run"] = f"run-{number}"
    runs[2]["settings"]["rewind"] = "3%"
    assert read_report_subject(runs).labels == (
        "iterative, rewind 1%, n = 1",
        "iterative, rewind 1%, n = 2",
        "iterative, rewind 3%, n = 2",
    )
    runs[2]["settings"]["rewind"] = "1%"
    assert read_report_subject(runs).labels == ("run-0", "run-1", "run-2")
    runs[0]["task"]["name"] = runs[1]["task"]["name"] = "digits"
    runs[2]["points"] = runs[2]["points"][:4]
    assert len(comparison_figures(read_report_subject(runs))) == 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=60), min_size=1, max_size=7, unique=True))
def test_a_legend_has_as_many_columns_as_fit(labels):
    with drawing_style():
        marks = {label: Line2D([], []) for label in labels}
        figure = empty_figure(False, 300)
        add_legend(figure, marks)
        (made,) = figure.legends
        columns = len(made.get_children()[0].get_children()[1].get_children())
        assert columns == 1 or made.get_window_extent().width <= figure.bbox.width
        assert figure.bbox.height > 300
        if columns < len(labels):
            wider = figure.legend(list(marks.values()), labels, loc="outside upper left", ncols=columns + 1)
            assert wider.get_window_extent().width > figure.bbox.width
