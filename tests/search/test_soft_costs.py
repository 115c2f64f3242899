"""Trainings with penalties, ticks and gates are search: what a run's record tells of them adds up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.records.schema import as_json

sys.path.insert(0, str(Path(__file__).parent))
from norms_task import NormsTask

TOTAL = 40


@pytest.mark.parametrize(
    ("name", "settings", "dense", "search"),
    [
        ("regularised", {"penalty": "l1_scales", "until": "50%"}, 0, 20),
        pytest.param(*("l0", {"until": "50%"}, 0, 20), marks=pytest.mark.slow),
        # Dense to the first tick at 10; two ticks of 2 steps and the tock between them; its own from the last cut on.
        ("decorators", {"rounds": 2, "tick": "2it", "begin": "10it", "end": "30it"}, 10, 20),
    ],
)
def test_steps_and_flops_add_up(tmp_path: Path, name: str, settings: dict[str, Any], dense: int, search: int) -> None:
    task, method = NormsTask(), tk.search.method(name)
    recipe = task.recipe.changed(length=f"{TOTAL}it")
    own = TOTAL - dense - search
    with Lab(tmp_path, device="cpu") as lab:
        run = SearchRequest(
            method, task, method.Settings(**settings, density=(0.5,)), recipe, 1, controls=("shuffled",)
        )
        record = as_json(execute(lab, run))
    whole, ticket, control = (
        next(row["cost"] for row in record["points"] if row["role"] == role) for role in ("dense", "ticket", "shuffled")
    )
    phases = ("dense", "search", "sparse")
    assert [ticket[phase]["steps"] for phase in phases] == [dense, search, own]
    assert whole["dense"]["steps"] == TOTAL
    step = whole["dense"]["flops"] / TOTAL
    assert ticket["dense"]["flops"] == pytest.approx(dense * step)
    assert 0 < ticket["search"]["flops"] <= search * step * (1 + 1e-9)
    assert 0 < ticket["sparse"]["flops"] < own * step
    assert all(ticket[phase]["memory"] for phase in ("search", "sparse"))
    # A control goes on from the weights at the last cut: of decorators, the dense network's at step 30.
    begun = 30 if name == "decorators" else 0
    assert [control[phase]["steps"] for phase in phases] == [begun, search, own]
