"""Searches for tickets of a budget: what they find costs what was asked for, and so do controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

import ticketry as tk
from samples import sample
from search.known_costs import task
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.evidence.control import Drawing
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.request import build_request
from ticketry.lab.masks import dense_macs, macs_by_layer, remaining_macs
from ticketry.lab.search_result import Seeds
from ticketry.search.common.method import Replicate
from ticketry.search.common.pruning import prunable_scope, prune

SETTINGS: dict[str, dict[str, Any]] = {
    "iterative": {"flops": 0.4, "rate": 0.5, "rewind": "3it"},
    "oneshot": {"flops": (0.5, 0.3)},
    "gradual": {"flops": 0.4, "frequency": "5it"},
    "early": {"flops": 0.4, "when": "3it", "iterations": 3},
    "acdc": {"flops": 0.4, "warmup": "3it", "phase": "4it", "end": "12it"},
    "regularised": {"flops": 0.4},
    "dynamic": {"flops": 0.4, "frequency": "5it"},
}
BUDGETS = {"iterative": (0.5, 0.4), "oneshot": (0.5, 0.3)}


def slowly(model: nn.Module, image: torch.Tensor) -> int:
    """Multiplications of a call by weights that are not 0: every product of every place, one after another."""
    found, value = 0, image
    for module in (one for one in model.modules() if not list(one.children())):
        if isinstance(module, nn.Conv2d):
            padded = pad(value, [module.padding[1]] * 2 + [module.padding[0]] * 2)
            assert module.stride == (1, 1)
            assert module.groups == 1
            for _ in range(padded.shape[2] - module.kernel_size[0] + 1):
                found += (padded.shape[3] - module.kernel_size[1] + 1) * int((module.weight != 0).sum())
        elif isinstance(module, nn.Linear):
            found += int((module.weight != 0).sum())
        value = module(value)
    return found


def check_multiplications(lab: tk.Lab, ticket: tk.search.Found, share: float) -> None:
    """Counted one after another they are no more than the share, and less by two weights' at most."""
    full, dearest = dense_macs(lab, task()), max(one for one, _ in macs_by_layer(lab, task()).values())
    assert ticket.aim == "flops"
    mask, model = lab.store.get_mask(str(ticket.mask)), lab.model(task())
    mask.apply_(model)
    with torch.no_grad():
        counted = slowly(model, torch.zeros(1, 1, 8, 8))
    assert counted == remaining_macs(lab, task(), mask)
    assert share * full - 2 * dearest < counted <= share * full


@pytest.mark.parametrize("name", sample(SETTINGS, 2))
def test_tickets_cost_what_was_asked_for(name: str, tmp_path: Path) -> None:
    method = tk.search.method(name)
    settings = decode_settings(SETTINGS[name], method.Settings, what=name)[0]
    with tk.Lab(tmp_path) as lab:
        found = method(lab, task(), settings, recipe=task().recipe.changed(length="16it"))[0]
        for share, ticket in zip(BUDGETS.get(name, (0.4,)), found[1:], strict=True):
            check_multiplications(lab, ticket, share)


