"""Gradual pruning as a search: the contract, bare PyTorch, what is shared and what it costs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import ticketry as tk
from samples import sample
from ticketry.core.sparse_training.schedule import cuts
from ticketry.errors import LayerCollapseError, TicketryError, UsageError
from ticketry.lab.search_result import GRADUAL, budget
from ticketry.lab.training.segment import Start
from ticketry.search.gradual import Settings
from ticketry.testing import check_search
from ticketry_engine.support.seeds import mix

METHOD = tk.search.gradual
TOTAL, BATCH, SEED = 57, 64, 3
BEGIN, END, EVERY = 7, 40, 11
STEPS = [18, 29, 40]
POINTS = {"begin": f"{BEGIN}it", "end": f"{END}it", "frequency": f"{EVERY}it"}
SGD = tk.Recipe(
    length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ADAMW = SGD.changed(optimizer="adamw", lr=1e-3, weight_decay=0.1, clip=1.0)


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


@pytest.mark.parametrize(
    ("settings", "densities"),
    sample(
        [
            (Settings(density=(0.1,)), (0.1,)),
            (Settings(sparsity=(0.9, 0.5), begin="0", end="40it", frequency="7it", distribution="erk"), (0.5, 0.1)),
        ],
        1,
        ids=["default", "two-erk"],
    ),
)
def test_contract(tmp_path: Path, settings: Settings, densities: tuple[float, ...]) -> None:
    found = check_search(METHOD, tmp_path, settings=settings, densities=densities)
    assert len(found) - 1 == len(settings.targets) == len(densities)


def bare(task: tk.Task, recipe: tk.Recipe, density: float) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """One training in bare PyTorch: mask and final state."""
    data = task.load().train
    images, per_epoch = task.prepare(data.inputs), -(-len(data) // BATCH)
    order = [
        torch.randperm(len(data), generator=torch.Generator().manual_seed(mix(SEED, "order", epoch)))
        for epoch in range(4)
    ]
    torch.manual_seed(mix(SEED, "initialisation"))
    model = task.build()
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    mask = {name: np.ones(weight.shape, dtype=bool) for name, weight in weights.items()}
    total = sum(kept.size for kept in mask.values())
    for step in range(TOTAL):
        if step in STEPS:
            share = density + (1 - density) * (1 - (step - BEGIN) / (END - BEGIN)) ** 3
            sizes = [np.where(mask[n], w.detach().abs().numpy(), -1.0).ravel() for n, w in weights.items()]
            chosen = np.zeros(total, dtype=bool)
            chosen[np.argsort(-np.concatenate(sizes), kind="stable")[: int(share * total + 0.5)]] = True
            parts = np.split(chosen, np.cumsum([kept.size for kept in mask.values()])[:-1])
            mask = {name: part.reshape(mask[name].shape) for name, part in zip(mask, parts, strict=True)}
            for name, kept in mask.items():
                weights[name].data[torch.from_numpy(~kept)] = 0
                for value in optimizer.state[weights[name]].values():
                    if value.dim():
                        value[torch.from_numpy(~kept)] = 0
        epoch, position = divmod(step, per_epoch)
        batch = order[epoch][position * BATCH : (position + 1) * BATCH]
        loss = cross_entropy(model(images[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        for name, kept in mask.items():
            weights[name].grad[torch.from_numpy(~kept)] = 0
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 + np.cos(np.pi * step / TOTAL)) / 2
        optimizer.step()
    return mask, model.state_dict()


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_same_mask_and_weights_as_bare_pytorch(tmp_path: Path, recipe: tk.Recipe) -> None:
    """Momentum goes on over the cuts, but for that of the weights that go: an optimiser begun anew gives other bits."""
    mask, state = bare(tk.task("digits"), recipe, 0.1)
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, recipe, density=(0.1,))[1]
        assert lab.store.get_mask(ticket.mask) == tk.Mask({name: torch.from_numpy(m) for name, m in mask.items()})
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


def test_nothing_is_trained_twice(tmp_path: Path) -> None:
    """Of each density the steps from the first cut on; those before are the dense network's, as its own search has."""
    own = TOTAL - STEPS[0]
    with tk.Lab(tmp_path) as lab:
        found_by(lab, density=(0.5, 0.2))
        assert lab.ledger.steps_trained == TOTAL + 2 * own
        found_by(lab, density=(0.5, 0.2, 0.1))
        assert lab.ledger.steps_trained == TOTAL + 3 * own
        imp = tk.search.iterative.Settings(densities=(0.5,), rewind=f"{STEPS[0]}it")
        tk.search.iterative(lab, tk.task("digits"), imp, recipe=SGD, seeds=tk.search.Seeds.of(SEED))
        assert lab.ledger.steps_trained == TOTAL + 3 * own + TOTAL - STEPS[0]


def test_the_way_to_a_density(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        dense, ticket = found_by(lab, density=(0.1,))
        chain = [*ticket.searched, ticket.result]
        masks = [lab.store.get_mask(each.segment.mask) for each in chain[1:]]
    assert dense.result.segment.mask is chain[0].segment.mask is None
    assert [(each.segment.first, each.segment.last) for each in chain] == list(pairwise([0, *STEPS, TOTAL]))
    wanted = cuts(0.1, begin=BEGIN, end=END, frequency=EVERY)
    assert [mask.kept for mask in masks] == [round(share * masks[0].total) for share in wanted.values()]
    assert all(later <= earlier for earlier, later in pairwise(masks))
    assert all(after.segment.start.state == before.model for before, after in pairwise(chain))
    assert all(after.segment.start.optimizer == before.training for before, after in pairwise(chain))
    assert (ticket.retrain, budget(ticket), ticket.search_steps) == (GRADUAL, TOTAL, END)
    assert not any(each.metrics for each in chain[:-1]), "states on the way are not measured"


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
        {"density": (0.5, 0.5)},
        {"density": (0.5,), "sparsity": (0.5,)},
        {"begin": "soon"},
        {"distribution": "fair"},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"end": "end"}, {"begin": "90%"}, {"score": "importance"}, {"spare": ("nothing",)}, {"begin": "50ep"}]
)
def test_wrong_words_are_told_before_anything_is_trained(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(TicketryError):
            found_by(lab, **{"density": (0.5,), **wrong})
        assert lab.ledger.steps_trained == 0


def test_layer_collapse_is_told(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError, match="layer collapse"):
        found_by(lab, density=(0.0001,))
