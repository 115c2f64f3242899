"""Penalties that make some weights, filters or norm scales small while a network trains, so that they can go."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ticketry.errors import UsageError

PENALTIES = ("l1_scales", "hoyer_square", "group_hoyer_square")


def check_penalty(kind: str) -> str:
    """The word itself; `UsageError` if it is not known."""
    if kind not in PENALTIES:
        raise UsageError(f"penalty {kind!r} is not known: {', '.join(PENALTIES)}")
    return kind


def penalty(kind: str, weights: Iterable[Tensor]) -> Tensor:
    """What a penalty adds to the loss, for a strength of 1: a scalar, differentiable in the weights.

    - ``l1_scales``: the sum of |w|. Of the scales of norms: network slimming (Liu et al. 2017, arXiv 1708.06519,
      equation 1), and the penalty of Gate Decorators on their gates (You et al. 2019, arXiv 1909.08174).
    - ``hoyer_square``: (sum |w|)² / sum w² of each tensor, summed over tensors: between 1 and the number of elements,
      whatever their scale (Yang, Wen & Li, "DeepHoyer", 2020, arXiv 1908.09979, section 3.1).
    - ``group_hoyer_square``: the same of the L2 norms of rows (filters, units; dimension 0) plus that of columns (input
      channels; dimension 1) of each tensor (section 3.2 and the authors' code). Coupled tensors are not put together.

    A tensor that is all 0 adds nothing.

    Raises:
        UsageError: for an unknown kind, or a tensor without two dimensions where groups are asked for.
    """
    check_penalty(kind)
    values = []
    for weight in weights:
        if kind == "l1_scales":
            values.append(weight.abs().sum())
            continue
        squares = weight.square().sum()
        sums = [weight.abs().sum()] if kind == "hoyer_square" else [norms.sum() for norms in _group_norms(weight)]
        values.append(sum((one.square() for one in sums), torch.zeros_like(squares)) / _not_zero(squares))
    return torch.stack(values).sum() if values else torch.zeros(())


@torch.no_grad()
def add_gradients_(kind: str, strength: float, parameters: Iterable[Tensor]) -> None:
    """Add strength times the gradient of `penalty` to `parameter.grad` of each; where there is none, it is made.

    In closed form, which takes less time and memory than autograd, and in place. A weight, or a group, that is exactly
    0 gets no gradient: what a mask holds at 0 stays there.

    Raises:
        UsageError: as `penalty`.
    """
    check_penalty(kind)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if kind == "l1_scales":
            parameter.grad.add_(parameter.sign(), alpha=strength)
            continue
        squares = _not_zero(parameter.square().sum())
        if kind == "hoyer_square":
            total = parameter.abs().sum() / squares
            parameter.grad.addcmul_(parameter.sign(), total, value=2 * strength)
            parameter.grad.addcmul_(parameter, total.square(), value=-2 * strength)
            continue
        rows, columns = _group_norms(parameter)
        one, other = rows.sum(), columns.sum()
        shape = [1] * (parameter.dim() - 2)
        factor = (
            (one / rows).masked_fill_(rows == 0, 0).view(-1, 1, *shape)
            + (other / columns).masked_fill_(columns == 0, 0).view(1, -1, *shape)
            - (one.square() + other.square()) / squares
        )
        parameter.grad.addcmul_(parameter, factor.mul_(2 / squares), value=strength)


def _group_norms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """L2 norms of rows and of columns."""
    if weight.dim() < 2:
        raise UsageError(
            f"the penalty of groups is of weights with rows and columns, not of shape {tuple(weight.shape)}: leave"
            " biases and norms out"
        )
    inner = list(range(2, weight.dim()))
    return torch.linalg.vector_norm(weight, dim=[1, *inner]), torch.linalg.vector_norm(weight, dim=[0, *inner])


def _not_zero(squares: Tensor) -> Tensor:
    return squares.clamp_min(torch.finfo(squares.dtype).tiny)
