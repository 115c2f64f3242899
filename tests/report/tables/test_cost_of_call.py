"""The frontier: shares of time and of multiplications, and what tickets have over dense networks of their cost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from made_records import search_record
from ticketry.records.network import RelativeLatency
from ticketry.records.run import read_run
from ticketry.report import summary_lines
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.frontier import (
    MULTIPLICATIONS,
    TIME,
    call_cost_points,
    compare_at_equal_cost,
    frontier_lines,
    frontier_rows,
    recorded_measures,
)
from ticketry.report.tables.observation import describe_highlighted_level
from ticketry.report.tables.results import Results

FULL = 1000
pytestmark = pytest.mark.usefixtures("dots")


def record(name: str = "one", shift: float = 0.0, **settings: Any) -> Any:
    """Three levels of half of what was left, with dense networks that cost a little more and are a point worse."""
    made = read_run(search_record(levels=3, replicates=3, controls=("shuffled",)))
    points = []
    for point in made.points:
        count = FULL // 2**point.level
        accuracy = {**point.test, "accuracy": point.test["accuracy"] + (shift if point.role == "ticket" else 0)}
        points.append(structs.replace(point, multiplications=count, test=accuracy))
        if point.role == "ticket":
            worse = {**point.test, "accuracy": accuracy["accuracy"] - 1.0}
            rival = {"multiplications": count + 5, "model": f"lenet@0.{point.level}", "test": worse, "ticket": ""}
            key = f"rival {point.level} {point.replicate}"
            points.append(structs.replace(point, role="dense_of_flops", key=key, **rival))
    return structs.replace(
        made, name=name, points=tuple(points), settings={**made.settings, "flops": (0.125,), **settings}
    )


def test_shares_are_of_the_dense_networks_multiplications() -> None:
    results = Results(record())
    assert [point.cost for point in call_cost_points(results, "ticket", MULTIPLICATIONS)] == [0.5, 0.25, 0.125]
    assert [point.cost for point in call_cost_points(results, "dense_of_flops", MULTIPLICATIONS)] == [
        0.505,
        0.255,
        0.13,
    ]
    assert call_cost_points(results, "dense_of_flops", MULTIPLICATIONS)[1].networks == ("lenet@0.2",)


def test_differences_are_taken_replicate_by_replicate_to_the_dense_network_of_the_same_level() -> None:
    results = Results(record())
    for point in call_cost_points(results, "ticket", MULTIPLICATIONS):
        against = compare_at_equal_cost(results, point, [results], MULTIPLICATIONS)
        assert against is not None
        assert against.rival.group.level == point.group.level
        assert against.difference.mean == pytest.approx(1.0)
        assert against.difference.sd == pytest.approx(0.0, abs=1e-9)


def test_of_several_runs_the_dense_networks_are_one_curve_and_serve_all_of_the_same_seeds() -> None:
    both = [Results(record()), Results(record("two", shift=-2.0, unweighed=True))]
    lines = frontier_lines(both, [0, 1], MULTIPLICATIONS)
    assert [(line.run, line.role) for line in lines] == [(0, "ticket"), (1, "ticket"), (None, "dense_of_flops")]
    assert [point.cost for point in lines[-1].points] == [1.0, 0.505, 0.255, 0.13]  # each once, the dense one too
    rows = frontier_rows(both, lines, MULTIPLICATIONS)
    assert len(rows) == 3 + 3 + 4
    assert {row["run"] for row in rows} == {"one", "two", ""}
    bare = structs.replace(both[1].run, points=tuple(p for p in both[1].run.points if p.role != "dense_of_flops"))
    other = Results(bare)
    point = call_cost_points(other, "ticket", MULTIPLICATIONS)[0]
    assert compare_at_equal_cost(other, point, [other], MULTIPLICATIONS) is None
    against = compare_at_equal_cost(other, point, [both[0], other], MULTIPLICATIONS)
    assert against is not None
    assert against.difference.mean == pytest.approx(-1.0)


def test_alone_a_run_shows_its_controls_and_the_page_begins_with_the_frontier() -> None:
    made = record()
    lines = frontier_lines([Results(made)], [0], MULTIPLICATIONS)
    assert [line.role for line in lines] == ["ticket", "shuffled", "dense_of_flops"]
    page = render_report(read_report_subject(made))
    assert page.index('id="frontier"') < page.index('id="results"')
    assert "Tickets minus dense networks of equal cost" in page
    assert " % of the MACs (" in describe_highlighted_level(Results(made)).finding


def timed(name: str = "one", **settings: Any) -> Any:
    """The same network for network, with a measured time that is not its share of the multiplications."""
    made = record(name, time=(0.5, 0.3, 0.2), flops=(), **settings)
    points = []
    for point in made.points:
        role = "dense_of_time" if point.role == "dense_of_flops" else point.role
        share = (0.6, 0.4, 0.25)[point.level - 1] + 0.01 * point.replicate if point.level else None
        told = None if share is None else RelativeLatency(share=share, low=share - 0.01, high=share + 0.01)
        points.append(structs.replace(point, role=role, timed=told))
    return structs.replace(made, points=tuple(points))


def test_what_was_measured_comes_before_what_was_counted() -> None:
    results = Results(timed())
    assert recorded_measures(results) == [TIME, MULTIPLICATIONS]
    assert [point.cost for point in call_cost_points(results, "dense", TIME)] == [1.0]
    assert [point.cost for point in call_cost_points(results, "ticket", TIME)] == pytest.approx([0.61, 0.41, 0.26])
    page = render_report(read_report_subject(timed()))
    assert page.index('id="frontier"') < page.index('id="frontier-multiplications"') < page.index('id="results"')
    assert page.index("time of a call") < page.index("MACs of a call")
    assert " % of the dense network's time (" in describe_highlighted_level(results).finding


def test_a_level_with_a_network_that_was_not_timed_is_left_out() -> None:
    made = timed()
    points = [
        structs.replace(point, timed=None) if (point.level, point.replicate, point.role) == (2, 1, "ticket") else point
        for point in made.points
    ]
    found = call_cost_points(Results(structs.replace(made, points=tuple(points))), "ticket", TIME)
    assert [point.group.level for point in found] == [1, 3]


def test_the_terminals_table_tells_what_was_asked_for() -> None:
    made = record()
    header, *rows = (line.split() for line in summary_lines(made)[1:])
    assert header[:4] == ["level", "FLOPs", "weights", "remaining"]
    assert [row[1] for row in rows] == ["50.0", "25.0", "12.5"]
    assert "FLOPs" not in summary_lines(structs.replace(made, settings={**made.settings, "flops": ()}))[1]
    begun = structs.replace(made, points=tuple(point for point in made.points if point.role == "dense"))
    assert len(summary_lines(begun)) == 3
