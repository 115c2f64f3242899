"""Structure and measured time in the report: what is read, computed, drawn and told."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from made_records import benches_of, plain_record, structured_record
from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run
from ticketry.records.ticket import SpeedRecord
from ticketry.report.exporting import export
from ticketry.report.figures.costs import metric_by_latency
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.results import Results
from ticketry.report.tables.speed import (
    TimingSetup,
    compare_at_equal_time,
    compare_with_unstructured_tickets,
    latency_panels,
    latency_points,
    structure_labels,
    structure_name,
    timing_setups,
)

SETUP = TimingSetup(1, "fp32", 1, False)


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    return [plain_record("plain"), structured_record("r16", shift=-1.5), structured_record("r4", rows=4, shift=-0.4)]


@pytest.fixture(scope="module")
def evidence(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [bench for run, factor in zip(runs, (0.9, 0.6, 0.75), strict=True) for bench in benches_of(run, factor)]


def speeds_of(evidence: list[dict[str, Any]]) -> list[SpeedRecord]:
    found = [read_evidence(record) for record in evidence]
    assert all(isinstance(one, SpeedRecord) for one in found)
    return found  # type: ignore[return-value]


def test_granularities_have_names(runs: list[dict[str, Any]]) -> None:
    results = [Results(read_run(record)) for record in runs]
    assert [structure_name(one) for one in results] == ["unstructured", "regroup, 16 rows", "regroup, 4 rows"]
    assert structure_labels(results) == ("unstructured", "regroup, 16 rows", "regroup, 4 rows")
    for settings, name in (({"structured": True}, "channels in the search"), ({"pattern": "16x1"}, "rows:16")):
        other = copy.deepcopy(runs[0])
        other |= {"run": "other", "settings": {**other["settings"], **settings}}
        assert structure_name(Results(read_run(other))) == name
    twice = copy.deepcopy(runs[1])
    twice |= {"run": "twice", "settings": {**twice["settings"], "regroup_method": "random"}}
    names = structure_labels([*results, Results(read_run(twice))])
    assert names[0] == "unstructured"
    assert names[2] == "regroup, 4 rows"
    assert len(set(names)) == 4
    assert names[1].startswith("regroup, 16 rows (")


def test_tickets_find_their_times(runs: list[dict[str, Any]], evidence: list[dict[str, Any]]) -> None:
    results, speeds = Results(read_run(runs[1])), speeds_of(evidence)
    assert timing_setups([results], speeds) == [SETUP, TimingSetup(64, "fp32", 1, False)]
    points = latency_points(results, speeds, SETUP)
    assert [point.group.level for point in points] == [1, 2, 3, 4, 5, 6], "the slowest first"
    for point in points:
        share = 0.6 * point.group.density + 0.08
        assert point.time == pytest.approx(share)
        assert (point.low, point.high) == pytest.approx((share - 0.02, share + 0.03))
        assert (point.timed, point.engines) == (1, ("ticketry",))
    assert latency_points(results, speeds, TimingSetup(1, "bf16", 1, False)) == []
    assert latency_points(results, speeds_of(benches_of(runs[0], 0.9)), SETUP) == [], "of another run"


def test_the_fastest_form_of_a_ticket_counts(runs: list[dict[str, Any]]) -> None:
    slow, fast = benches_of(runs[1], 0.6), benches_of(runs[1], 0.4)
    for bench in slow:
        shrunk = {**bench["comparisons"][0]["saved"][0], "engine": "openvino, shrunk", "saved": 0.99}
        bench["comparisons"][0]["saved"].append(shrunk)
    results = Results(read_run(runs[1]))
    assert {point.engines for point in latency_points(results, speeds_of(slow), SETUP)} == {("openvino, shrunk",)}
    both = latency_points(results, speeds_of([*benches_of(runs[1], 0.6), *fast]), SETUP)
    assert [point.time for point in both] == [point.time for point in latency_points(results, speeds_of(fast), SETUP)]


def test_a_slow_opponent_alone_makes_no_ticket_faster(runs: list[dict[str, Any]]) -> None:
    """A ticket that was timed against more engines keeps that ratio, whatever it gains over fewer of them."""
    fair, easy = benches_of(runs[1], 0.6), benches_of(runs[1], 0.2)
    for bench in easy:
        for timed in bench["comparisons"]:
            timed["times"] = [one for one in timed["times"] if one["sparse"]][:1] + [
                one for one in timed["times"] if not one["sparse"]
            ][:1]
    results = Results(read_run(runs[1]))
    assert sum(not one["sparse"] for one in fair[0]["comparisons"][0]["times"]) > 1
    both = latency_points(results, speeds_of([*fair, *easy]), SETUP)
    assert [point.time for point in both] == [point.time for point in latency_points(results, speeds_of(fair), SETUP)]


def test_at_equal_time(runs: list[dict[str, Any]], evidence: list[dict[str, Any]]) -> None:
    plain, grouped = (Results(read_run(record)) for record in runs[:2])
    found = compare_at_equal_time(grouped, plain, speeds_of(evidence), SETUP)
    levels = [group.level for group in plain.groups_of_role("ticket")]
    times = [0.9 * 0.8**level + 0.08 for level in levels]
    replicates = range(3)

    def metric(results: Results, level: int, replicate: int) -> float:
        group = results.group(level, "ticket") if level else results.dense
        assert group is not None
        return group.values()[replicate]

    compared = 0
    for level in levels:
        time = 0.6 * 0.8**level + 0.08
        if time < min(times):
            assert level not in found
            continue
        knots = sorted([(1.0, 0), *zip(times, levels, strict=True)])
        line = [
            float(np.interp(time, [t for t, _ in knots], [metric(plain, at, r) for _, at in knots])) for r in replicates
        ]
        rivals = [line, *([metric(plain, at, r) for r in replicates] for t, at in knots if t <= time)]
        best = max(rivals, key=fmean)
        differences = [metric(grouped, level, r) - best[r] for r in replicates]
        made = found[level].difference
        assert made.mean == pytest.approx(fmean(differences))
        assert made.sd == pytest.approx(stdev(differences))
        half = stats.t.ppf(0.975, 2) * stdev(differences) / 3**0.5
        assert made.interval == pytest.approx((made.mean - half, made.mean + half))
        compared += 1
    assert compared == len(found) == 4


@pytest.mark.parametrize("which", ["recipe", "seeds"])
def test_only_like_is_compared_with_like(
    runs: list[dict[str, Any]], evidence: list[dict[str, Any]], which: str
) -> None:
    other = copy.deepcopy(runs[0])
    other["run"] = "other"
    other[which] = other.get(which, {}) | ({"length": "9ep"} if which == "recipe" else {"initialisation": 77})
    benches = [*evidence, *benches_of(other, 0.9)]

    def compared(*records: dict[str, Any]) -> dict[str, Any]:
        subject = read_report_subject(records, benches)
        made = compare_with_unstructured_tickets(latency_panels(subject, range(len(records))), subject.speeds)
        return {name: found for (setup, name), found in made.items() if setup == SETUP}

    name = runs[1]["run"]
    assert compared(other, runs[1]) == {}
    assert list(compared(other, runs[1], runs[0])) == [name]
    assert compared(other, runs[1], runs[0])[name].keys() == compared(runs[0], runs[1])[name].keys()


@pytest.mark.usefixtures("dots")
def test_the_page_of_a_run(runs: list[dict[str, Any]]) -> None:
    text = render_report(read_report_subject(runs[1], benches_of(runs[1], 0.6)))
    for told in ("Structure", "regroup, 16 rows", "Accuracy against measured time", "coverage, %", "no structure, %"):
        assert told in text
    assert text.count("What it saves, ticket by ticket") == 1
    assert "t equal time" not in text, "there is nothing to compare with"
    few = render_report(read_report_subject(runs[1], benches_of(runs[1], 0.6)[:2]))
    assert "ticket by ticket" not in few
    assert few.count("<h2>What it saves</h2>") == 2
    plain = render_report(read_report_subject(runs[0]))
    assert "<h2>Structure</h2>" not in plain
    assert "measured time" not in plain


@pytest.mark.usefixtures("dots")
def test_the_page_of_several(runs: list[dict[str, Any]], evidence: list[dict[str, Any]]) -> None:
    subject = read_report_subject(runs, evidence)
    assert render_report(subject).count("at equal time the") == 2, "a sentence a batch"
    (indices,) = subject.run_indices_by_task.values()
    panels = latency_panels(subject, indices)
    assert [panel.setup.batch for panel in panels] == [1, 64]
    assert [one.label for one, _ in panels[0].curves] == ["unstructured", "regroup, 16 rows", "regroup, 4 rows"]


@pytest.mark.parametrize("replicates", [2, 3])
def test_bars_are_whole_intervals(runs: list[dict[str, Any]], replicates: int) -> None:
    """Student's t by SciPy; from three replicates on the panel has room for all of them."""
    run = copy.deepcopy(runs[0])
    run["points"] = [point for point in run["points"] if point["replicate"] < replicates]
    subject = read_report_subject([run], benches_of(run, 0.6))
    (indices,) = subject.run_indices_by_task.values()
    axes = metric_by_latency(latency_panels(subject, indices)).axes[0]
    drawn = {tuple(line.get_ydata()) for line in axes.lines if len(set(line.get_xdata())) == 1}
    for level in range(1, 7):
        values = [p["test"]["accuracy"] for p in run["points"] if p["role"] == "ticket" and p["level"] == level]
        assert len(values) == replicates
        ends = stats.t.interval(0.95, replicates - 1, fmean(values), stdev(values) / replicates**0.5)
        assert any(bar == pytest.approx(ends) for bar in drawn)
        low, high = axes.get_ylim()
        assert replicates == 2 or low < ends[0] < ends[1] < high


@pytest.mark.slow
def test_files(runs: list[dict[str, Any]], evidence: list[dict[str, Any]], tmp_path: Path) -> None:
    names = {path.name for path in export(runs, tmp_path, evidence)}
    assert {"metric-by-time.svg", "metric-by-time.png", "run-2-structure.svg", "structure.csv", "times.csv"} <= names
    lines = (tmp_path / "times.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 6 * 2
    assert lines[0].startswith("run,masks,level,density,batch")
    fits = (tmp_path / "structure.csv").read_text().splitlines()
    assert len(fits) == 1 + 2 * 6 * 3 * 4
