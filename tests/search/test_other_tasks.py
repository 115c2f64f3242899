"""Searches on tasks that classify nothing: environments and tables of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ticketry as tk
from samples import sample
from search.every_method import LENGTH, METHODS
from ticketry.errors import TaskError, UsageError
from ticketry.lab.training.segment import Start
from ticketry.tasks import catalogue
from ticketry.testing import check_search

OPTIONS = {"copies": "4", "memory": "64", "warmup": "16", "period": "5"}


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry.tasks.reinforcement.EPISODES", 2)


def pole() -> tk.Task:
    return catalogue.get("cartpole", model="mlp-16-8", options=OPTIONS)


def table(folder: Path) -> tk.Task:
    numbers = np.random.default_rng(0).normal(size=(120, 4))
    numbers[:, 3] += numbers[:, 0] * numbers[:, 1]
    path = folder / "table.csv"
    path.write_text("\n".join(["a,b,c,d", *(",".join(map(str, row)) for row in numbers.round(4))]))
    return catalogue.get(f"table:{path}", model="mlp-16-8", options={"target": "d"})


@pytest.mark.parametrize("method", sample(METHODS, ("gradual",)))
def test_contract_in_an_environment(tmp_path: Path, method: str) -> None:
    check_contract(tmp_path, method, pole(), {"return", "length"})


@pytest.mark.parametrize("method", sample(METHODS, ("early",)))
def test_contract_on_a_table(tmp_path: Path, method: str) -> None:
    check_contract(tmp_path / "lab", method, table(tmp_path), {"rmse", "r2", "loss"})


def check_contract(folder: Path, method: str, task: tk.Task, metrics: set[str]) -> None:
    settings = getattr(tk.search, method).Settings(**METHODS[method])
    densities = getattr(settings, "targets", ()) or METHODS[method].get("density")
    recipe = task.recipe.changed(length=LENGTH, batch=16)
    found = check_search(method, folder, settings=settings, densities=densities, task=task, recipe=recipe)
    assert all(set(one.result.metrics["test"]) == metrics for one in found)


def test_scores_that_look_at_data_see_transitions(shared_store: Path) -> None:
    task = pole()
    recipe = task.recipe.changed(length="6it", batch=16)
    with tk.Lab(shared_store) as lab:
        kept = {}
        for score in ("snip", "synflow"):
            settings = tk.search.early.Settings(density=(0.3,), when="0", score=score, iterations=2, batches=2)
            ((_, ticket),) = tk.search.early(lab, task, settings, recipe=recipe)
            kept[score] = lab.store.get_mask(ticket.mask)
    assert len({tuple(mask["layers.0.weight"].flatten().tolist()) for mask in kept.values()}) == len(kept)


def test_what_needs_norms_or_classes_says_so(tmp_path: Path) -> None:
    with tk.Lab(tmp_path / "lab") as lab:
        for task, why in ((pole(), "has no classes"), (table(tmp_path), r"own loss \(--objective loss\)")):
            recipe = task.recipe.changed(length="400it", batch=16)
            with pytest.raises(UsageError, match="MLP has no norm with a scale"):
                tk.search.decorators(lab, task, recipe=recipe)
            with pytest.raises(TaskError, match=why):
                tk.search.concrete(lab, task, recipe=recipe)


def test_hidden_units_leave_whole(tmp_path: Path) -> None:
    task = table(tmp_path)
    settings = tk.search.early.Settings(density=(0.5,), structure="channels")
    with tk.Lab(tmp_path / "lab") as lab:
        ((_, ticket),) = tk.search.early(lab, task, settings, recipe=task.recipe.changed(length=LENGTH))
        assert ticket.result.segment.whole_channels
        kept = lab.store.get_mask(ticket.mask)["layers.0.weight"]
    assert kept.any(1).sum() < 16
    assert bool((kept.any(1) == kept.all(1)).all())


def parts(lab: tk.Lab, result: Any) -> dict[str, torch.Tensor]:
    prefix = "session/target/"
    found = lab.store.get_tensors(result.training)
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def test_the_target_network_lacks_what_a_later_mask_removes(shared_store: Path) -> None:
    """Gradual pruning goes on with target, memory and environments, without the weights that were just cut."""
    task = pole()
    recipe = task.recipe.changed(length="20it", batch=16)
    with tk.Lab(shared_store) as lab:
        dense = lab.train(lab.segment(task, start=0, recipe=recipe), keep=(7,))
        state = lab.at(dense, 7)
        mask = tk.prune(lab.model(task, state), density=0.3)
        start = Start(state=state.model, optimizer=state.training)
        segment = lab.segment(task, start=start, mask=mask, first=7, recipe=recipe)
        at_once, later = (lab.train(segment.shortened_to(step)) for step in (7, 9))  # the next copy is at step 10
        whole = parts(lab, state)
        for result in (at_once, later):
            target = parts(lab, result)
            assert target.keys() == whole.keys()
            for name, value in target.items():
                assert torch.equal(value, whole[name] * mask[name] if name in mask else whole[name])
        memory = "session/memory/seen"
        before, after = (lab.store.get_tensors(str(one.training))[memory] for one in (state, later))
        assert len(after) == len(before) + 2 * 4
        assert torch.equal(after[: len(before)], before)


def test_a_shrunk_network_learns_as_the_masked_one(shared_store: Path) -> None:
    """Targets and all, up to float error: in double precision nothing that is drawn differs."""
    task = pole()
    recipe = task.recipe.changed(length="24it", batch=16, optimizer="sgd", lr=0.01)
    with tk.Lab(shared_store) as lab:
        dense = lab.train(lab.segment(task, start=0, recipe=recipe), keep=(6,))
        state = lab.at(dense, 6)
        mask = tk.structure.channels(lab.model(task, state), lab.course(task).inputs(2), 0.5, score="l1")
        start = Start(state=state.model, optimizer=state.training)
        found = [
            lab.train(lab.segment(task, start=start, mask=mask, first=6, last=13, recipe=recipe, shrunk=shrunk))
            for shrunk in (False, True)
        ]
        (masked, small) = (parts(lab, one) for one in found)
        assert all(torch.allclose(small[name], value, atol=1e-5) for name, value in masked.items())
        assert all(one.training for one in found)
        states = [lab.state(one) for one in found]
        assert all(torch.allclose(states[1][name], value, atol=1e-5) for name, value in states[0].items())
        # Stored in its full shape, with nothing in the places that are gone: the next, denser or sparser, goes on.
        assert not small["layers.0.weight"][~mask["layers.0.weight"]].any()
        assert small["layers.0.weight"].shape == (16, 4)
