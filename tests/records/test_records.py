"""Records are written by the classes that read them, and what is wrong in one is refused with its place."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_records import bench_record, plain_record, search_record, structured_record, with_pictures, with_rounds
from ticketry.errors import StoreError, UsageError
from ticketry.lab.store.files import write_with_digest
from ticketry.records.evidence import read_evidence
from ticketry.records.metric import Metric
from ticketry.records.network import LayerDensity as Layer
from ticketry.records.network import Moment
from ticketry.records.run import read_run
from ticketry.records.schema import as_json, decode_record
from ticketry.records.ticket import StructureRecord
from ticketry.report import read_evidence_about_runs
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject


def lost(told: Any, kept: Any, place: str = "") -> list[str]:
    """Where a value of `told` is not in `kept`; what is not known to the classes is expected to go."""
    if isinstance(told, dict):
        return [one for key in told for one in lost(told[key], kept.get(key, ...), f"{place}.{key}")]
    if isinstance(told, list) and isinstance(kept, list) and len(told) == len(kept):
        return [one for number, (a, b) in enumerate(zip(told, kept, strict=True)) for one in lost(a, b, f"{place}[]")]
    return [] if told == kept or (told is None and kept is ...) else [place]


UNKNOWN = {".points[].cached"}
"""Of the records made up for tests, what the classes have no field for."""


@pytest.mark.parametrize(
    "record",
    [
        with_rounds(with_pictures(search_record(levels=2))),
        with_pictures(search_record(levels=1), (4, 1, 3, 3)),
        structured_record("a", levels=2),
        plain_record("b", levels=1),
    ],
    ids=["rounds", "filters", "structured", "plain"],
)
def test_a_run_is_written_as_it_was_read(record: dict[str, Any]) -> None:
    made = read_run(record)
    written = json.loads(json.dumps(as_json(made)))
    assert set(lost(record, written)) <= UNKNOWN
    assert read_run(written) == made
    assert as_json(read_run(written)) == written


def test_evidence_is_written_as_it_was_read(make_verify: Any, make_stability: Any) -> None:
    for record in (make_verify(), make_stability(replicates=1), bench_record(), bench_record(curves=True)):
        made = read_evidence(record)
        written = json.loads(json.dumps(as_json(made)))
        assert written["kind"] == record["kind"]
        assert not [place for place in lost(record, written) if "points" not in place]  # the densest first
        assert read_evidence(written) == made
    assert [[point.density for point in curve.points] for curve in made.curves] == [[1.0, 0.5, 0.1, 0.02]] * 3


def test_what_is_not_finite_is_no_number_but_no_mistake_and_is_written_as_it_was(make_stability: Any) -> None:
    record = make_stability(replicates=1)
    record["rows"][0]["barriers"][0].update(height=math.inf, errors=[1.0, math.nan, None, *[2.0] * 8])
    read = read_evidence(record)
    curve = read.rows[0].barriers[0]
    assert math.isnan(curve.height)
    assert [math.isnan(error) for error in curve.errors[:4]] == [False, True, True, False]
    barrier = as_json(read)["rows"][0]["barriers"][0]
    assert (barrier["height"], barrier["errors"][2]) == (math.inf, None)


def test_what_is_left_out_and_what_is_null() -> None:
    """A point of the dense network has no ticket, no layers; a distance of it is null."""
    point = as_json(read_run(search_record(levels=0, replicates=1)))["points"][0]
    assert {"ticket", "structure", "moment", "first_layer", "cost"}.isdisjoint(point)
    record = search_record(levels=0, replicates=1)
    record["points"][0] |= {"moment": None, "structure": None, "cost": None, "first_layer": None}
    assert as_json(read_run(record))["points"][0] == point


def test_the_place_is_that_in_the_file() -> None:
    record = search_record(levels=1)
    record["points"][3]["cost"] = {name: {"steps": 1} for name in ("dense", "search", "sparse")}
    record["points"][3]["cost"]["dense"]["steps"] = "many"
    with pytest.raises(StoreError, match=r"^run\.json: points\[3\]\.cost\.dense\.steps is text, not a whole number\. "):
        read_run(record, "run.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kept": 1, "total": 2}, "x: name is missing, not text"),
        ({"name": "a", "kept": 1.0, "total": 2}, "x: kept is a number, not a whole number"),
        ({"name": "a", "kept": 1, "total": 10**30}, r"x: total is more than 1e\+18"),
        ({"name": "a", "kept": 1, "total": 0}, "x: total is 0, less than 1"),
        ({"name": "a", "kept": 1, "total": 2, "shape": [1, -1]}, r"x: shape\[1\] is -1, less than 0"),
        ([], "x: the whole is a list, not an object"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_json(value: Any, message: str) -> None:
    with pytest.raises(StoreError, match=f"^{message}"):
        decode_record(Layer, value, what="x", advice="y")


def test_a_record_of_another_version_is_told(make_verify: Any) -> None:
    for record, reader in ((search_record(levels=0), read_run), (make_verify(), read_evidence)):
        with pytest.raises(StoreError, match=r"format 7 is not the one this ticketry reads \(1\): install the version"):
            reader({**record, "format": 7})


def test_looks_without_a_value_are_nan() -> None:
    made = decode_record(
        Moment,
        {"step": 4, "detected": True, "detector": "masks", "threshold": 0.1, "looks": [[2, None], [4, 0.05]]},
        what="x",
        advice="y",
    )
    assert math.isnan(made.measurements[0][1])
    assert as_json(made)["looks"] == [[2, None], [4, 0.05]]


def test_a_structure_tells_the_options_of_its_kind_alone() -> None:
    told = {"kind": "regroup", "rows": 4, "density": None, "name": "regroup, 4 rows", "density_before": 0.1}
    record = {
        "format": 1, "kind": "structure", "ticket": "a", "path": "b", "task": "t", "model": "m", "weights": "start",
        "density": 0.1, "kept": 1, "prunable": 10, "parameters": 12, "seconds": 0.1, "structure": told, "command": "c",
    }  # fmt: skip
    made = decode_record(StructureRecord, copy.deepcopy(record), what="x", advice="y")
    assert as_json(made) == record


@pytest.mark.parametrize(("field", "word"), [("summary", "IQM"), ("scale", "logarithmic")])
def test_unknown_words_of_a_metric_are_refused(field: str, word: str) -> None:
    with pytest.raises(UsageError, match=f"metric: {field} '{word}' is not known: "):
        Metric("return", "", **{field: word})  # type: ignore[arg-type]


def _replaced(record, path, value):
    """A deep copy with one value replaced, or removed where it is `...`."""
    record = copy.deepcopy(record)
    *parents, last = path
    node = record
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return record


@pytest.mark.parametrize("key", ["settings", "steps", "cost", "title"])
def test_what_is_not_essential_may_be_missing(make_record, key):
    assert read_run(_replaced(make_record(levels=1), [key], ...)).method == "iterative"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "format 2 is not the one"),
        (["kind"], "verify", "kind is not 'search'"),
        (["task"], ..., "task is missing, not an object"),
        (["task", "metric", "name"], 5, r"task\.metric\.name is a number, not text"),
        (["task", "metric", "higher_is_better"], "yes", "higher_is_better is text, not true or false"),
        (["task", "prunable"], 10**9, "prunable is more than all parameters"),
        (["points"], {}, "points is an object, not a list"),
        (["points", 1, "level"], True, r"points\[1\]\.level is a truth value, not a whole number"),
        (["points", 1, "level"], -1, r"points\[1\]\.level is -1, less than 0"),
        (["points", 1, "role"], "<b>", r"points\[1\]\.role is '<b>', not a name"),
        (["points", 1, "density"], 1.5, r"points\[1\]\.density is 1\.5, which does not lie in"),
        (["points", 1, "test", "accuracy"], ..., r"points\[1\]\.test\.accuracy is missing, not a number"),
        (["points", 1, "test", "accuracy"], 10**400, "no finite number"),
        (["points", 1, "validation"], None, r"points\[1\]\.validation is missing"),
        (["points", 1, "layers", 0, "kept"], 10**9, r"layers\[0\]\.kept is more than the layer's total"),
        (["points", 2, "role"], "ticket", r"points\[2\] is the second ticket of replicate 0 at level 1"),
    ],
)
def test_refuses_with_the_place(make_record, path, value, message):
    with pytest.raises(StoreError, match=message) as caught:
        read_run(_replaced(make_record(levels=1), path, value))
    assert str(caught.value).startswith("run record: ")


@pytest.mark.parametrize("record", [None, []])
def test_refuses_what_is_no_record_at_all(record):
    with pytest.raises(StoreError, match="the whole"):
        read_run(record)


def _paths(node, path=()):
    """The paths of everything in a record."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from _paths(child, (*path, key))


