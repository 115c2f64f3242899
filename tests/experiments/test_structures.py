"""Runs whose tickets have a structure, found in it or given it afterwards: rows, controls, tickets, verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from lab_fixtures import stored_segments
from ticketry.core.structure import coverage, groups, shrink_plan
from ticketry.core.structure.pattern import Pattern
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.records.schema import as_json
from ticketry.search import method

CONTROLS = ("random_reinit", "shuffled", "random_prune")
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length="20it")


def run_of(name: str = "iterative", controls: tuple[str, ...] = CONTROLS, **settings: Any) -> SearchRequest:
    if name == "iterative":
        settings = {"densities": (0.5, 0.3), "rewind": "3it", **settings}
    chosen = method(name)
    return SearchRequest(chosen, TASK, chosen.Settings(**settings), RECIPE, replicates=1, controls=controls)


def searched(lab: tk.Lab, request: SearchRequest) -> list[dict[str, Any]]:
    return as_json(execute(lab, request))["points"]


def masks_of(lab: tk.Lab, rows: list[dict[str, Any]]) -> dict[str, tk.Mask]:
    """Return the masks of the last level, by role."""
    level = max(row["level"] for row in rows)
    last = [row for row in rows if row["level"] == level]
    segments = {row["role"]: stored_segments(lab, TASK, row["key"])[0] for row in last}
    return {role: lab.store.get_mask(str(segment.mask)) for role, segment in segments.items()}


def verified(lab: tk.Lab, rows: list[dict[str, Any]], **settings: Any) -> tuple[tk.Ticket, list[Any]]:
    """Verify the last ticket; return it, and the segments that this asked for."""
    path = [row["ticket"] for row in rows if row["role"] == "ticket"][-1]
    ticket, asked = tk.Ticket.load(path), len(lab.ledger.keys)
    chosen = tk.evidence.VerifySettings(**{"seeds": 2, "noise": False, "references": False, **settings})
    assert tk.evidence.verify(lab, ticket, chosen).verdict.outcome in ("wins", "matches", "loses", "undecided")
    return ticket, stored_segments(lab, TASK, *dict.fromkeys(lab.ledger.keys[asked:]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("iterative", {"densities": (0.3,), "rewind": "3it"}),
        pytest.param(
            *("gradual", {"density": (0.3,), "begin": "5it", "end": "10it", "frequency": "5it"}), marks=pytest.mark.slow
        ),
        pytest.param(*("continuous", {"rounds": 1, "rewind": "3it", "gate_lr": 10.0}), marks=pytest.mark.slow),
    ],
)
def test_controls_have_the_pattern_of_their_ticket(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """Single weights in random places would win or lose for that alone."""
    run = run_of(name, structure="rows:4", **settings)
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run)
        masks = masks_of(lab, points)
    rows = {row["role"]: row for row in points}
    for role, mask in masks.items():
        for weight, kept in mask.items():
            Pattern.parse("4x1").blocks(tuple(kept.shape)).retained_blocks(kept, weight)  # raises for half ones
        assert (mask.density, mask.kept) == (rows[role]["density"], rows[role]["kept"])
    assert masks["random_reinit"] == masks["ticket"]
    assert [row.kept for row in masks["shuffled"].table()] == [row.kept for row in masks["ticket"].table()]
    assert masks["shuffled"] != masks["ticket"]
    assert masks["random_prune"].density == pytest.approx(masks["ticket"].density, abs=0.001)
    assert masks["random_prune"].overlap(masks["ticket"]) < masks["ticket"].density + 0.15
    ticket = tk.Ticket.load(rows["ticket"]["ticket"])
    assert ticket.info["settings"]["structure"] == "rows:4"
    assert ticket.mask == masks["ticket"]


def test_tickets_of_a_pattern_are_verified_by_masks_of_the_pattern(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run_of(controls=(), densities=(0.5,), structure="search:2:4"))
        _, segments = verified(lab, points, controls=("shuffled", "random_prune"))
        masks = [lab.store.get_mask(digest) for digest in {one.mask for one in segments} - {None}]
    assert len(masks) >= 5  # the ticket's, and two controls from two seeds
    for mask in masks:
        for kept in mask.values():
            inputs = torch.nn.functional.pad(kept.int(), (0, -kept.shape[1] % 4)).unflatten(1, (-1, 4))
            assert inputs.sum(2).max() <= 2


@pytest.mark.slow
def test_tickets_with_channels_are_verified_as_they_were_trained(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run_of(controls=(), densities=(0.5,), structure="channels", score="l1"))
        _, segments = verified(lab, points, controls=("shuffled",))
    assert sum(one.whole_channels for one in segments) == 4, "the ticket and a control from two seeds"


def test_controls_of_channels_have_channels_too(tmp_path: Path) -> None:
    controls, channels = (*CONTROLS, "cyclic"), {"structure": "channels", "score": "l1"}
    run = run_of("early", controls, density=(0.3,), every="3it", latest="9it", iterations=1, **channels)
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run)
        assert searched(lab, run) == points
        rows = {row["role"]: row for row in points}
        for role in ("ticket", *controls):
            (segment,) = stored_segments(lab, TASK, rows[role]["key"])
            assert segment.whole_channels, role
            mask = lab.store.get_mask(str(segment.mask))
            assert (mask.density, mask.kept) == (rows[role]["density"], rows[role]["kept"])
            shrink_plan(lab.model(TASK), mask, torch.randn(2, 1, 8, 8))
        same = {role: stored_segments(lab, TASK, rows[role]["key"])[0].mask for role in rows if role != "dense"}
    assert same["ticket"] == same["random_reinit"] == same["cyclic"]
    assert len({same["ticket"], same["shuffled"], same["random_prune"]}) == 3
    moment = rows["ticket"]["moment"]
    assert set(moment) == {"step", "detected", "detector", "threshold", "looks", "seconds"}
    assert [step for step, _ in moment["looks"]] == list(range(3, moment["step"] + 1, 3))
    assert "moment" not in rows["shuffled"]
    ticket = tk.Ticket.load(rows["ticket"]["ticket"])
    assert not ticket.apply(TASK.build(), "trained").fc1.bias[~ticket.mask["fc1.bias"]].any()
    assert ticket.info["segment"]["shrunk"]


def test_rows_tell_the_structure(tmp_path: Path) -> None:
    run = run_of(controls=(), structure="regroup:4")
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run)
        plain = as_json(execute(lab, run_of(controls=())))
        assert plain["cost"]["segments_trained"] == 1, "of the chain only the last level was not trained"
        assert searched(lab, run) == points
        structured, unstructured = (
            [row for row in each if row["role"] == "ticket"] for each in (points, plain["points"])
        )
        for row, other in zip(structured, unstructured, strict=True):
            told = row["structure"]
            assert (told["kind"], told["rows"], told["method"]) == ("regroup", 4, "similarity")
            assert told["density_before"] == other["density"]
            ticket, before = tk.Ticket.load(row["ticket"]), tk.Ticket.load(other["ticket"])
            trajectory, _, last = (points[0] if row["level"] == 1 else unstructured[0])["key"].partition("@")
            model = TASK.build()
            model.load_state_dict(lab.store.get_tensors(lab.store.load_result(trajectory, int(last))["model"]))  # type: ignore[index]
            fits = coverage(model, before.mask, ticket.mask)
            assert [layer["name"] for layer in told["layers"]] == [*fits, "all layers"]
            assert told["layers"][:-1] == [fit.as_json() for fit in fits.values()]
            assert ticket.info["structure"] == {name: told[name] for name in told if name != "pictures"}
            assert row["cost"]["search"]["steps"] == sum(one["steps"] for one in unstructured[: row["level"] - 1])


def test_controls_have_the_groups_of_their_ticket(tmp_path: Path) -> None:
    """A plain shuffle would take the groups apart, and lose for that alone."""
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run_of(structure="regroup:4"))
        masks = masks_of(lab, points)
        ticket, segments = verified(lab, points, seeds=1, controls=("shuffled",))
        drawn = [lab.store.get_mask(one.mask) for one in segments if one.mask not in (None, ticket.mask.digest)]
    assert masks["random_reinit"] == masks["ticket"] == ticket.mask
    shapes = {
        role: {name: sorted((len(group.rows), group.width) for group in found) for name, found in groups(mask).items()}
        for role, mask in {**masks, "fresh": drawn[0]}.items()
    }
    assert shapes["shuffled"] == shapes["ticket"]
    assert [[rows for rows, _ in one] for one in shapes["fresh"].values()] == [
        [rows for rows, _ in one] for one in shapes["ticket"].values()
    ]
    assert shapes["random_prune"] != shapes["ticket"]
    assert len({masks[role] for role in ("ticket", "shuffled", "random_prune")}) == 3
    for sizes in shapes["random_prune"].values():
        assert {rows for rows, _ in sizes} <= {4, 2}
    assert abs(masks["random_prune"].kept - masks["ticket"].kept) < 4


@pytest.mark.slow
def test_controls_of_two_of_four(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        masks = masks_of(lab, searched(lab, run_of(structure="2:4")))
    assert len({masks[role] for role in ("ticket", "shuffled", "random_prune")}) == 3
    for name, kept in masks["ticket"].items():
        whole = kept.shape[1] // 4 * 4
        for role in ("shuffled", "random_prune"):
            counts = [each[:, :whole].reshape(len(each), -1, 4).sum(2) for each in (kept, masks[role][name])]
            assert torch.equal(*counts)


def test_refilled_channels_are_controlled_by_channels(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        points = searched(lab, run_of(densities=(0.5,), structure="refill+:0.3"))
        for row in points:
            if row["level"]:
                assert [segment.whole_channels for segment in stored_segments(lab, TASK, row["key"])] == [True]
    told = next(row["structure"] for row in points if row["role"] == "ticket")
    assert (told["kind"], told["plus"], told["score"]) == ("refill+", 0.3, "l1")
    assert "rows" not in told


def test_names_of_runs_are_older_than_structures() -> None:
    plain = run_of("oneshot", structure="none", score="magnitude")
    told = plain.identity()["settings"]
    later = {"structured", "when", "structure", "plus", "rows", "regroup_method", "refill_score", "refill_coupled"}
    assert not later & set(told)
    assert plain.describe()["settings"]["structure"] == "none"
    assert run_of("oneshot", structure="channels", score="l1").identity()["settings"]["structured"] is True
    assert run_of(structure="regroup").identity()["settings"]["structure"] == "regroup"
    assert "when" in run_of("oneshot", when="0").identity()["settings"]