@pytest.mark.slow
def test_controls_and_dense_rivals_have_the_budget_and_not_the_density(tmp_path: Path) -> None:
    controls = ("shuffled", "random_prune", "dense_of_flops", "dense_of_flops:conv-4")
    common: dict[str, Any] = {"controls": controls, "store": tmp_path, "replicates": 2, "recipe": {"length": "8it"}}
    run = tk.run("iterative", task(), flops=0.3, rate=0.7, **common)
    points = {(one.level, one.role): one for one in run.record.points if one.replicate == 0}
    with tk.Lab(tmp_path) as lab:
        dearest = max(one for one, _ in macs_by_layer(lab, task()).values())
        assert points[0, "dense"].multiplications == dense_macs(lab, task())
        ticket = points[1, "ticket"]
        assert points[1, "shuffled"].multiplications == ticket.multiplications
        assert 0 <= ticket.multiplications - points[1, "random_prune"].multiplications < 2 * dearest
        assert points[1, "random_prune"].kept != ticket.kept
        for role in controls[2:]:
            rival = points[1, role]
            model = tk.task("digits", model=rival.model).build()
            with torch.no_grad():
                assert slowly(model, torch.zeros(1, 1, 8, 8)) == rival.multiplications >= ticket.multiplications
            assert rival.budget == ticket.budget
            base, _, width = rival.model.partition("@")
            assert base == ("conv-4" if ":" in role else "conv-2")
            narrower = f"{base}@{float(width) - (0.001 if ':' in role else 0.000063):.6f}"
            assert dense_macs(lab, tk.task("digits", model=narrower)) < ticket.multiplications
    assert not run.record.verdict_error
    assert {one.role for one in run.verdicts[0].comparisons} == {"dense", *controls}
    again = tk.run("iterative", task(), flops=0.3, rate=0.7, **common)
    assert again.now["segments_trained"] == 0
    assert again.record == run.record


NAMES = {
    "iterative": ({"levels": 2, "rewind": "3it"}, "iterative-digits-5c60e6c0"),
    "oneshot": ({"density": (0.5, 0.2)}, "oneshot-digits-3f42e808"),
    "gradual": ({"density": 0.2}, "gradual-digits-235e1123"),
    "early": ({"density": 0.2}, "early-digits-13329e9f"),
    "acdc": ({"density": 0.2}, "acdc-digits-ec3e6b4f"),
    "dynamic": ({"density": 0.2}, "dynamic-digits-916639e5"),
    "regularised": ({"density": 0.2}, "regularised-digits-905df519"),
    "l0": ({"density": 0.2}, "l0-digits-09c8481a"),
    "continuous": ({"rounds": 2}, "continuous-digits-780cce41"),
    "stochastic": ({"density": 0.2}, "stochastic-digits-655d6cc9"),
    "concrete": ({"density": 0.2}, "concrete-digits-53c6198a"),
}
"""Of runs of before there were budgets, as they were called then."""


@pytest.mark.parametrize("name", NAMES)
def test_runs_by_density_are_called_what_they_were(name: str) -> None:
    given, called = NAMES[name]
    settings = decode_settings(given, tk.search.method(name).Settings, what=name)[0]
    assert build_request(name, "digits", settings, replicates=3).name == called


MASKS = {
    "iterative": ({"levels": 1}, "730ddc6d", "79175311"),
    "oneshot": ({"density": 0.2, "distribution": "erk"}, "4cfbbac1", "710dea1c"),
    "gradual": ({"density": 0.2, "keep_at_least": 2}, "7e17e079", "bcdc0b84"),
}
"""Keys of a mask by density, and of one among those that it keeps, as they were before budgets went by value."""


def numbered(task: tk.Task) -> dict[str, torch.Tensor]:
    """Weights that are the same bits on every processor, as trained ones are not."""
    return {
        name: (torch.arange(value.numel()) % 251 - 125).view(value.shape).to(value.dtype) / 256
        for name, value in task.build().state_dict().items()
    }


@pytest.mark.parametrize("name", MASKS)
def test_masks_by_density_have_the_keys_that_they_had(name: str, tmp_path: Path) -> None:
    given, *keys = MASKS[name]
    settings = decode_settings(given, tk.search.method(name).Settings, what=name)[0]
    with tk.Lab(tmp_path) as lab:
        replicate = Replicate(lab, task(), task().recipe.changed(length="4it"), Seeds(0, 0, 0))
        begun = lab.train(replicate.dense_training.shortened_to(0), label="initialisation", measure=False)
        weights = replace(begun, model=lab.store.put_tensors(numbered(task())))
        scope = prunable_scope(replicate, settings)
        mask = prune(replicate, weights, scope, 0.4, settings)
        prune(replicate, weights, scope, 0.2, settings, within=mask)
        assert sorted(path.stem[:8] for path in (tmp_path / "memo" / "masks").rglob("*.json")) == sorted(keys)


