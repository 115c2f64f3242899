"""What is read from evidence records and the new parts of run records, and what is refused with the place."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry.errors import StoreError, UsageError
from ticketry.lab.store.files import write_sealed
from ticketry.records.evidence import StabilityRecord, VerifyRecord, read_evidence
from ticketry.records.run import read_run
from ticketry.records.speed import SpeedRecord
from ticketry.report import evidence_of
from ticketry.report.html.page import render
from ticketry.report.subject import subject_of


def _replaced(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path
    node = record
    for key in parents:
        node = node[key]
    node[last] = value
    return record


def test_reads_a_verification(make_verify):
    record = make_verify()
    verify = read_evidence(json.loads(json.dumps(record)))
    assert isinstance(verify, VerifyRecord)
    assert verify.verdict == "wins"
    assert [one.role for one in verify.networks][:2] == ["ticket", "dense"]
    assert list(verify.networks[0].values) == record["networks"][0]["values"]
    assert verify.noise.sd == 0.15
    assert [(one.role, one.why) for one in verify.left_out] == [("small_dense_wide", "no width has as many weights")]


def test_reads_a_study(make_stability):
    record = make_stability()
    study = read_evidence(record)
    assert isinstance(study, StabilityRecord)
    assert [rewind.step for rewind in study.rewinds] == [0, 22, 43, 129, 430]
    assert study.rows[0].role == "dense"
    assert study.rows[0].pruning is None
    assert study.rows[1].pruning.l2 == record["rows"][1]["pruning"]["l2"]


def test_reads_what_a_ticket_saves(make_bench):
    record = json.loads(json.dumps(make_bench()))
    speed = read_evidence(record)
    assert isinstance(speed, SpeedRecord)
    assert [timed.batch for timed in speed.comparisons] == [1, 8, 64]
    assert [row.seconds for row in speed.comparisons[2].times][:2] == pytest.approx([0.048, 0.0448])
    assert speed.comparisons[0].times[2].why == "no C++ compiler on this machine"
    assert speed.comparisons[0].saved[0].saved == record["comparisons"][0]["saved"][0]["saved"]
    assert [layer.name for layer in speed.layers] == ["fc1", "fc2", "odd"]
    curves = read_evidence(make_bench(curves=True)).curves
    assert [[point.density for point in curve.points] for curve in curves] == [[1.0, 0.5, 0.1, 0.02]] * 3


@pytest.mark.parametrize(
    ("curves", "path", "value", "message"),
    [
        (False, ["comparisons"], [], "comparisons is empty"),
        (False, ["comparisons", 0, "batch"], 0, r"comparisons\[0\]\.batch is 0, less than 1"),
        (False, ["comparisons", 0, "times", 1, "seconds"], -1, r"times\[1\]\.seconds is -1, not more than 0"),
        (False, ["comparisons", 0, "times", 1, "sparse"], "no", r"times\[1\]\.sparse is text, not true or false"),
        (False, ["comparisons", 0, "saved", 0, "low"], None, r"saved\[0\]\.low is missing"),
        (False, ["layers", 0, "where"], "moon", r"layers\[0\]\.where is 'moon', not one of engine, torch"),
        (True, ["curves", 0, "points", 1, "ideal"], 0, r"points\[1\]\.ideal is 0, not more than 0"),
        (True, ["curves", 0, "points", 1, "density"], 2, r"points\[1\]\.density is 2"),
    ],
)
def test_refuses_what_cannot_have_been_timed(make_bench, curves, path, value, message):
    with pytest.raises(StoreError, match=message):
        read_evidence(_replaced(make_bench(curves=curves), path, value))


def test_what_is_not_finite_is_no_number_but_no_mistake(make_stability):
    record = make_stability()
    record["rows"][0]["barriers"][1].update(height=math.inf, errors=[1.0, math.nan, None, *[2.0] * 8])
    curve = read_evidence(record).rows[0].barriers[1]
    assert math.isnan(curve.height)
    assert [math.isnan(error) for error in curve.errors[:4]] == [False, True, True, False]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "format 2 is not the one"),
        (["kind"], "search", "kind is 'search', not one of verify, stability, bench, bench-curve"),
        (["verdict"], "perhaps", "verdict is 'perhaps', not one of wins, matches, loses, undecided"),
        (["interval"], [1, 0], "interval is not two numbers"),
        (["interval"], [1], "interval is not two numbers"),
        (["networks", 0, "values"], [], r"networks\[0\]\.values is empty"),
        (["networks", 0, "values"], [1, "2"], r"networks\[0\]\.values\[1\] is text, not a number"),
        (["networks", 1, "role"], "<b>", r"networks\[1\]\.role is '<b>'"),
        (["comparisons", 0, "mean"], None, r"comparisons\[0\]\.mean is missing"),
        (["noise", "n"], -1, "noise.n is -1, less than 0"),
        (["reasons"], [1], r"reasons\[0\] is a number, not text"),
        (["density"], 0, "density is 0, which does not lie"),
    ],
)
def test_refuses_a_verification_with_the_place(make_verify, path, value, message):
    with pytest.raises(StoreError, match=message) as caught:
        read_evidence(_replaced(make_verify(), path, value))
    assert str(caught.value).startswith("evidence record: ")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["total_steps"], 0, "total_steps is 0, less than 1"),
        (["rows", 2, "pruning"], [], r"rows\[2\]\.pruning is a list, not an object"),
        (["rows", 2, "pruning", "angle"], "wide", r"rows\[2\]\.pruning\.angle is text"),
        (["rows", 2, "barriers", 0, "errors"], [1.0], r"barriers\[0\]\.errors has 1 numbers for 11 alphas"),
        (["rows", 2, "role"], "ticket", r"rows\[2\] is the second ticket"),
        (["rewinds"], None, "rewinds is missing, not a list"),
    ],
)
def test_refuses_a_study_with_the_place(make_stability, path, value, message):
    with pytest.raises(StoreError, match=message):
        read_evidence(_replaced(make_stability(), path, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shape", [1, 28], "shape is not that of inputs"),
        ("shape", [0, 28, 28], "shape is not that of inputs"),
        ("kind", "colours", "kind is 'colours'"),
        ("data", "####", "data is not base64"),
        ("data", "AAAA", "data is 3 bytes long"),
    ],
)
def test_refuses_a_picture_that_is_none(full_record, key, value, message):
    index = next(index for index, point in enumerate(full_record["points"]) if "first_layer" in point)
    with pytest.raises(StoreError, match=rf"points\[{index}\]\.first_layer\.{message}"):
        read_run(_replaced(full_record, ["points", index, "first_layer", key], value))


def _paths(node, path=()):
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from _paths(child, (*path, key))


_ODD = st.sampled_from([None, "", "x", [], {}, 0, -1, 1, 0.5, 1e300, math.nan, math.inf, True, [1, 2]])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_page_or_is_refused(make_record, make_verify, make_stability, make_bench, data):
    makers = (
        lambda: make_verify(seeds=2),
        lambda: make_stability(replicates=1, levels=(3,)),
        lambda: make_bench(batches=(2,)),
        lambda: make_bench(batches=(2,), curves=True),
    )
    record = data.draw(st.sampled_from(makers))()
    path = data.draw(st.sampled_from(sorted(_paths(record), key=str)))
    record = _replaced(record, path, data.draw(_ODD))
    try:
        subject = subject_of(make_record(levels=0, replicates=1), [record])
    except StoreError:
        return
    render(subject).encode("utf-8")


def test_the_evidence_of_runs_is_found(tmp_path, make_verify, make_stability):
    folder = tmp_path / "evidence"
    assert evidence_of(tmp_path, ["a"]) == []
    folder.mkdir()
    records = {"verify-1": make_verify(), "stability-1": make_stability(), "other": {"kind": "theory", "run": "a"}}
    records["verify-1"]["run"], records["stability-1"]["runs"] = "a", ["b", "c"]
    for name, record in records.items():
        write_sealed(folder / f"{name}.json", record)
    assert evidence_of(tmp_path, ["a"]) == [records["verify-1"]]
    assert evidence_of(tmp_path, ["c", "d"]) == [records["stability-1"]]
    for number, kind in enumerate((["verify"], {}, None, 1.5)):
        write_sealed(folder / f"strange-{number}.json", {**records["verify-1"], "kind": kind})
    assert evidence_of(tmp_path, ["a"]) == [records["verify-1"]]
    assert evidence_of(tmp_path, ["b", "a"]) == [records["stability-1"], records["verify-1"]]
    assert evidence_of(tmp_path, ["d", ""]) == []
    (folder / "broken.json").write_text("{")
    with pytest.raises(StoreError, match="broken"):
        evidence_of(tmp_path, ["a"])


def test_no_run_or_the_same_twice_is_refused(make_record):
    with pytest.raises(UsageError, match="at least one"):
        subject_of([])
    with pytest.raises(UsageError, match="given twice"):
        subject_of([make_record(levels=1), make_record(levels=2)])
