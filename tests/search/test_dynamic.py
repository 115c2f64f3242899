"""Dynamic sparse training as a search: the contract, bare PyTorch, what stays constant and what it costs."""

from __future__ import annotations

import importlib
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import ticketry as tk
from samples import sample
from ticketry.errors import LayerCollapseError, TicketryError, UsageError
from ticketry.lab.search_result import DYNAMIC, budget
from ticketry.search.dynamic import Settings
from ticketry.testing import check_search
from ticketry_engine.support.seeds import generator, mix

METHOD = tk.search.dynamic
TOTAL, BATCH, SEED, ALPHA = 57, 64, 3, 0.4
EVERY, END = 11, 45
STEPS = [11, 22, 33, 44]
POINTS = {"frequency": f"{EVERY}it", "end": f"{END}it", "alpha": ALPHA}
SGD = tk.Recipe(
    length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ADAMW = SGD.changed(optimizer="adamw", lr=1e-3, weight_decay=0.1, clip=1.0)


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


@pytest.mark.parametrize(
    ("settings", "densities"),
    [
        (Settings(density=(0.1,), frequency="10it"), (0.1,)),
        pytest.param(
            *(Settings(sparsity=(0.9, 0.5), frequency="15it", grow="random", distribution="uniform"), (0.5, 0.1)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gradient-erk", "random-uniform"],
)
def test_contract(tmp_path: Path, settings: Settings, densities: tuple[float, ...]) -> None:
    """It stops in the middle of a segment and goes on to the same bits."""
    found = check_search(METHOD, tmp_path, settings=settings, densities=densities)
    assert len(found) - 1 == len(settings.targets) == len(densities)


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


def best(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Boolean: so many of the largest scores among the places named, the earlier of equal ones."""
    order = [place for place in np.argsort(-scores.ravel(), kind="stable") if among.ravel()[place]]
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[order[:count]] = True
    return chosen.reshape(scores.shape)


def bare(
    task: tk.Task, recipe: tk.Recipe, density: float, *, by_gradient: bool, regrow: bool
) -> tuple[list[dict[str, np.ndarray]], dict[str, torch.Tensor]]:
    """One training in bare PyTorch: the mask after each move, the first one included, and the final state."""
    data = task.load().train
    images, per_epoch = task.prepare(data.inputs), -(-len(data) // BATCH)
    order = [torch.randperm(len(data), generator=generator(SEED, "order", epoch)) for epoch in range(4)]
    torch.manual_seed(mix(SEED, "initialisation"))
    model = task.build()
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    total = sum(weight.numel() for weight in weights.values())
    wanted = erk_counts({name: tuple(weight.shape) for name, weight in weights.items()}, int(density * total + 0.5))
    mask = {}
    for index, (name, weight) in enumerate(weights.items()):
        scores = torch.rand(weight.shape, dtype=torch.float64, generator=generator(SEED, "random", index)).numpy()
        mask[name] = best(scores, np.ones(scores.shape, dtype=bool), round(wanted[name]))
    masks = [mask]

    def apply() -> None:
        for name, kept in mask.items():
            weights[name].data[torch.from_numpy(~kept)] = 0
            for value in optimizer.state[weights[name]].values():
                if value.dim():
                    value[torch.from_numpy(~kept)] = 0

    apply()
    for step in range(TOTAL):
        epoch, position = divmod(step, per_epoch)
        batch = order[epoch][position * BATCH : (position + 1) * BATCH]
        loss = cross_entropy(model(images[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        if step in STEPS:
            share, after = ALPHA / 2 * (1 + cos(pi * step / END)), {}
            for index, (name, kept) in enumerate(mask.items()):
                count = int(share * kept.sum())
                count = count if regrow else min(count, int((~kept).sum()))
                left = best(weights[name].detach().abs().numpy(), kept, int(kept.sum()) - count)
                grown = weights[name].grad.abs().numpy()
                if not by_gradient:
                    draw = generator(SEED, "grow", step, index)
                    grown = torch.rand(kept.shape, dtype=torch.float64, generator=draw).numpy()
                after[name] = left | best(grown, ~(left if regrow else kept), count)
            mask = after
            masks.append(mask)
            apply()
            if by_gradient:
                continue  # as in the paper, such a batch trains nothing
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), data.targets[batch]).backward()
        for name, kept in mask.items():
            weights[name].grad[torch.from_numpy(~kept)] = 0
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 + np.cos(np.pi * step / TOTAL)) / 2
        optimizer.step()
    return masks, model.state_dict()


@pytest.mark.parametrize(
    ("recipe", "grow", "regrow"),
    sample(
        [(SGD, "gradient", False), (SGD, "random", True), (ADAMW, "gradient", True), (ADAMW, "random", False)],
        2,
        ids=["rigl-sgd", "set-sgd-regrow", "rigl-adamw-regrow", "set-adamw"],
    ),
)
def test_same_masks_and_weights_as_bare_pytorch(shared_store: Path, recipe: tk.Recipe, grow: str, regrow: bool) -> None:
    masks, state = bare(tk.task("digits"), recipe, 0.2, by_gradient=grow == "gradient", regrow=regrow)
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, recipe, density=(0.2,), grow=grow, regrow=regrow)[1]
        mine = [lab.store.get_mask(each.segment.mask) for each in (*ticket.searched, ticket.result)]
        final = lab.state(ticket.result)
    assert mine == [tk.Mask({name: torch.from_numpy(kept) for name, kept in mask.items()}) for mask in masks]
    assert len({mask.digest for mask in mine}) == len(mine), "it moved each time"
    assert mine[-1].digest == lab.store.get_mask(ticket.mask).digest
    assert final.keys() == state.keys()
    assert all(torch.equal(final[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_density_is_constant_and_the_way_is_one_training(shared_store: Path, grow: str) -> None:
    with tk.Lab(shared_store) as lab:
        dense, ticket = found_by(lab, density=(0.1,), grow=grow)
        chain = [*ticket.searched, ticket.result]
        masks = [lab.store.get_mask(each.segment.mask) for each in chain]
        states = [lab.state(each) for each in chain]
    moved = int(grow == "gradient")
    firsts = [0, *(step + moved for step in STEPS)]
    assert [(each.segment.first, each.segment.last) for each in chain] == list(
        zip(firsts, [*STEPS, TOTAL], strict=True)
    )
    assert all([row.kept for row in mask.table()] == [row.kept for row in masks[0].table()] for mask in masks)
    for (before, mask), (_, after) in pairwise(zip(states, masks, strict=True)):
        grown = {name: after[name] & ~mask[name] for name in after}
        assert any(bool(new.any()) for new in grown.values())
        assert not any(bool(before[name][new].any()) for name, new in grown.items()), "grown weights begin at 0"
    assert all(after.segment.start.optimizer == before.training for before, after in pairwise(chain))
    assert (ticket.retrain, budget(ticket), ticket.search_steps + ticket.result.segment.steps) == (
        DYNAMIC,
        TOTAL,
        TOTAL,
    )
    assert ticket.gradients == moved * len(STEPS)
    assert ticket.rewound.segment.steps == dense.rewound.segment.steps == 0
    assert not any(each.metrics for each in chain[:-1]), "states on the way are not measured"


def test_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = TOTAL - len(STEPS)
    with tk.Lab(tmp_path) as lab:
        first = found_by(lab, density=(0.5, 0.2))
        assert lab.ledger.steps_trained == TOTAL + 2 * each
        monkeypatch.setattr(importlib.import_module("ticketry.search.dynamic"), "first_gradient", None)
        again = found_by(lab, density=(0.2, 0.5))
        assert lab.ledger.steps_trained == TOTAL + 2 * each
        assert [item.result.model for item in again] == [item.result.model for item in first]


@pytest.mark.slow
def test_densities_side_by_side_are_single_ones(tmp_path: Path) -> None:
    with tk.Lab(tmp_path / "together", workers=2) as lab:
        together = found_by(lab, density=(0.2, 0.5))
    for level, density in ((1, 0.5), (2, 0.2)):
        with tk.Lab(tmp_path / f"alone {density}") as lab:
            single = found_by(lab, density=(density,))[1]
        item = together[level]
        assert (item.level, item.mask, item.result.model) == (level, single.mask, single.result.model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": (1.5,)},
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"grow": "hope"},
        {"distribution": "global"},
        {"end": "soon"},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"frequency": "45it"}, "would never move"),
        ({"frequency": "1it"}, "nothing would be trained between moves"),
        ({"spare": ("nothing",)}, "matches no parameter"),
        ({"density": (0.5, 0.00003)}, "layer collapse"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(TicketryError, match=told) as error:
            found_by(lab, **{"density": (0.5,), **wrong})
        assert lab.ledger.steps_trained == 0
    assert isinstance(error.value, UsageError | LayerCollapseError)