_ODD = st.sampled_from([None, "", "x", [], {}, 0, -1, 1, 0.5, 1e300, math.nan, math.inf, True, [1, 2], {"a": 1}])


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_page_or_is_refused(make_record, make_verify, make_stability, make_bench, data):
    run = make_record(levels=1, replicates=1, controls=())
    makers = (
        lambda: run,
        lambda: make_verify(seeds=2),
        lambda: make_stability(replicates=1, levels=(3,)),
        lambda: make_bench(batches=(2,), curves=True),
    )
    record = data.draw(st.sampled_from(makers))()
    path = data.draw(st.sampled_from(sorted(_paths(record), key=str)))
    damaged = _replaced(record, path, data.draw(_ODD))
    try:
        subject = read_report_subject(damaged) if record is run else read_report_subject(run, [damaged])
    except StoreError:
        return
    render_report(subject).encode("utf-8")


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("verify", ["kind"], "search", "kind is 'search', not one of verify, stability, bench, bench-curve"),
        ("verify", ["verdict"], "perhaps", "verdict is 'perhaps', not one of wins, matches, loses, undecided"),
        ("verify", ["interval"], [1, 0], "interval is not two numbers"),
        ("verify", ["networks", 0, "values"], [], r"networks\[0\]\.values is empty"),
        ("verify", ["networks", 0, "values"], [1, "2"], r"networks\[0\]\.values\[1\] is text, not a number"),
        ("verify", ["comparisons", 0, "mean"], None, r"comparisons\[0\]\.mean is missing"),
        ("verify", ["noise", "n"], -1, "noise.n is -1, less than 0"),
        ("stability", ["total_steps"], 0, "total_steps is 0, less than 1"),
        ("stability", ["rows", 2, "pruning", "angle"], "wide", r"rows\[2\]\.pruning\.angle is text"),
        ("stability", ["rows", 2, "barriers", 0, "errors"], [1.0], r"errors has 1 numbers for 11 alphas"),
        ("stability", ["rows", 2, "role"], "ticket", r"rows\[2\] is the second ticket"),
        ("stability", ["rewinds"], None, "rewinds is missing, not a list"),
        ("bench", ["comparisons"], [], "comparisons is empty"),
        ("bench", ["comparisons", 0, "times", 1, "seconds"], -1, r"times\[1\]\.seconds is -1, not more than 0"),
        ("bench", ["comparisons", 0, "times", 1, "sparse"], "no", r"times\[1\]\.sparse is text, not true or false"),
        ("bench", ["layers", 0, "where"], "moon", r"layers\[0\]\.where is 'moon', not one of engine, torch"),
        ("curve", ["curves", 0, "points", 1, "ideal"], 0, r"points\[1\]\.ideal is 0, not more than 0"),
    ],
)
def test_refuses_evidence_with_the_place(make_verify, make_stability, make_bench, kind, path, value, message):
    makers = {"verify": make_verify, "stability": make_stability, "bench": make_bench}
    record = makers[kind]() if kind in makers else make_bench(curves=True)
    with pytest.raises(StoreError, match=message) as caught:
        read_evidence(_replaced(record, path, value))
    assert str(caught.value).startswith("evidence record: ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shape", [1, 28], "shape is not that of inputs"),
        ("kind", "colours", "kind is 'colours'"),
        ("data", "####", "data is not base64"),
        ("data", "AAAA", "data is 3 bytes long"),
    ],
)
def test_refuses_a_picture_that_is_none(full_record, key, value, message):
    index = next(index for index, point in enumerate(full_record["points"]) if "first_layer" in point)
    with pytest.raises(StoreError, match=rf"points\[{index}\]\.first_layer\.{message}"):
        read_run(_replaced(full_record, ["points", index, "first_layer", key], value))


