"""Provides autograd helpers: an error for second derivatives of kernels, and marks on masked gradients."""

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
    """Return `backward` with an error for every second derivative, also where `once_differentiable` raises none.

    `torch.autograd.function.once_differentiable` raises an error only if the incoming gradients require gradients. The
    gradients of a plain sum do not require gradients, so a penalty on gradients would silently count as a constant.
    """
    marked = once_differentiable(backward)

    @functools.wraps(backward)
    def refuse_second(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = marked(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if one is None else _refuse_second_derivative(one) for one in found)

    return refuse_second


def _refuse_second_derivative(gradient: Tensor) -> Tensor:
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


# -- marks on masked gradients, which need not be masked again ---------------------------------------------------------


_MARK = "_ticketry_masked"


def mark_masked(gradient: Tensor, mask: Tensor) -> None:
    """Mark a gradient as a tensor that is 0 wherever `mask` is False."""
    setattr(gradient, _MARK, (mask, gradient._version))


def is_masked(gradient: Tensor, mask: Tensor) -> bool:
    """Return whether `mark_masked` marked the gradient with this mask, and no in-place operation changed it since."""
    marked = getattr(gradient, _MARK, None)
    return marked is not None and marked[0] is mask and marked[1] == gradient._version
