"""Backward passes without a derivative: the first is as ever, a second is refused in every way it can be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ticketry_engine.support.training_hooks import first_derivative_only


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return 2 * ctx.saved_tensors[0] * gradient, None


def _square(x: Tensor) -> Tensor:
    return _Square.apply(x, torch.zeros(1, requires_grad=True))


@pytest.mark.parametrize("kept", [False, True])
def test_the_first_derivative(kept: bool) -> None:
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    (found,) = torch.autograd.grad(_square(x).sum(), x, create_graph=kept)
    assert found.tolist() == [2.0, -6.0]
    assert found.requires_grad == kept


@pytest.mark.parametrize("weight", [torch.ones(2), torch.ones(2, requires_grad=True)], ids=["constant", "graph"])
def test_a_second_one_is_refused_also_where_the_gradient_that_comes_in_is_a_constant(weight: Tensor) -> None:
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    (found,) = torch.autograd.grad((weight * _square(x)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (_square(x).sum() + found.square().sum()).backward()
