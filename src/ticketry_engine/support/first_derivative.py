"""Backward passes that have no derivative themselves, and say so whatever is asked of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def first_derivative_only(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """`torch.autograd.function.once_differentiable`, without its gap.

    Torch's mark refuses a second derivative only where the gradients that come in have one themselves. Those of a plain
    sum have none: a penalty on the gradients of a network's outputs would be taken as a constant, without a word.
    """
    marked = once_differentiable(backward)

    @functools.wraps(backward)
    def told(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = marked(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if one is None else _refusing(one) for one in found)

    return told


def _refusing(gradient: Tensor) -> Tensor:
    made: Tensor = _Refusal.apply(gradient.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return made


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(
            "trying to differentiate twice: kernels of ticketry have first derivatives alone (a penalty on gradients,"
            " or a product with the Hessian, needs the model itself, without them)"
        )
