"""A stability analysis: its rows against the functions they stand for, and that nothing is done twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.evidence.connectivity import instability, stability
from ticketry.evidence.settings import StabilitySettings as Settings
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.stability import execute_stability
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found
from ticketry.records.schema import as_json
from ticketry.search import method
from ticketry.tasks import catalogue

DIGITS, ITERATIVE = catalogue.get("digits"), method("iterative")
RUN = SearchRequest(
    ITERATIVE,
    DIGITS,
    ITERATIVE.Settings(densities=(0.4, 0.1)),
    DIGITS.recipe.changed(length="20it"),
    replicates=1,
    controls=("random_reinit",),
)
ASKED = Settings(rewinds=("50%", "0"), masks=("shuffled",), points=3, splits=("test", "train"))


@pytest.fixture(scope="module")
def made(lab: Lab) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    record, searches = execute_stability(lab, RUN, ASKED)
    return as_json(record), [as_json(search) for search in searches]


def found_at(lab: Lab, rewind: str) -> list[Found]:
    settings = ITERATIVE.Settings(densities=(0.4, 0.1), rewind=rewind)
    return list(ITERATIVE.search(lab, DIGITS, RUN.recipe, settings, RUN.seeds))


def test_rows_are_complete(made: Any) -> None:
    record, searches = made
    rows = {(row["replicate"], row["step"], row["level"], row["role"]) for row in record["rows"]}
    tickets = {(0, k, level, role) for k in (0, 10) for level in (1, 2) for role in ("ticket", "shuffled")}
    assert rows == tickets | {(0, k, 0, "dense") for k in (0, 10)}
    assert len(rows) == len(record["rows"])
    assert record["rewinds"] == [
        {"asked": "0", "step": 0, "run": searches[0]["run"]},
        {"asked": "50%", "step": 10, "run": searches[1]["run"]},
    ]
    assert all(any(point["role"] == "random_reinit" for point in search["points"]) for search in searches)


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_a_row_is_what_the_functions_say(lab: Lab, made: Any, control: str | None) -> None:
    record, _ = made
    found, seeds = found_at(lab, "50%")[2], RUN.seeds
    wanted = (0, 10, 2, control or "ticket")
    row = next(r for r in record["rows"] if (r["replicate"], r["step"], r["level"], r["role"]) == wanted)
    about = (lab, DIGITS, RUN.recipe, found, seeds)
    apart = stability(*about, control=control)
    assert row["pruning"] == {"l2": apart.pruning.l2, "angle": apart.pruning.angle}
    assert row["data_order"] == {"l2": apart.data_order.l2, "angle": apart.data_order.angle}
    assert [layer["pruning"] for layer in row["layers"]] == [one.l2 for one in apart.pruning.layers.values()]
    for barrier, split in zip(row["barriers"], ("test", "train"), strict=True):
        line = instability(*about, control=control, points=3, split=split)
        assert (barrier["split"], barrier["height"], tuple(barrier["errors"])) == (split, line.height, line.errors)


def test_it_is_done_once(lab: Lab, made: Any) -> None:
    record, _ = made
    cost = record["cost"]
    # The dense network, 2 rewind points of 2 tickets, their second orders, their shuffled masks
    # with second orders, their random initialisations with (at step 10) fresh starts, and the dense network's second
    # orders from 2 steps. At step 0 a fresh start of no steps is trained by nobody.
    assert cost["segments_trained"] == 1 + 4 + 4 + 8 + 4 + 1 + 2
    assert cost["segments_trained"] < 0.6 * cost["segments_asked"]
    before = lab.ledger.segments_trained
    again, _ = execute_stability(lab, RUN, ASKED)
    assert as_json(again) == record
    assert lab.ledger.segments_trained == before


def test_only_some_densities(lab: Lab) -> None:
    settings = Settings(rewinds=("0",), at=(0.1,), masks=("none",), points=0, dense=False, layers=False)
    record, _ = execute_stability(lab, RUN, settings)
    rows = as_json(record)["rows"]
    assert {(row["level"], row["role"]) for row in rows} == {(2, "ticket")}
    assert rows[0]["barriers"] == []
    assert "layers" not in rows[0]
    nearly = replace(settings, at=(0.1015,))  # copied off a table, as 10.2 %
    assert [row.level for row in execute_stability(lab, RUN, nearly)[0].rows] == [2]


def test_wrong_settings_are_told() -> None:
    for settings, told in (
        ({"masks": ("random_reinit",)}, "random_reinit changes the weights"),
        ({"masks": ("best",)}, "control 'best' is not known"),
        ({"rewinds": ("soon",)}, "'soon' is not a point in training"),
        ({"rewinds": ()}, "names no rewind step"),
    ):
        with pytest.raises(UsageError, match=told):
            Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "more", "told"),
    [
        ({"at": (0.2,)}, {}, "the search has no tickets of density 0.2: it has 0.4, 0.1"),
        (
            {"rewinds": ("50%",)},
            {"retrain": "restart"},
            r"from rewind 50% they are trained otherwise \(retrain restart\)",
        ),
        ({"rewinds": ("0", "end")}, {}, r"from rewind end they are trained otherwise \(retrain finetune\)"),
    ],
)
def test_what_could_not_be_told_is_refused_before_the_search(
    lab: Lab, settings: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    run = replace(RUN, settings=replace(RUN.settings, rate=0.9, **more))
    before = lab.ledger.copy()
    with pytest.raises(UsageError, match=told):
        execute_stability(lab, run, Settings(**{"rewinds": ("0",), **settings}))
    assert lab.ledger.since(before).segments_trained == 0
