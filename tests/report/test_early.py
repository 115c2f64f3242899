"""Early pruning on the page: the moments, the cost of whole trainings, and tables by method, against the records."""

from __future__ import annotations

import copy
import csv
import html
import json
import math
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from samples import sample
from ticketry.records.network import Moment
from ticketry.records.run import read_run
from ticketry.report.exporting import export
from ticketry.report.figures import METRIC_BY_SPENT, MOMENT, Drawing, comparison_figures, draw_figures, run_figures
from ticketry.report.figures.layout import to_svg
from ticketry.report.figures.style import figure_style
from ticketry.report.page import PagePart, template_macro
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.costs import training_cost_points
from ticketry.report.tables.networks import tickets_of_equal_density
from ticketry.report.tables.results import Results
from ticketry.report.tables.rows import detector_rows

_RUNS = json.loads((Path(__file__).parent / "data" / "early_runs.json").read_text())
"""Three runs on digits with two replicates at densities 0.3 and 0.1: EarlyCroP, gradual pruning, SNIP at step 0. Steps,
seconds, accuracies and distances are real; FLOPs, memory and energy were added by a formula."""


moment_section = template_macro("masks.html", "moment_section")
cost_section = template_macro("results.html", "cost_section")


@pytest.fixture
def runs():
    return copy.deepcopy(_RUNS)


@pytest.fixture
def early(runs):
    return runs[0]


def _drawn(record, name):
    return _svg(run_figures(Results(read_run(record)))[name])


def _svg(make):
    """The wide figure alone."""
    with figure_style():
        return to_svg(make(False))


