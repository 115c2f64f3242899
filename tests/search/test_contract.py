"""Every method keeps the contract of a search, with each kind of mask and each way of retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from lab_fixtures import PointsTask
from norms_task import NormsTask
from samples import sample
from search.known_costs import task as small_convolutional
from ticketry.core.structure.layout import layouts, mark_best_n_of_m
from ticketry.core.structure.pattern import Pattern
from ticketry.search import METHODS
from ticketry.search import method as method_called
from ticketry.testing import check_search

LENGTH = "12it"
GATES = {"gate_lr": 10.0, "rewind": "10%"}
TICKS = {"begin": "4it", "end": "9it", "tick": "2it", "rounds": 2, "tick_lr": 0.01}
MANY = {
    "iterative": ("iterative", {"rate": 0.5, "levels": 2, "rewind": "10%"}, (0.5, 0.25)),
    "oneshot": ("oneshot", {}, (0.1,)),
    "gradual": ("gradual", {"sparsity": (0.9, 0.5), "frequency": "3it", "distribution": "erk"}, (0.5, 0.1)),
    "early": ("early", {"density": (0.4,), "iterations": 2, "batches": 1, "batch": 16, "every": "2it"}, (0.4,)),
    "dynamic": ("dynamic", {"density": (0.2,), "frequency": "4it"}, (0.2,)),
    "acdc": ("acdc", {"sparsity": (0.5,), "warmup": "2it", "phase": "4it"}, (0.5,)),
    "continuous": ("continuous", {"rounds": 1, **GATES}, None),
    "stochastic": ("stochastic", {"rounds": 2, **GATES}, None),
    "concrete": ("concrete", {"density": (0.3,), "mask_length": "10it"}, (0.3,)),
    "l0": ("l0", {"density": (0.3,)}, (0.3,)),
    "regularised": ("regularised", {"density": (0.3,)}, (0.3,)),
    "decorators": ("decorators", {"density": (0.5,), **TICKS}, None),
    "iterative channels": ("iterative", {"densities": (0.7, 0.4), "score": "l2", "structure": "channels"}, None),
    "iterative rows": ("iterative", {"densities": (0.5, 0.3), "rewind": "3it", "structure": "rows:4"}, None),
    "iterative regrouped": ("iterative", {"densities": (0.5, 0.3), "rewind": "10%", "structure": "regroup:4"}, None),
    "iterative 2:4": ("iterative", {"densities": (0.5, 0.3), "structure": "2:4", "structured_levels": 1}, None),
    "iterative flops": ("iterative", {"flops": (0.6, 0.4), "rewind": "3it"}, None),
    "early filters": ("early", {"density": (0.4,), "when": "5it", "batches": 1, "structure": "filters"}, None),
    "gates on rows": ("continuous", {"rounds": 1, "structure": "rows:4", **GATES}, None),
    "original": ("iterative", {"densities": (0.3, 0.2), "rewind": "0", "distribution": "layerwise"}, (0.3, 0.2)),
    "learning rate rewound": ("iterative", {"levels": 2, "rewind": "4it", "retrain": "rewind_lr"}, None),
    "fine-tuned": ("iterative", {"densities": (0.3,), "rewind": "end"}, (0.3,)),
    "restarted": ("iterative", {"densities": (0.4,), "retrain": "restart", "score": "random"}, (0.4,)),
    "oneshot 2:4": ("oneshot", {"density": (0.5, 0.2), "retrain": "continue", "structure": "search:2:4"}, None),
    "snip": ("early", {"density": (0.6,), "when": "0", "score": "snip", "iterations": 1, "batches": 1}, (0.6,)),
    "snap": ("oneshot", {"density": (0.4,), "when": "3it", "score": "snip", "structure": "channels"}, None),
    "gradual rows": ("gradual", {"density": (0.5,), "begin": "2it", "frequency": "4it", "structure": "rows:16"}, None),
    "gradual channels": ("gradual", {"density": (0.4,), "frequency": "4it", "structure": "channels"}, None),
    "random growth": ("dynamic", {"density": (0.5, 0.2), "frequency": "5it", "grow": "random"}, (0.5, 0.2)),
    "several gates": ("continuous", {"rounds": 1, "init": (-0.1, 0.1), "retrain": "restart", **GATES}, None),
    "gates fine-tuned": ("continuous", {"rounds": 2, **GATES, "rewind": "end", "reset": "code"}, None),
    "gates flops": ("continuous", {"rounds": 1, "init": 0.05, **GATES, "flops": 0.5}, None),
    "concrete loss": ("concrete", {"density": (0.5, 0.2), "objective": "loss", "mask_length": "10it"}, (0.5, 0.2)),
    "concrete flops": ("concrete", {"flops": 0.5, "collapse": "keep", "mask_length": "10it"}, None),
    "l0 channels": ("l0", {"density": (0.5,), "structure": "channels"}, None),
    "scales": ("regularised", {"penalty": "l1_scales", "density": (0.5,)}, None),
    "lasso": ("regularised", {"penalty": "group_lasso", "density": (0.3,), "structure": "rows:4"}, None),
    "refilled": ("iterative", {"densities": (0.5, 0.3), "structure": "refill"}, None),
    "filled up": ("iterative", {"densities": (0.5, 0.3), "structure": "refill+"}, None),
}  # fmt: skip


def task_of(settings: dict[str, Any], method: str) -> tk.Task:
    if "flops" in settings:
        return small_convolutional()
    return NormsTask() if method in ("decorators", "l0") or "penalty" in settings else PointsTask()


def test_every_method_is_here() -> None:
    assert {method for method, *_ in MANY.values()} == set(METHODS.built_in)


@pytest.mark.parametrize("name", sample(MANY, {*METHODS.built_in, "iterative channels"} - {"stochastic"}))
def test_contract(name: str, tmp_path: Path) -> None:
    method, given, densities = MANY[name]
    settings = method_called(method).Settings(**given)
    task = task_of(given, method)
    recipe = task.recipe.changed(length=LENGTH)
    found = check_search(method, tmp_path, settings=settings, densities=densities, task=task, recipe=recipe)
    shape = getattr(settings, "parsed_structure", None)
    with tk.Lab(tmp_path / "first") as lab:
        for item in found[1:] if shape and shape.pattern else ():
            check_pattern(lab.store.get_mask(str(item.mask)), shape.pattern, lab.model(task))


def check_pattern(mask: tk.Mask, text: str, model: Any) -> None:
    """All of the pattern, with no half block."""
    pattern, known = Pattern.parse(text), layouts(model, mask)
    for name, kept in mask.items():
        if pattern.m:
            assert bool((mark_best_n_of_m(kept.int(), pattern.n, pattern.m, known[name]) | ~kept).all())
        else:
            pattern.blocks(tuple(kept.shape), known[name]).retained_blocks(kept, name)
