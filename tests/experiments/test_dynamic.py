"""What runs of dynamic sparse training and of AC/DC cost, their tickets, and their controls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.records.schema import as_json

TOTAL = 60
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{TOTAL}it")
MOVES, FIRST, LAST = 3, 10, 40
SETTINGS = {
    "dynamic": tk.search.dynamic.Settings(density=(0.5, 0.2), frequency="10it", end="35it"),
    "acdc": tk.search.acdc.Settings(density=(0.5, 0.2), warmup=f"{FIRST}it", phase="10it", end=f"{LAST}it"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with tk.Lab(tmp_path_factory.mktemp("store")) as found:
        yield found


def made(lab: tk.Lab, name: str) -> dict[str, Any]:
    controls = ("random_reinit", "shuffled")
    return as_json(
        execute(
            lab, SearchRequest(tk.search.method(name), TASK, SETTINGS[name], RECIPE, replicates=2, controls=controls)
        )
    )


def rows(record: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [point for point in record["points"] if point["role"] == role]


@pytest.mark.slow
def test_controls_of_a_mask_that_moved_hold_one_from_the_first_step(lab: tk.Lab) -> None:
    record = made(lab, "dynamic")
    for role, own in (("shuffled", True), ("random_reinit", False)):
        for point in rows(record, role):
            segment = lab.store.result(*_key(point["key"]))["segment"]
            assert (segment["first"], segment["last"], segment["start"]["optimizer"]) == (0, TOTAL, None)
            begun = lab.store.get_tensors(segment["start"]["state"])
            seed = point["replicate"] if own else None
            fresh = lab.state(lab.train(lab.segment(TASK, start=point["replicate"], last=0), measure=False))
            same = all(torch.equal(begun[name], fresh[name]) for name in fresh)
            assert same == (seed is not None)


def test_acdc_costs_one_training_a_density(lab: tk.Lab) -> None:
    record = made(lab, "acdc")
    cost, own = record["cost"], TOTAL - FIRST
    assert cost["search_steps_per_replicate"] == FIRST + 2 * own  # the warm-up is the dense network's
    first = [point for point in rows(record, "ticket") if point["replicate"] == 0]
    assert [(p["search_steps"], p["steps"], p["budget"]) for p in first] == [(LAST, TOTAL - LAST, TOTAL)] * 2
    for control in ("random_reinit", "shuffled"):
        assert {(point["steps"], point["budget"]) for point in rows(record, control)} == {(TOTAL - LAST, TOTAL)}
    saved = tk.Ticket.load(first[1]["ticket"])
    assert (saved.info["rewind_step"], saved.info["search_steps"]) == (LAST, TOTAL)
    segment = lab.store.result(*_key(rows(record, "shuffled")[0]["key"]))["segment"]
    start = lab.store.get_tensors(segment["start"]["state"])
    nonzero = sum(int((start[name] != 0).sum()) for name in saved.mask)
    assert nonzero > 0.5 * saved.mask.total, "they go on from a network of which all is trained (some pixels are dark)"


def _key(key: str) -> tuple[str, int]:
    trajectory, _, step = key.partition("@")
    return trajectory, int(step)
