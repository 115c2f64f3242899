"""Iterative magnitude pruning with rewinding in bare PyTorch: the library gives the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import ticketry as tk
from ticketry_engine.support.seeds import mix

TOTAL, REWIND, LEVELS, BATCH, SEED = 57, 6, 4, 64, 3


def bare_imp(task: tk.Task, retrain: str) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """(mask, final state) of each level. SGD with momentum and weight decay, cosine from 0.1, rate 0.4."""
    data = task.load().train
    images = task.prepare(data.inputs)
    order = [
        torch.randperm(len(data), generator=torch.Generator().manual_seed(mix(SEED, "order", epoch)))
        for epoch in range(4)
    ]
    per_epoch = -(-len(data) // BATCH)

    def train(state, mask, first, last, snapshot=None):
        model = task.build()
        model.load_state_dict(state)
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, keep in mask.items():
                weights[name][~keep] = 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
        kept = None
        for step in range(first, last):
            if step == snapshot:
                kept = {name: value.clone() for name, value in model.state_dict().items()}
            epoch, position = divmod(step, per_epoch)
            batch = order[epoch][position * BATCH : (position + 1) * BATCH]
            loss = cross_entropy(model(images[batch]), data.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            for name, keep in mask.items():
                weights[name].grad[~keep] = 0
            optimizer.param_groups[0]["lr"] = 0.1 * (1 + np.cos(np.pi * step / TOTAL)) / 2
            optimizer.step()
        return model.state_dict(), kept

    torch.manual_seed(mix(SEED, "initialisation"))
    initial = task.build().state_dict()
    names = [name for name in initial if name.endswith("weight")]
    trained, rewound = train(initial, {}, 0, TOTAL, snapshot=REWIND)
    mask = {name: torch.ones_like(initial[name], dtype=torch.bool) for name in names}
    size = sum(keep.numel() for keep in mask.values())
    levels = [(mask, trained)]
    for level in range(1, LEVELS + 1):
        flat = np.concatenate([np.where(mask[n], trained[n].abs(), -1.0).ravel() for n in names])
        best = np.argsort(-flat, kind="stable")[: round(0.6**level * size)]
        chosen = np.zeros(size, dtype=bool)
        chosen[best] = True
        parts = np.split(chosen, np.cumsum([mask[n].numel() for n in names])[:-1])
        mask = {n: torch.from_numpy(part).reshape(mask[n].shape) for n, part in zip(names, parts, strict=True)}
        start, first = {"continue": (rewound, REWIND), "restart": (rewound, 0), "rewind_lr": (trained, REWIND)}[retrain]
        trained, _ = train(start, mask, first, TOTAL)
        levels.append((mask, trained))
    return levels


@pytest.mark.parametrize("retrain", ["continue", "restart", "rewind_lr"])
def test_same_masks_and_weights_as_bare_pytorch(tmp_path: Path, retrain: str) -> None:
    task = tk.task("digits")
    recipe = tk.Recipe(
        length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine"
    )
    settings = tk.search.iterative.Settings(rate=0.4, levels=LEVELS, rewind=f"{REWIND}it", retrain=retrain)
    with tk.Lab(tmp_path) as lab:
        (found,) = tk.search.iterative(lab, task, settings, recipe=recipe, seeds=tk.search.Seeds.of(SEED))
        truth = bare_imp(task, retrain)
        assert len(found) == len(truth) == LEVELS + 1
        for item, (mask, state) in zip(found, truth, strict=True):
            if item.mask is not None:
                assert lab.store.get_mask(item.mask) == tk.Mask(mask)
            mine = lab.state(item.result)
            assert mine.keys() == state.keys()
            for name, tensor in state.items():
                assert torch.equal(mine[name], tensor), (item.level, name)