def _by_method(runs):
    """The section of tables by method; the whole page would take long to draw."""
    subject = read_report_subject(runs)
    ((task, indices),) = subject.run_indices_by_task.items()
    return template_macro("comparison.html", "methods_section")(subject, task, indices, PagePart())


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def _table(page, name):
    """The cells of the table that is called by the caption of this id, row by row, the head first."""
    table = re.search(rf'id="{name}">.*?<table[^>]*>(.*?)</table>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    strip = re.compile(r"<[^>]*>")
    return [
        [html.unescape(strip.sub("", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def _rows(record, role, level=None):
    return [point for point in record["points"] if point["role"] == role and level in (None, point["level"])]


def _whole(record, row, what):
    parts = [part for part in row["cost"].values() if part["steps"]]
    if what == "energy_wh":
        kwh, seconds = record["cost"]["energy_kwh"], record["cost"]["train_seconds_now"]
        return 1000 * kwh * sum(part["seconds"] for part in parts) / seconds
    return max(part[what] for part in parts) if what == "memory" else sum(part[what] for part in parts)


def _ratio(record, level, what):
    dense = {row["replicate"]: _whole(record, row, what) for row in _rows(record, "dense")}
    return statistics.fmean(
        _whole(record, row, what) / dense[row["replicate"]] for row in _rows(record, "ticket", level)
    )


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.sampled_from([0.05, 0.1, 0.3, 0.9]))
def test_what_is_shown_falls_below_the_threshold_where_the_detector_stops(distances, threshold):
    from ticketry.core.sparse_training.mask_dynamics import first_slow_checkpoint

    moment = Moment(0, True, "distance", threshold, tuple(enumerate(distances, start=1)))
    compared = [value for _, value in moment.compared_measurements]
    assume(all(not math.isclose(value, threshold, rel_tol=1e-9) for value in compared))
    assert compared[0] == 1
    below = [look for look, value in enumerate(compared, start=1) if look > 1 and value < threshold]
    assert first_slow_checkpoint(distances, threshold) == (below[0] if below else None)


def test_the_figure_names_thresholds_moments_and_axes(early):
    texts = _texts(_drawn(early, MOMENT))
    for text in (
        "30 %: threshold 0.3",
        "10 %: threshold 0.1",
        "pruned: detected",
        "pruned: latest allowed",
        "replicate 0",
        "replicate 1",
        "change of the distance since the measurement before, share of the first",
        "distance from the initialisation",
        "training steps (and epochs) before pruning",
    ):
        assert text in texts
    assert texts.count("57") == texts.count("3 ep") == 2


def test_the_moments_as_a_table(early):
    table = _table(moment_section(Results(read_run(early)), {}, PagePart()), "table-moments")
    assert table[0] == ["weights remaining, %", "threshold", "replicate 0", "replicate 1"]
    for shown, level in zip(table[1:], (1, 2), strict=True):
        for text, row in zip(shown[2:], _rows(early, "ticket", level), strict=True):
            moment = row["moment"]
            values = [value for _, value in moment["looks"]]
            share = abs(values[-1] - values[-2]) / values[0]
            word = "detected" if moment["detected"] else "latest allowed"
            assert text == f"step {moment['step']} ({moment['step'] // 19} ep), {word}: {share:.3g}"
            assert (share < moment["threshold"]) == moment["detected"]


def test_masks_have_a_panel_for_each_density(early):
    for row in _rows(early, "ticket"):
        looks = [[19 * (n + 2), 0.4 / (n + 1) + 0.01 * row["level"]] for n in range(4)]
        row["moment"].update(detector="masks", threshold=0.1, looks=looks)
    results = Results(read_run(early))
    drawings = {MOMENT: Drawing(*2 * (_svg(run_figures(results)[MOMENT]),))}
    texts = _texts(drawings[MOMENT].wide)
    assert "30 % of weights: mask's difference to the one before" in texts
    assert "10 % of weights: mask's difference to the one before" in texts
    assert "distance from the initialisation" not in texts
    rows = detector_rows([results])
    assert [row["compared"] for row in rows] == [row["value"] for row in rows]
    assert "any two of the last five" in moment_section(results, drawings, PagePart())


@pytest.mark.parametrize(
    "looks", sample([[[19, None], [38, 0.2]], [[19, 0.0]], [[19, 0.0], [38, 0.0]], [[19, 0.3]]], 2)
)
def test_odd_looks_do_no_harm(early, looks):
    for row in _rows(early, "ticket"):
        row["moment"]["looks"] = looks
    results = Results(read_run(early))
    drawings = draw_figures({MOMENT: run_figures(results)[MOMENT]})
    ElementTree.fromstring(drawings[MOMENT].wide)
    ElementTree.fromstring(drawings[MOMENT].narrow)
    moment_section(results, drawings, PagePart())


def test_costs_are_those_of_the_rows(runs):
    for record in runs:
        for point in training_cost_points(Results(read_run(record))):
            for name, what in {"FLOPs": "flops", "seconds": "seconds", "memory": "memory"}.items():
                assert point.times_dense[name] == pytest.approx(_ratio(record, point.level, what))
            assert point.values == tuple(row["test"]["accuracy"] for row in _rows(record, "ticket", point.level))
            if "energy_kwh" in record["cost"]:
                hours = [_whole(record, row, "energy_wh") for row in _rows(record, "ticket", point.level)]
                assert point.watt_hours == pytest.approx(statistics.fmean(hours))
            else:
                assert point.watt_hours is None


@pytest.mark.parametrize(
    ("by", "title"),
    [
        ("the processors' meters", "energy, mWh"),
        ("an estimate: some model", "energy, mWh (an estimate)"),
        (None, "energy"),
    ],
)
def test_an_estimate_is_called_one_and_what_was_not_measured_is_not_drawn(early, by, title):
    early["cost"]["energy_by"] = by
    if by is None:
        del early["cost"]["energy_kwh"]
    texts = _texts(_drawn(early, METRIC_BY_SPENT))
    for text in (title, "FLOPs, × dense", "training seconds, × dense", "memory at the highest, × dense"):
        assert texts.count(text) == 1
    assert texts.count("not measured") == (by is None)


def test_runs_are_compared_with_their_names_and_gaps(runs):
    subject = read_report_subject(runs)
    assert subject.labels == ("early, crop, iterations 7, when detect", "gradual", "early, snip, iterations 1, when 0")
    (makers,) = comparison_figures(subject)
    texts = _texts(_svg(makers[METRIC_BY_SPENT]))
    assert {*subject.labels, "energy, mWh; 1 of 3 runs not measured"} <= set(texts)


def test_the_ledger_has_the_phases(early):
    table = _table(cost_section(Results(read_run(early)), {}, PagePart()), "table-ledger")
    assert table[0] == ["network", "phase", "steps", "FLOPs", "seconds", "memory", "energy"]
    assert [row[-6] for row in table[1:]] == ["dense", *2 * ["dense", "search", "sparse", "whole"]]
    rows = _rows(early, "ticket", 2)
    for shown, phase in zip(table[6:9], ("dense", "search", "sparse"), strict=True):
        parts = [row["cost"][phase] for row in rows]
        steps, flops, seconds, memory = shown[-5:-1]
        assert steps == f"{statistics.fmean(part['steps'] for part in parts):,.0f}"
        assert float(flops.split()[0]) * {"MFLOP": 1e6, "GFLOP": 1e9}[flops.split()[1]] == pytest.approx(
            statistics.fmean(part["flops"] for part in parts), rel=0.005
        )
        assert seconds == f"{statistics.fmean(part['seconds'] for part in parts):.2f} s"
        assert memory == f"{statistics.fmean(part['memory'] for part in parts) / 2**20:.3g} MiB"
    assert table[9][-5] == str(sum(part["steps"] for part in rows[0]["cost"].values()))


def test_a_table_for_each_density(runs):
    section = _by_method(runs)
    for number, level in ((1, 1), (2, 2)):
        table = _table(section, f"density-{number}-table")
        assert table[0] == [
            *("method", "weights remaining, %", "test accuracy (%)", "n", "minus dense"),
            *(f"{name}, ×\N{NO-BREAK SPACE}dense" for name in ("FLOPs", "seconds", "memory", "energy")),
        ]
        for shown, record in zip(table[1:], runs, strict=True):
            dense = {row["replicate"]: row["test"]["accuracy"] for row in _rows(record, "dense")}
            values = [row["test"]["accuracy"] for row in _rows(record, "ticket", level)]
            gaps = [row["test"]["accuracy"] - dense[row["replicate"]] for row in _rows(record, "ticket", level)]
            assert shown[2] == f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
            assert shown[3] == "2"
            assert shown[4].replace("−", "-") == f"{statistics.fmean(gaps):+.2f} ± {statistics.stdev(gaps):.2f}"
            for cell, what in zip(shown[5:8], ("flops", "seconds", "memory"), strict=True):
                assert cell == f"{_ratio(record, level, what):.2f}"
            measured = "energy_kwh" in record["cost"]
            assert shown[8] == (shown[6] if measured else "not measured")
    assert "Schedules differ" not in section


def test_densities_within_five_per_cent_stand_in_one_table(runs):
    for row in _rows(runs[1], "ticket", 1):
        row["density"] = 0.314
    for row in _rows(runs[2], "ticket", 1):
        row["density"] = 0.316
    subject = read_report_subject(runs)
    first, second = tickets_of_equal_density(subject.runs)
    assert (first.density, [place for place, _ in first.members], first.nearest) == (0.3, [0, 1], ((2, 0.316),))
    assert [place for place, _ in second.members] == [0, 1, 2]
    words = "Without networks of this density: early, snip, iterations 1, when 0 (nearest: 31.6\N{NO-BREAK SPACE}%)"
    assert words in _by_method(runs)
    assert "Without a table" not in _by_method(runs)
    for row in _rows(runs[1], "ticket", 1):
        row["density"] = 0.35
    section = _by_method(runs)
    assert "Without a table, since no two runs reached it: 30.0\N{NO-BREAK SPACE}%." in section
    assert "30.0 % of the weights" not in section


def test_what_differs_is_told(runs):
    runs[1]["recipe"]["lr"] = 0.1
    runs[2]["environment"]["workers"] = 8
    for row in _rows(runs[2], "ticket"):
        row["budget"] = 760
    page = _by_method(runs)
    one, two, three = read_report_subject(runs).labels
    assert f"Schedules differ, and only equal ones compare: lr: 0.0012 ({one}; {three}), 0.1 ({two}). " in page
    assert f"training steps in the weights: 380 ({one}; {two}), 760 ({three})." in page
    assert f"Measured under different conditions: workers: 2 ({one}; {two}), 8 ({three})." in page


def _old(record):
    """As runs were stored before costs and moments were told."""
    for row in record["points"]:
        row.pop("cost", None)
        row.pop("moment", None)
    for name in ("energy_kwh", "energy_by", "train_seconds_now"):
        record["cost"].pop(name, None)
    return record


def test_older_records_are_shown_without_invented_numbers(runs):
    results = Results(read_run(_old(runs[0])))
    assert not {MOMENT, METRIC_BY_SPENT} & run_figures(results).keys()
    assert not moment_section(results, {}, PagePart()).strip()
    section = cost_section(results, {}, PagePart())
    assert "FLOPs, seconds and memory of each phase: not measured in this run" in section
    assert 'id="table-ledger"' not in section
    table = _table(_by_method(runs), "density-1-table")
    assert table[1][5:] == ["not measured"] * 4
    assert table[2][5:8] != ["not measured"] * 3


@pytest.mark.slow
def test_the_new_columns_are_exported(early, tmp_path):
    names = {path.name for path in export(early, tmp_path)}
    assert {"looks.csv", "costs.csv", "moment.svg", "metric-by-whole-cost.png"} <= names

    def rows(name):
        with (tmp_path / name).open(newline="") as file:
            return list(csv.DictReader(file))

    for shown, row in zip(rows("points.csv"), early["points"], strict=True):
        for phase, part in row["cost"].items():
            assert int(shown[f"phase_{phase}_steps"]) == part["steps"]
            assert float(shown[f"phase_{phase}_flops"]) == part["flops"]
            assert float(shown[f"phase_{phase}_seconds"]) == part["seconds"]
            assert shown[f"phase_{phase}_memory"] == ("" if part["memory"] is None else str(part["memory"]))
        assert shown["pruned_at_step"] == (str(row["moment"]["step"]) if "moment" in row else "")
        assert float(shown["energy_wh"]) == pytest.approx(_whole(early, row, "energy_wh"))
    looks = [look for row in _rows(early, "ticket") for look in row["moment"]["looks"]]
    assert [[int(row["step"]), float(row["value"])] for row in rows("looks.csv")] == looks
