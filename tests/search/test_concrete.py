"""Concrete Ticket Search: exact densities, frozen weights, what it costs, and that its tickets win."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import ticketry as tk
from lab_fixtures import Lines
from ticketry.core.structure.pattern import count_retained
from ticketry.errors import LayerCollapseError, TaskError
from ticketry.evidence.controls import train_control
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.search import concrete
from ticketry.search.gating.gating import Gating

CONCRETE: Any = tk.search.concrete
TOTAL = 60
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10


def found_by(lab: Lab, seeds: Seeds | None = None, length: str = f"{TOTAL}it", **settings: Any) -> list[Found]:
    task = tk.task("digits")
    chosen = concrete.Settings(**{"rewind": "10%", "density": (0.1,), "mask_length": "24it", **settings})
    return list(CONCRETE.search(lab, task, task.recipe.changed(length=length), chosen, seeds or Seeds()))


@pytest.mark.parametrize("density", [0.12345, 0.009])
def test_the_density_is_met_to_the_element(shared_store: Path, density: float) -> None:
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, density=(density,), length="30it", mask_length="30it")[1]
        mask = lab.store.get_mask(ticket.mask)
    assert (mask.kept, mask.total) == (count_retained(density, WEIGHTS), WEIGHTS)
    assert all(row.kept for row in mask.table())


@pytest.mark.slow
def test_weights_are_frozen_and_the_ticket_starts_from_them(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        dense, ticket = found_by(lab, rewind="10%")
        early = lab.at(dense.result, TOTAL // 10)
        trained = ticket.searched[-1]
        assert ticket.rewound.model == early.model
        assert trained.segment.start.state == early.model
        assert trained.model == early.model  # by digest: not a bit differs after the search
        assert ticket.result.segment.start.state == early.model
        assert (ticket.result.segment.first, ticket.result.segment.last) == (TOTAL // 10, TOTAL)
        gates = lab.store.get_tensors(trained.variants["gates"])
        assert (
            float(torch.cat([gates[f"s/{name}"].flatten() for name in trained.segment.variant(Gating).scope]).std())
            > 0.1
        )


@pytest.mark.slow
def test_tickets_beat_random_and_shuffled_masks(shared_store: Path) -> None:
    """At 2 %, over three seeds, at the built-in recipe's length; and the divergence falls."""
    task = tk.task("digits")
    values: dict[str, list[float]] = {"ticket": [], "shuffled": [], "random_prune": []}
    with tk.Lab(shared_store) as lab:
        for number in range(3):
            seeds = Seeds.of(number)
            ticket = list(CONCRETE.search(lab, task, task.recipe, concrete.Settings(density=(0.02,)), seeds))[1]
            values["ticket"].append(ticket.result.metrics["test"]["accuracy"])
            for control in ("shuffled", "random_prune"):
                result = train_control(lab, task, task.recipe, control, ticket, seeds)
                values[control].append(result.metrics["test"]["accuracy"])
            losses = [loss for _, loss in ticket.searched[-1].record["loss"]]
            assert fmean(losses[-10:]) < 0.75 * fmean(losses[:10])
            assert ticket.searched[-1].record["gating"]["soft_density"] == pytest.approx(0.022, rel=0.1)
    means = {role: fmean(found) for role, found in values.items()}
    assert means["ticket"] > means["shuffled"] + 4, values
    assert means["ticket"] > means["random_prune"] + 20, values
    assert min(values["ticket"]) > 85


def test_a_layer_that_comes_out_empty_is_named(tmp_path: Path) -> None:
    """Five weights, and none of the small output layer among the best."""
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError, match=r"fc\d\.weight.*mask training"):
        found_by(lab, density=(0.0001,), length="20it", mask_length="1it")
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, density=(0.0001,), length="20it", mask_length="1it", collapse="keep")[1]
        assert sorted(row.kept for row in lab.store.get_mask(ticket.mask).table())[0] == 1


def test_a_regression_needs_its_own_loss(tmp_path: Path) -> None:
    task = Lines()
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(TaskError, match="--objective loss"):
            list(CONCRETE.search(lab, task, task.recipe, concrete.Settings(), Seeds()))
        assert lab.ledger.segments_asked == 0
        settings = concrete.Settings(density=(0.5,), objective="loss")
        found = list(CONCRETE.search(lab, task, task.recipe, settings, Seeds()))
        assert lab.store.get_mask(found[1].mask).density == 0.5


@pytest.mark.slow
def test_side_by_side_as_one_by_one(tmp_path: Path) -> None:
    with tk.Lab(tmp_path / "together", workers=2) as lab:
        together = found_by(lab, density=(0.05, 0.2))
        assert lab.ledger.steps_trained == TOTAL + 2 * 24 + 2 * (TOTAL - TOTAL // 10)
    single = []
    for density in (0.2, 0.05):
        with tk.Lab(tmp_path / str(density)) as lab:
            single += found_by(lab, density=(density,))[1:]
    bits = [[(item.mask, item.result.model) for item in found] for found in (together[1:], single)]
    assert bits[0] == bits[1]
    assert [item.level for item in together] == [0, 1, 2]