def test_the_evidence_of_runs_is_found(tmp_path, make_verify, make_stability):
    folder = tmp_path / "evidence"
    assert read_evidence_about_runs(tmp_path, ["a"]) == []
    folder.mkdir()
    records = {"verify-1": make_verify(), "stability-1": make_stability(), "other": {"kind": "theory", "run": "a"}}
    records["verify-1"]["run"], records["stability-1"]["runs"] = "a", ["b", "c"]
    for name, record in records.items():
        write_with_digest(folder / f"{name}.json", record)
    assert read_evidence_about_runs(tmp_path, ["a"]) == [records["verify-1"]]
    assert read_evidence_about_runs(tmp_path, ["c", "d"]) == [records["stability-1"]]
    for number, kind in enumerate((["verify"], {}, None, 1.5)):
        write_with_digest(folder / f"strange-{number}.json", {**records["verify-1"], "kind": kind})
    assert read_evidence_about_runs(tmp_path, ["a"]) == [records["verify-1"]]
    assert read_evidence_about_runs(tmp_path, ["b", "a"]) == [records["stability-1"], records["verify-1"]]
    assert read_evidence_about_runs(tmp_path, ["d", ""]) == []
    (folder / "broken.json").write_text("{")
    with pytest.raises(StoreError, match="broken"):
        read_evidence_about_runs(tmp_path, ["a"])


def test_no_run_or_the_same_twice_is_refused(make_record):
    with pytest.raises(UsageError, match="at least one"):
        read_report_subject([])
    with pytest.raises(UsageError, match="given twice"):
        read_report_subject([make_record(levels=1), make_record(levels=2)])
