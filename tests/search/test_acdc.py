"""AC/DC as a search: bare PyTorch, phases and what they cost."""

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
from ticketry.search.acdc import Settings

METHOD = tk.search.acdc
COMPRESSED, DECOMPRESSED = [6, 20, 45], [13, 27]
POINTS = {"warmup": "6it", "phase": "7it", "end": "45it"}
ADAMW = ADAMW.changed(lr=2e-2)


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


def bare(recipe: tk.Recipe, density: float) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The mask of each compressed phase, and the final state."""
    training, masks = Training(tk.task("digits"), recipe), []
    for step in range(TOTAL):
        if step in COMPRESSED:
            sizes = {name: weight.abs() for name, weight in training.weights.items()}
            masks.append(largest(sizes, int(density * sum(one.numel() for one in sizes.values()) + 0.5)))
            training.cut(masks[-1])
        if step in DECOMPRESSED:
            training.mask = {}
            training.begin_optimizer()
        training.step(step)
    return masks, training.model.state_dict()


@pytest.mark.parametrize("recipe", sample([SGD, ADAMW], 1, ids=["sgd", "adamw"]))
def test_same_masks_and_weights_as_bare_pytorch(tmp_path: Path, recipe: tk.Recipe) -> None:
    masks, state = bare(recipe, 0.1)
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, recipe, density=(0.1,))[1]
        held = [each.segment.mask for each in (*ticket.searched, ticket.result) if each.segment.mask]
        mine = [lab.store.get_mask(digest) for digest in held]
        final = lab.state(ticket.result)
    assert held[-1] == ticket.mask
    turns = sorted([0, *COMPRESSED, *DECOMPRESSED])
    assert [(each.segment.first, each.segment.last) for each in ticket.searched] == list(pairwise(turns))
    assert ticket.rewound == ticket.searched[-1]
    assert (ticket.retrain, trained_steps(ticket)) == (GRADUAL, TOTAL)
    assert not any(each.metrics for each in ticket.searched), "states on the way are not measured"
    assert mine == [tk.Mask(mask) for mask in masks]
    assert any(not later <= earlier for earlier, later in pairwise(mine)), "removed weights come back"
    assert final.keys() == state.keys()
    assert all(torch.equal(final[name], tensor) for name, tensor in state.items())
