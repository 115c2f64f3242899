"""The frontier: shares of multiplications, and what tickets have over dense networks of their cost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from made_records import search_record
from ticketry.records.run import read_run
from ticketry.report.html.page import render
from ticketry.report.subject import subject_of
from ticketry.report.tables.counted_cost import at_equal_cost, counted_points, frontier_rows, is_counted, lines_of
from ticketry.report.tables.observation import observe
from ticketry.report.tables.results import Results

FULL = 1000


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
    assert [point.cost for point in counted_points(results, "ticket")] == [0.5, 0.25, 0.125]
    assert [point.cost for point in counted_points(results, "dense_of_flops")] == [0.505, 0.255, 0.13]
    assert counted_points(results, "dense_of_flops")[1].networks == ("lenet@0.2",)


def test_runs_that_tell_no_multiplications_have_no_frontier() -> None:
    plain = search_record(levels=3, replicates=3)
    assert not is_counted(Results(read_run(plain)))
    assert "frontier" not in render(subject_of(plain))


def test_differences_are_taken_replicate_by_replicate_to_the_dense_network_of_the_same_level() -> None:
    results = Results(record())
    for point in counted_points(results, "ticket"):
        against = at_equal_cost(results, point, [results])
        assert against is not None
        assert against.rival.group.level == point.group.level
        assert against.difference.mean == pytest.approx(1.0)
        assert against.difference.sd == pytest.approx(0.0, abs=1e-9)


def test_of_several_runs_the_dense_networks_are_one_curve_and_serve_all_of_the_same_seeds() -> None:
    both = [Results(record()), Results(record("two", shift=-2.0, unweighed=True))]
    lines = lines_of(both, [0, 1])
    assert [(line.run, line.role) for line in lines] == [(0, "ticket"), (1, "ticket"), (None, "dense_of_flops")]
    assert [point.cost for point in lines[-1].points] == [1.0, 0.505, 0.255, 0.13]  # each once, the dense one too
    rows = frontier_rows(both, lines)
    assert len(rows) == 3 + 3 + 4
    assert {row["run"] for row in rows} == {"one", "two", ""}
    bare = structs.replace(both[1].run, points=tuple(p for p in both[1].run.points if p.role != "dense_of_flops"))
    other = Results(bare)
    point = counted_points(other, "ticket")[0]
    assert at_equal_cost(other, point, [other]) is None
    against = at_equal_cost(other, point, [both[0], other])
    assert against is not None
    assert against.difference.mean == pytest.approx(-1.0)


def test_alone_a_run_shows_its_controls_and_the_page_begins_with_the_frontier() -> None:
    made = record()
    lines = lines_of([Results(made)], [0])
    assert [line.role for line in lines] == ["ticket", "shuffled", "dense_of_flops"]
    page = render(subject_of(made))
    assert page.index('id="frontier"') < page.index('id="results"')
    assert "Tickets minus dense networks of equal cost" in page
    assert page.index("multiplications of a call") < page.index("weights remaining, % of the prunable")
    assert " % of the multiplications (" in observe(Results(made)).finding


def test_several_runs_show_one_frontier() -> None:
    page = render(subject_of([record(), record("two", unweighed=True)]))
    assert page.count('-frontier"') >= 1
    assert "dense networks of equal cost" in page