def test_another_budget_is_another_key() -> None:
    names = set()
    for settings in (
        {"flops": 0.5},
        {"flops": 0.4},
        {"flops": 0.5, "unweighed": True},
        {"density": 0.5},
        {"density": 0.5, "equal_cost": "steps"},
    ):
        chosen = decode_settings(settings, tk.search.oneshot.Settings, what="")[0]
        names.add(build_request("oneshot", "digits", chosen).name)
    assert len(names) == 5


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("oneshot", {"flops": 0.5, "density": 0.1}, "either density or flops"),
        ("oneshot", {"flops": 25}, "25 %\\? write 25% or 0.25"),
        ("oneshot", {"flops": 0.5, "structure": "rows:4"}, "leave structure rows:4 out"),
        ("oneshot", {"density": 0.5, "unweighed": True}, "unweighed needs a budget"),
        ("oneshot", {"flops": 0.5, "unweighed": True, "distribution": "erk"}, "ranks all layers together"),
        ("oneshot", {"flops": (0.5, 0.5)}, "each share once"),
        ("decorators", {"flops": 0.5}, "cannot aim at .* these methods can: .*concrete.*continuous.*oneshot"),
    ],
)
def test_what_cannot_be_meant_is_refused(method: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        tk.run(method, task(), store=tmp_path, **settings)
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").rglob("*.json"))


def test_a_budget_below_the_floor_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(LayerCollapseError, match=r"one weight in each of 5 layers, of which features.0.weight takes"):
        tk.run("iterative", task(), flops=0.0001, store=tmp_path)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_control_that_costs_more_is_refused() -> None:
    from ticketry.core.mask import Mask
    from ticketry.evidence.controls import draw_control_mask

    ticket = Mask({"a": torch.tensor([True, False]), "b": torch.tensor([True, False])})
    made = draw_control_mask("random_prune", ticket, tk.search.Seeds(), Drawing(0, prices={"a": 3, "b": 1}))
    assert made.kept >= 2


@pytest.mark.slow
def test_a_ticket_of_a_budget_is_verified_beside_dense_networks_of_its_cost(tmp_path: Path) -> None:
    common: dict[str, Any] = {"controls": (), "store": tmp_path, "replicates": 1, "recipe": {"length": "8it"}}
    run = tk.run("iterative", task(), flops=0.7, rate=0.3, **common)
    ticket = run.tickets[-1].path
    told = tk.verify(ticket, store=tmp_path, seeds=2, controls=("random_prune", "dense_of_flops"))
    networks = {one.role: one for one in told.networks}
    assert networks["dense_of_flops"].model.startswith("conv-2@")
    assert networks["dense_of_flops"].budget == networks["ticket"].budget
    about = tk.verify(ticket, store=tmp_path, seeds=2, about="procedure", controls=("uniform", "erk", "dense_of_flops"))
    assert {one.role for one in about.networks} == {"ticket", "dense", "uniform", "erk", "dense_of_flops"}


@pytest.mark.slow
def test_a_dense_network_that_has_no_other_widths_is_refused(tmp_path: Path) -> None:
    common: dict[str, Any] = {"store": tmp_path, "recipe": {"length": "2it"}, "replicates": 1}
    with pytest.raises(UsageError, match="dense_of_flops:conv-99"):
        tk.run("oneshot", task(), flops=0.5, controls=("dense_of_flops:conv-99",), **common)


def test_the_network_of_a_dense_rival_is_no_module() -> None:
    settings = decode_settings({"flops": (0.5,)}, tk.search.method("oneshot").Settings, what="oneshot")[0]
    request = replace(build_request("oneshot", "digits", settings), controls=("dense_of_flops:conv-4",))
    assert request.sources == {}
    assert request.name.startswith("oneshot-digits-")
