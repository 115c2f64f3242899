"""`check_score` passes good scores and finds what harms a network or whoever goes on after it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.testing import check_score


def magnitudes(model: nn.Module, scope: Any) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}


def doing(harm: Callable[[nn.Module], object]) -> Any:
    """Magnitudes, by a score that does something else first."""

    def score(model: nn.Module, scope: Any, *, batches: Any = None, loss: Any = None, seed: int = 0) -> Any:
        harm(model)
        return magnitudes(model, scope)

    return score


def giving(change: Callable[[Tensor], Any]) -> Any:
    """Magnitudes, changed."""

    def score(model: nn.Module, scope: Any, **_: Any) -> Any:
        return {name: change(values) for name, values in magnitudes(model, scope).items()}

    return score


def new_parameters(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def gradients(model: nn.Module) -> None:
    for one in model.parameters():
        one.grad = torch.zeros_like(one)


HARM: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "freezes": (lambda model: model.requires_grad_(False), "which parameters are trained"),
    "new parameters": (new_parameters, "the objects that are parameters"),
    "a hook": (lambda model: model[0].register_forward_hook(lambda *_: None), "the hooks of modules"),
    "a parameter's hook": (lambda model: model[0].weight.register_hook(lambda _: None), "the hooks of parameters"),
    "a draw": (lambda model: torch.rand(1), "torch's random state"),
    "Python's draw": (lambda model: random.random(), "Python's random state"),
    "no gradients": (lambda model: torch.set_grad_enabled(False), "whether gradients are taken"),
    "a mode": (lambda model: model.eval(), "each module's mode"),
    "a buffer": (lambda model: model[1].running_mean.add_(1.0), "weights, buffers and gradients"),
    "gradients": (gradients, "weights, buffers and gradients"),
}


@pytest.mark.parametrize("name", HARM)
def test_what_a_score_leaves_behind_is_found(name: str) -> None:
    harm, said = HARM[name]
    state, enabled = torch.get_rng_state(), torch.is_grad_enabled()
    with pytest.raises(AssertionError, match=said):
        check_score(doing(harm))
    torch.set_rng_state(state)
    assert torch.is_grad_enabled() == enabled


def test_infinite_scores_are_scores() -> None:
    """As docs/plugins.md says, and `prune` has it: they are kept before all others."""
    best = giving(lambda values: torch.where(values == values.max(), torch.inf, -torch.inf))
    check_score(best)
    model = nn.Linear(4, 4)
    largest = int(model.weight.abs().argmax())
    assert int(tk.prune(model, 1 / 16, score=best)["weight"].flatten().nonzero()) == largest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values * torch.nan, "real numbers, none of them NaN"),
        (lambda values: values * 1j, "real numbers, none of them NaN"),
        (lambda values: values.numpy(), "a tensor of its parameter's shape"),
        (lambda values: values.sum(), "a tensor of its parameter's shape"),
    ],
)
def test_other_answers_are_not(change: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_score(giving(change))


def test_a_network_with_gradients_and_frozen_layers_may_be_given() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    gradients(model)
    model[1].requires_grad_(False)
    check_score("magnitude", model)


def test_it_leaves_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    check_score("random")
    assert torch.equal(torch.get_rng_state(), state)
