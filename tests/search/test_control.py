"""Every method in an environment: the contract; targets lack what a mask removes; small networks learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from samples import sample
from search.every_method import LENGTH, METHODS, TWO
from ticketry.errors import TaskError, UsageError
from ticketry.lab.training.segment import Start
from ticketry.tasks import catalogue
from ticketry.testing import check_search

QUICK = ("gradual", "iterative")
OPTIONS = {"copies": "4", "memory": "64", "warmup": "16", "period": "5"}


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry.tasks.reinforcement.task.EPISODES", 4)


def pole() -> tk.Task:
    return catalogue.get("cartpole", model="mlp-16-8", options=OPTIONS)


def test_every_method_is_here() -> None:
    assert set(METHODS) | {"decorators"} == set(tk.search.methods())


@pytest.mark.parametrize("method", sample(METHODS, QUICK))
def test_contract(tmp_path: Path, method: str) -> None:
    task = pole()
    settings = getattr(tk.search, method).Settings(**METHODS[method])
    densities = settings.targets if hasattr(settings, "targets") else METHODS[method].get("density")
    recipe = task.recipe.changed(length=LENGTH, batch=16)
    found = check_search(method, tmp_path, settings=settings, densities=densities, task=task, recipe=recipe)
    assert all(set(one.result.metrics["test"]) == {"return", "length"} for one in found)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("early", {**TWO, "when": "0", "score": "random", "distribution": "uniform"}),
        ("early", {**TWO, "when": "0", "score": "snip", "iterations": 1}),
        ("early", {**TWO, "every": "25%"}),
        ("iterative", {"levels": 2, "rewind": "3it"}),
        ("continuous", {"rounds": 2, "gate_lr": 10.0, "rewind": "10%"}),
        ("gradual", {**TWO, "frequency": "5it"}),
    ],
    ids=["random", "SNIP", "EarlyCroP", "IMP", "CS", "GMP"],
)
def test_methods_of_the_paper_find_tickets(shared_store: Path, method: str, settings: dict[str, Any]) -> None:
    """As sparse as they say, trained on with what they lack at 0, and measured by their returns."""
    task = pole()
    recipe = task.recipe.changed(length=LENGTH, batch=16)
    search = getattr(tk.search, method)
    with tk.Lab(shared_store) as lab:
        ((_, *tickets),) = search(lab, task, search.Settings(**settings), recipe=recipe)
        assert len(tickets) == 2
        for ticket in tickets:
            mask, state = lab.store.get_mask(ticket.mask), lab.state(ticket.result)
            assert 0 < mask.density < 1
            assert all(not state[name][~kept].any() for name, kept in mask.items())
            assert 1 <= ticket.result.metrics["test"]["return"] <= 500


def test_scores_that_look_at_data_see_transitions(shared_store: Path) -> None:
    task = pole()
    recipe = task.recipe.changed(length="6it", batch=16)
    with tk.Lab(shared_store) as lab:
        kept = {}
        for score in ("snip", "grasp", "crop", "synflow"):
            settings = tk.search.early.Settings(density=(0.3,), when="0", score=score, iterations=2, batches=2)
            ((_, ticket),) = tk.search.early(lab, task, settings, recipe=recipe)
            kept[score] = lab.store.get_mask(ticket.mask)
    assert len({tuple(mask["layers.0.weight"].flatten().tolist()) for mask in kept.values()}) == len(kept)


def test_what_needs_norms_or_classes_says_so(tmp_path: Path) -> None:
    task = pole()
    recipe = task.recipe.changed(length="400it", batch=16)
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(UsageError, match="MLP has no norm with a scale"):
            tk.search.decorators(lab, task, recipe=recipe)
        with pytest.raises(TaskError, match="has no classes"):
            tk.search.concrete(lab, task, recipe=recipe)


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
        at_once, later = (lab.train(segment.until(step)) for step in (7, 9))  # the next copy is at step 10
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
