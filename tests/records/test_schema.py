"""Records are written by the classes that read them: nothing is lost on the way, and what is wrong is named."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from made_records import bench_record, plain_record, search_record, structured_record, with_pictures, with_rounds
from ticketry.errors import StoreError
from ticketry.records.evidence import read_evidence
from ticketry.records.network import LayerDensity as Layer
from ticketry.records.network import Moment
from ticketry.records.run import read_run
from ticketry.records.schema import as_json, read
from ticketry.records.structure import StructureRecord


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


def test_what_is_not_finite_is_written_as_it_was(make_stability: Any) -> None:
    record = make_stability(replicates=1)
    record["rows"][0]["barriers"][0].update(height=math.inf, errors=[None, *[1.0] * 10])
    barrier = as_json(read_evidence(record))["rows"][0]["barriers"][0]
    assert (barrier["height"], barrier["errors"][0]) == (math.inf, None)


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
        ({"name": "a", "kept": 3, "total": 2}, "x: kept is more than the layer's total"),
        ({"name": "a", "kept": True, "total": 2}, "x: kept is a truth value, not a whole number"),
        ({"name": "a", "kept": 1.0, "total": 2}, "x: kept is a number, not a whole number"),
        ({"name": "a", "kept": 1, "total": 10**30}, r"x: total is more than 1e\+18"),
        ({"name": "a", "kept": 1, "total": 0}, "x: total is 0, less than 1"),
        ({"name": "a", "kept": 1, "total": 2, "shape": [1, -1]}, r"x: shape\[1\] is -1, less than 0"),
        ([], "x: the whole is a list, not an object"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_json(value: Any, message: str) -> None:
    with pytest.raises(StoreError, match=f"^{message}"):
        read(Layer, value, what="x", advice="y")


def test_a_record_of_another_version_is_told(make_verify: Any) -> None:
    for record, reader in ((search_record(levels=0), read_run), (make_verify(), read_evidence)):
        with pytest.raises(StoreError, match=r"format 7 is not the one this ticketry reads \(1\): install the version"):
            reader({**record, "format": 7})


def test_looks_without_a_value_are_nan() -> None:
    made = read(
        Moment,
        {"step": 4, "detected": True, "detector": "masks", "threshold": 0.1, "looks": [[2, None], [4, 0.05]]},
        what="x",
        advice="y",
    )
    assert math.isnan(made.looks[0][1])
    assert as_json(made)["looks"] == [[2, None], [4, 0.05]]


def test_a_structure_tells_the_options_of_its_kind_alone() -> None:
    told = {"kind": "regroup", "rows": 4, "density": None, "name": "regroup, 4 rows", "density_before": 0.1}
    record = {
        "format": 1, "kind": "structure", "ticket": "a", "path": "b", "task": "t", "model": "m", "weights": "start",
        "density": 0.1, "kept": 1, "prunable": 10, "parameters": 12, "seconds": 0.1, "structure": told, "command": "c",
    }  # fmt: skip
    made = read(StructureRecord, copy.deepcopy(record), what="x", advice="y")
    assert as_json(made) == record
