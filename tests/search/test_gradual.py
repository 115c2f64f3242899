"""Gradual pruning as a search: bare PyTorch, what is shared and what it costs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from samples import sample
from search.bare import ADAMW, SEED, SGD, TOTAL, Training, largest
from ticketry.lab.search_result import GRADUAL, trained_steps
from ticketry.lab.training.segment import Start
from ticketry.search.gradual import Settings

METHOD = tk.search.gradual
BEGIN, END, EVERY = 7, 40, 11
STEPS = [18, 29, 40]
POINTS = {"begin": f"{BEGIN}it", "end": f"{END}it", "frequency": f"{EVERY}it"}


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


def bare(recipe: tk.Recipe, density: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Mask and final state."""
    training = Training(tk.task("digits"), recipe)
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in training.weights.items()}
    total = sum(kept.numel() for kept in mask.values())
    for step in range(TOTAL):
        if step in STEPS:
            share = density + (1 - density) * (1 - (step - BEGIN) / (END - BEGIN)) ** 3
            sizes = {name: weight.abs() for name, weight in training.weights.items()}
            mask = largest(sizes, int(share * total + 0.5), mask)
            training.cut(mask)
        training.step(step)
    return mask, training.model.state_dict()


@pytest.mark.parametrize("recipe", sample([SGD, ADAMW], 1, ids=["sgd", "adamw"]))
def test_same_mask_and_weights_as_bare_pytorch(tmp_path: Path, recipe: tk.Recipe) -> None:
    """Momentum goes on over the cuts, but for that of the weights that go: an optimiser begun anew gives other bits."""
    mask, state = bare(recipe, 0.1)
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, recipe, density=(0.1,))[1]
        assert lab.store.get_mask(ticket.mask) == tk.Mask(mask)
        assert not any(each.metrics for each in ticket.searched), "states on the way are not measured"
        mine = lab.state(ticket.result)
        without = lab.segment(
            tk.task("digits"),
            start=Start(state=ticket.searched[-1].model),
            mask=ticket.mask,
            first=END,
            order_seed=SEED,
            recipe=recipe,
        )
        fresh = lab.state(lab.train(without))
    assert mine.keys() == state.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in state.items())
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in state.items())
    assert [(each.segment.first, each.segment.last) for each in ticket.searched] == list(pairwise([0, *STEPS]))
    assert (ticket.retrain, trained_steps(ticket), ticket.search_steps) == (GRADUAL, TOTAL, END)
