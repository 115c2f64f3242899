"""AC/DC as a search: the contract, bare PyTorch, phases and what they cost."""

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
from ticketry.errors import LayerCollapseError, TicketryError, UsageError
from ticketry.lab.search_result import GRADUAL, budget
from ticketry.search.acdc import Settings
from ticketry.testing import check_search
from ticketry_engine.support.seeds import generator, mix

METHOD = tk.search.acdc
TOTAL, BATCH, SEED = 57, 64, 3
COMPRESSED, DECOMPRESSED = [6, 20, 45], [13, 27]
POINTS = {"warmup": "6it", "phase": "7it", "end": "45it"}
SGD = tk.Recipe(
    length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ADAMW = SGD.changed(optimizer="adamw", lr=2e-2, weight_decay=0.1, clip=1.0)


def found_by(lab: tk.Lab, recipe: tk.Recipe = SGD, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{**POINTS, **settings})
    return METHOD(lab, tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


@pytest.mark.parametrize(
    ("settings", "densities"),
    sample(
        [
            (Settings(density=(0.1,), phase="20%"), (0.1,)),
            (Settings(sparsity=(0.9, 0.5), warmup="0", phase="10it", distribution="erk"), (0.5, 0.1)),
        ],
        1,
        ids=["longer", "two-erk"],
    ),
)
def test_contract(tmp_path: Path, settings: Settings, densities: tuple[float, ...]) -> None:
    found = check_search(METHOD, tmp_path, settings=settings, densities=densities)
    assert len(found) - 1 == len(settings.targets) == len(densities)


def bare(task: tk.Task, recipe: tk.Recipe, density: float) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """One training in bare PyTorch: the mask of each compressed phase, and the final state."""
    data = task.load().train
    images, per_epoch = task.prepare(data.inputs), -(-len(data) // BATCH)
    order = [torch.randperm(len(data), generator=generator(SEED, "order", epoch)) for epoch in range(4)]
    torch.manual_seed(mix(SEED, "initialisation"))
    model = task.build()
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}

    def made() -> torch.optim.Optimizer:
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
        return torch.optim.AdamW(model.parameters(), lr=2e-2, betas=(0.9, 0.999), weight_decay=0.1, fused=True)

    optimizer, mask, masks = made(), None, []
    for step in range(TOTAL):
        if step in COMPRESSED:
            sizes = np.concatenate([weight.detach().abs().numpy().ravel() for weight in weights.values()])
            chosen = np.zeros(sizes.size, dtype=bool)
            chosen[np.argsort(-sizes, kind="stable")[: int(density * sizes.size + 0.5)]] = True
            parts = np.split(chosen, np.cumsum([weight.numel() for weight in weights.values()])[:-1])
            mask = {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
            masks.append(mask)
            for name, kept in mask.items():
                weights[name].data[torch.from_numpy(~kept)] = 0
                for value in optimizer.state[weights[name]].values():
                    if value.dim():
                        value[torch.from_numpy(~kept)] = 0
        if step in DECOMPRESSED:
            mask, optimizer = None, made()
        epoch, position = divmod(step, per_epoch)
        batch = order[epoch][position * BATCH : (position + 1) * BATCH]
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), data.targets[batch]).backward()
        for name, kept in (mask or {}).items():
            weights[name].grad[torch.from_numpy(~kept)] = 0
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 + np.cos(np.pi * step / TOTAL)) / 2
        optimizer.step()
    return masks, model.state_dict()


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_same_masks_and_weights_as_bare_pytorch(tmp_path: Path, recipe: tk.Recipe) -> None:
    masks, state = bare(tk.task("digits"), recipe, 0.1)
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, recipe, density=(0.1,))[1]
        held = [each.segment.mask for each in (*ticket.searched, ticket.result) if each.segment.mask]
        mine = [lab.store.get_mask(digest) for digest in held]
        final = lab.state(ticket.result)
    assert held[-1] == ticket.mask
    assert mine == [tk.Mask({name: torch.from_numpy(kept) for name, kept in mask.items()}) for mask in masks]
    assert any(not later <= earlier for earlier, later in pairwise(mine)), "removed weights come back"
    assert final.keys() == state.keys()
    assert all(torch.equal(final[name], tensor) for name, tensor in state.items())


def test_phases_and_what_they_cost(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        dense, half, ticket = found_by(lab, density=(0.5, 0.1))
        assert lab.ledger.steps_trained == TOTAL + 2 * (TOTAL - COMPRESSED[0]), "the warm-up is the dense network's"
        chain = [*ticket.searched, ticket.result]
        states = [lab.state(each) for each in chain]
        mask = lab.store.get_mask(ticket.mask)
    turns = sorted([0, *COMPRESSED, *DECOMPRESSED, TOTAL])
    assert [(each.segment.first, each.segment.last) for each in chain] == list(pairwise(turns))
    assert [each.segment.mask is None for each in chain] == [each.segment.first not in COMPRESSED for each in chain]
    assert all(after.segment.start.state == before.model for before, after in pairwise(chain))
    resumed = [each.segment.start.optimizer is not None for each in chain[1:]]
    assert resumed == [each.segment.mask is not None for each in chain[1:]]
    assert chain[0].segment.trajectory == dense.result.segment.trajectory == half.searched[0].segment.trajectory
    removed = {name: ~kept for name, kept in mask.items()}
    before, revived = states[-3], states[-2]
    assert any(bool((revived[name][gone] != 0).any()) for name, gone in removed.items())
    assert sum(int((tensor == 0).sum()) for tensor in before.values()) > 0.8 * mask.total
    assert ticket.rewound == chain[-2]
    assert (ticket.retrain, budget(ticket), ticket.search_steps) == (GRADUAL, TOTAL, COMPRESSED[-1])
    assert not any(each.metrics for each in chain[:-1]), "states on the way are not measured"


@pytest.mark.parametrize("wrong", [{"warmup": "soon"}, {"density": (0.5, 0.5)}, {"distribution": "fair"}])
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize("wrong", [{"end": "end"}, {"phase": "20it"}, {"score": "importance"}, {"spare": ("nothing",)}])
def test_wrong_words_are_told_before_anything_is_trained(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(TicketryError):
            found_by(lab, **{"density": (0.5,), **wrong})
        assert lab.ledger.steps_trained == 0


def test_layer_collapse_is_told(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError, match="layer collapse"):
        found_by(lab, density=(0.0001,))
