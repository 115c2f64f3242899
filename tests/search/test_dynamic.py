"""Dynamic sparse training as a search: bare PyTorch, what stays constant and what it costs."""

from __future__ import annotations

import importlib
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ticketry as tk
from samples import sample
from search.bare import ADAMW, SEED, SGD, TOTAL, Training, largest
from ticketry.lab.search_result import DYNAMIC, trained_steps
from ticketry.search.dynamic import Settings
from ticketry_engine.support.seeds import generator

METHOD = tk.search.dynamic
ALPHA, EVERY, END = 0.4, 11, 45
STEPS = [11, 22, 33, 44]
POINTS = {"frequency": f"{EVERY}it", "end": f"{END}it", "alpha": ALPHA}


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


def erk_counts(shapes: dict[str, tuple[int, ...]], kept: int) -> dict[str, float]:
    """Weights that each layer keeps where density ~ sum / prod, and none is above 1."""
    full: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in full]
        left = kept - sum(np.prod(shapes[name]) for name in full)
        counts = {name: left * sum(shapes[name]) / sum(sum(shapes[other]) for other in rest) for name in rest}
        over = [name for name in rest if counts[name] >= np.prod(shapes[name])]
        if not over:
            return counts | {name: float(np.prod(shapes[name])) for name in full}
        full.update(over)


def bare(recipe: tk.Recipe, density: float, *, by_gradient: bool, regrow: bool) -> tuple[list[Any], dict[str, Any]]:
    """The mask after each move, the first one included, and the final state."""
    training = Training(tk.task("digits"), recipe)
    shapes = {name: tuple(weight.shape) for name, weight in training.weights.items()}
    wanted = erk_counts(shapes, int(density * sum(np.prod(shape) for shape in shapes.values()) + 0.5))

    def drawn(*names: Any) -> dict[str, torch.Tensor]:
        draws = (generator(SEED, *names, index) for index in range(len(shapes)))
        return {
            n: torch.rand(s, dtype=torch.float64, generator=g) for (n, s), g in zip(shapes.items(), draws, strict=True)
        }

    def best(scores: dict[str, torch.Tensor], among: dict[str, torch.Tensor], counts: dict[str, int]) -> dict[str, Any]:
        return {n: largest({n: scores[n]}, counts[n], {n: among[n]})[n] for n in shapes}

    everywhere = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    masks = [best(drawn("random"), everywhere, {name: round(count) for name, count in wanted.items()})]
    training.cut(masks[0])
    for step in range(TOTAL):
        if step in STEPS:
            training.optimizer.zero_grad()
            training.loss(step).backward()
            share, mask = ALPHA / 2 * (1 + cos(pi * step / END)), masks[-1]
            moved = {name: int(share * int(kept.sum())) for name, kept in mask.items()}
            if not regrow:
                moved = {name: min(count, int((~mask[name]).sum())) for name, count in moved.items()}
            sizes = {name: weight.abs() for name, weight in training.weights.items()}
            left = best(sizes, mask, {name: int(kept.sum()) - moved[name] for name, kept in mask.items()})
            grown = {name: training.parameters[name].grad.abs() for name in shapes}
            grown = best(
                grown if by_gradient else drawn("grow", step),
                {name: ~(left if regrow else mask)[name] for name in shapes},
                moved,
            )
            masks.append({name: left[name] | grown[name] for name in shapes})
            training.cut(masks[-1])
            if by_gradient:
                continue  # as in the paper, such a batch trains nothing
        training.step(step)
    return masks, training.model.state_dict()


@pytest.mark.parametrize(
    ("recipe", "grow", "regrow"),
    sample(
        [(SGD, "gradient", False), (SGD, "random", True), (ADAMW, "gradient", True), (ADAMW, "random", False)],
        1,
        ids=["rigl-sgd", "set-sgd-regrow", "rigl-adamw-regrow", "set-adamw"],
    ),
)
def test_same_masks_and_weights_as_bare_pytorch(shared_store: Path, recipe: tk.Recipe, grow: str, regrow: bool) -> None:
    masks, state = bare(recipe, 0.2, by_gradient=grow == "gradient", regrow=regrow)
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, recipe, density=(0.2,), grow=grow, regrow=regrow)[1]
        mine = [lab.store.get_mask(each.segment.mask) for each in (*ticket.searched, ticket.result)]
        final = lab.state(ticket.result)
    assert mine == [tk.Mask(mask) for mask in masks]
    assert len({mask.digest for mask in mine}) == len(mine), "it moved each time"
    assert mine[-1].digest == lab.store.get_mask(ticket.mask).digest
    assert final.keys() == state.keys()
    assert all(torch.equal(final[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_the_way_is_one_training_at_constant_density(shared_store: Path, grow: str) -> None:
    with tk.Lab(shared_store) as lab:
        dense, ticket = found_by(lab, density=(0.1,), grow=grow)
        chain = [*ticket.searched, ticket.result]
        masks = [lab.store.get_mask(each.segment.mask) for each in chain]
    moved = int(grow == "gradient")
    steps = zip([0, *(step + moved for step in STEPS)], [*STEPS, TOTAL], strict=True)
    assert [(each.segment.first, each.segment.last) for each in chain] == list(steps)
    assert all([row.kept for row in mask.table()] == [row.kept for row in masks[0].table()] for mask in masks)
    assert (ticket.retrain, trained_steps(ticket)) == (DYNAMIC, TOTAL)
    assert ticket.search_steps + ticket.result.segment.steps == TOTAL
    assert ticket.gradients == moved * len(STEPS)
    assert ticket.rewound.segment.steps == dense.rewound.segment.steps == 0
    assert not any(each.metrics for each in chain[:-1]), "states on the way are not measured"


def test_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = TOTAL - len(STEPS)
    with tk.Lab(tmp_path) as lab:
        first = found_by(lab, density=(0.5, 0.2))
        assert lab.ledger.steps_trained == TOTAL + 2 * each
        monkeypatch.setattr(importlib.import_module("ticketry.search.dynamic"), "first_batch_gradient", None)
        again = found_by(lab, density=(0.2, 0.5))
        assert lab.ledger.steps_trained == TOTAL + 2 * each
        assert [item.result.model for item in again] == [item.result.model for item in first]
