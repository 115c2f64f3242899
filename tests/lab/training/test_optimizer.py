"""Optimisers of a recipe, of parameters that torch has no fused form for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.lab.training.state import load_optimizer, make_optimizer, optimizer_tensors


class Turned(nn.Module):
    """Two layers with complex factors between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.view_as_complex(self.a(x).view(-1, 4, 2)) * self.turn
        output: torch.Tensor = self.b(torch.view_as_real(turned).flatten(1).relu())
        return output


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
        optimizer.step()


def twins() -> tuple[Turned, Turned]:
    torch.manual_seed(0)
    one, other = Turned(), Turned()
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_complex_parameters_are_trained_as_by_torch(kind: Any) -> None:
    """By torch's plain form, one parameter after the other; and on from a stored state."""
    recipe = tk.Recipe(optimizer=kind, lr=0.05, weight_decay=0.01)
    one, other = twins()
    if kind == "sgd":
        plain: Any = torch.optim.SGD(
            other.parameters(), 0.05, recipe.momentum, nesterov=recipe.nesterov, weight_decay=0.01, foreach=False
        )
    else:
        made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        betas = (recipe.momentum, recipe.beta2)
        plain = made(other.parameters(), 0.05, betas, weight_decay=0.01, foreach=False)
    optimizer = make_optimizer(recipe, one)
    steps(one, optimizer, 0, 3)
    again = make_optimizer(recipe, one)
    load_optimizer(again, one, {name: value.clone() for name, value in optimizer_tensors(optimizer, one).items()})
    steps(one, again, 3, 6)
    steps(other, plain, 0, 6)
    begun = twins()[0].turn
    assert not torch.allclose(one.turn, begun, atol=1e-3)
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_others_are_trained_in_the_fused_form() -> None:
    for kind in ("sgd", "adam", "adamw"):
        optimizer = make_optimizer(tk.Recipe(optimizer=kind), nn.Linear(2, 2))  # type: ignore[arg-type]
        assert optimizer.defaults["fused"]
