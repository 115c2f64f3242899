"""Runs whose tickets are given a structure after their masks were found: rows, controls, tickets, verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from stored_segments import stored_segments
from ticketry.core.structure import coverage, groups
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.search_result import Seeds
from ticketry.records.schema import as_json
from ticketry.search import method
from ticketry.tasks.task import Task

CONTROLS = ("random_reinit", "shuffled", "random_prune")


@pytest.fixture(scope="module")
def task() -> Task:
    return tk.task("digits")


def run_of(task: Task, controls: tuple[str, ...] = CONTROLS, **settings: Any) -> SearchRequest:
    search = method("iterative")
    return SearchRequest(
        method=search,
        task=task,
        settings=search.Settings(**{"densities": (0.5, 0.3), "rewind": "3it", **settings}),
        recipe=task.recipe.changed(length="20it"),
        replicates=1,
        seeds=Seeds(),
        controls=controls,
    )


def place(key: str) -> tuple[str, int]:
    trajectory, _, last = key.partition("@")
    return trajectory, int(last)


def masks_of(lab: tk.Lab, rows: list[dict[str, Any]]) -> dict[str, tk.Mask]:
    """Of the last level, by role."""
    level = max(row["level"] for row in rows)
    found = {}
    for row in rows:
        if row["level"] == level:
            (segment,) = stored_segments(lab, tk.task("digits"), row["key"])
            found[row["role"]] = lab.store.get_mask(str(segment.mask))
    return found


def test_rows_tell_the_structure(tmp_path: Path, task: Task) -> None:
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run_of(task, (), structure="regroup:4")))
        plain = as_json(execute(lab, run_of(task, ())))
        assert plain["cost"]["segments_trained"] == 1, "of the chain only the last level was not trained"
        structured, unstructured = (
            [row for row in each["points"] if row["role"] == "ticket"] for each in (record, plain)
        )
        for row, other in zip(structured, unstructured, strict=True):
            told = row["structure"]
            assert (told["kind"], told["rows"], told["method"]) == ("regroup", 4, "similarity")
            assert told["density_before"] == other["density"]
            ticket, before = tk.Ticket.load(row["ticket"]), tk.Ticket.load(other["ticket"])
            weights = record["points"][0]["key"] if row["level"] == 1 else unstructured[0]["key"]
            model = task.build()
            model.load_state_dict(lab.store.get_tensors(lab.store.result(*place(weights))["model"]))  # type: ignore[index]
            fits = coverage(model, before.mask, ticket.mask)
            assert [layer["name"] for layer in told["layers"]] == [*fits, "all layers"]
            assert told["layers"][:-1] == [fit.as_json() for fit in fits.values()]
            assert ticket.info["structure"] == {name: told[name] for name in told if name != "pictures"}
            assert row["cost"]["search"]["steps"] == sum(one["steps"] for one in unstructured[: row["level"] - 1])
        assert as_json(execute(lab, run_of(task, (), structure="regroup:4")))["points"] == record["points"]


def test_controls_have_the_ticket_s_structure(tmp_path: Path, task: Task) -> None:
    """A plain shuffle would take the groups apart, and lose for that alone."""
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run_of(task, structure="regroup:4")))
        masks = masks_of(lab, record["points"])
    assert masks["random_reinit"] == masks["ticket"]
    shapes = {
        role: {name: sorted((len(group.rows), group.width) for group in found) for name, found in groups(mask).items()}
        for role, mask in masks.items()
    }
    assert shapes["shuffled"] == shapes["ticket"]
    assert shapes["random_prune"] != shapes["ticket"]
    assert len({masks[role] for role in ("ticket", "shuffled", "random_prune")}) == 3
    for sizes in shapes["random_prune"].values():
        assert {rows for rows, _ in sizes} <= {4, 2}
    assert abs(masks["random_prune"].kept - masks["ticket"].kept) < 4


def test_controls_of_two_of_four(tmp_path: Path, task: Task) -> None:
    with tk.Lab(tmp_path) as lab:
        masks = masks_of(lab, as_json(execute(lab, run_of(task, structure="2:4")))["points"])
    assert len({masks[role] for role in ("ticket", "shuffled", "random_prune")}) == 3
    for name, kept in masks["ticket"].items():
        whole = kept.shape[1] // 4 * 4
        for role in ("shuffled", "random_prune"):
            counts = [each[:, :whole].reshape(len(each), -1, 4).sum(2) for each in (kept, masks[role][name])]
            assert torch.equal(*counts)


def test_channels_are_controlled_by_channels(tmp_path: Path, task: Task) -> None:
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run_of(task, structure="refill+:0.3")))
        for row in record["points"]:
            if row["level"]:
                assert [segment.whole_channels for segment in stored_segments(lab, task, row["key"])] == [True]
    told = next(row["structure"] for row in record["points"] if row["role"] == "ticket")
    assert (told["kind"], told["plus"], told["score"]) == ("refill+", 0.3, "l1")
    assert "rows" not in told


def test_verified_by_controls_of_its_structure(tmp_path: Path, task: Task) -> None:
    with tk.Lab(tmp_path) as lab:
        record = as_json(execute(lab, run_of(task, (), structure="regroup:4")))
        path = next(row["ticket"] for row in record["points"] if row["level"] == 2)
        ticket, asked = tk.Ticket.load(path), len(lab.ledger.keys)
        tk.evidence.verify(
            lab, ticket, tk.evidence.VerifySettings(seeds=1, noise=False, references=False, controls=("shuffled",))
        )
        held = [segment.mask for segment in stored_segments(lab, task, *lab.ledger.keys[asked:])]
        others = [lab.store.get_mask(mask) for mask in held if mask not in (None, ticket.mask.digest)]
    other = next(mask for mask in others if mask != ticket.mask)
    own, drawn = groups(ticket.mask), groups(other)
    for name in own:
        assert sorted(len(group.rows) for group in drawn[name]) == sorted(len(group.rows) for group in own[name])


def test_names_of_runs_are_older_than_structure(task: Task) -> None:
    plain = run_of(task).identity()["settings"]
    assert not {"structure", "plus", "rows", "regroup_method", "refill_score", "refill_coupled"} & set(plain)
    assert run_of(task, structure="regroup").identity()["settings"]["structure"] == "regroup"
