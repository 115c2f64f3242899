"""Every method on rows of numbers: the contract, and what of it needs classes or norms says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ticketry as tk
from samples import sample
from search.every_method import LENGTH, METHODS
from ticketry.errors import TaskError, UsageError
from ticketry.tasks import catalogue
from ticketry.testing import check_search

QUICK = ("early",)


def table(folder: Path) -> tk.Task:
    numbers = np.random.default_rng(0).normal(size=(120, 4))
    numbers[:, 3] += numbers[:, 0] * numbers[:, 1]
    path = folder / "table.csv"
    path.write_text("\n".join(["a,b,c,d", *(",".join(map(str, row)) for row in numbers.round(4))]))
    return catalogue.get(f"table:{path}", model="mlp-16-8", options={"target": "d"})


def test_every_method_is_here() -> None:
    assert set(METHODS) | {"decorators"} == set(tk.search.methods())


@pytest.mark.parametrize("method", sample(METHODS, QUICK))
def test_contract(tmp_path: Path, method: str) -> None:
    task = table(tmp_path)
    settings = getattr(tk.search, method).Settings(**METHODS[method])
    densities = settings.targets if hasattr(settings, "targets") else METHODS[method].get("density")
    recipe = task.recipe.changed(length=LENGTH)
    found = check_search(method, tmp_path / "lab", settings=settings, densities=densities, task=task, recipe=recipe)
    assert all(set(one.result.metrics["test"]) == {"rmse", "r2", "loss"} for one in found)


@pytest.mark.parametrize("method", sample(["early", "gradual", "iterative"], 1))
def test_hidden_units(tmp_path: Path, method: str) -> None:
    """Whole units leave, and what is trained is a smaller perceptron."""
    task = table(tmp_path)
    chosen = {name: value for name, value in METHODS[method].items() if name in ("levels", "rewind", "frequency")}
    density = {} if method == "iterative" else {"density": (0.5,)}
    settings = getattr(tk.search, method).Settings(**density, **chosen, structure="channels")
    recipe = task.recipe.changed(length=LENGTH)
    found = check_search(method, tmp_path / "lab", settings=settings, task=task, recipe=recipe)
    assert found[-1].result.segment.whole_channels
    assert found[-1].mask is not None
    with tk.Lab(tmp_path / "lab" / "first") as lab:
        kept = lab.store.get_mask(found[-1].mask)["layers.0.weight"]
    assert kept.any(1).sum() < 16
    assert bool((kept.any(1) == kept.all(1)).all())


def test_what_needs_norms_or_classes_says_so(tmp_path: Path) -> None:
    task = table(tmp_path)
    with tk.Lab(tmp_path / "lab") as lab:
        with pytest.raises(UsageError, match="MLP has no norm with a scale"):
            tk.search.decorators(lab, task, recipe=task.recipe.changed(length="400it"))
        with pytest.raises(TaskError, match=r"for the task's own loss \(--objective loss\)"):
            tk.search.concrete(lab, task, recipe=task.recipe.changed(length=LENGTH))
