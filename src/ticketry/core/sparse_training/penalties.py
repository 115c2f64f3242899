"""Sparsity penalties, which shrink weights, blocks, filters or scales of norms, so that these can be pruned."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor

from ticketry.choices import check_choice
from ticketry.core.structure.layout import Blocks
from ticketry.errors import UsageError

PENALTIES = ("l1_scales", "hoyer_square", "group_hoyer_square", "group_lasso")
BLOCK_PENALTIES = ("group_hoyer_square", "group_lasso")
"""Penalties that can be applied to the blocks of a pattern."""


def check_penalty(kind: str, *, blocks: bool | None = None) -> str:
    """Return `kind`; raise `UsageError` if it is not the name of a penalty, or if `blocks` rules this penalty out.

    `blocks` says whether the penalty will be applied to the blocks of a pattern; None if this is not known yet.
    """
    check_choice("penalty", kind, PENALTIES)
    if blocks and kind not in BLOCK_PENALTIES:
        raise UsageError(f"penalty {kind} is not of blocks: with a pattern choose {' or '.join(BLOCK_PENALTIES)}")
    if blocks is False and kind == "group_lasso":
        raise UsageError("penalty group_lasso is of the blocks of a pattern: say which, such as 4x1, 16x1 or channel")
    return kind


def penalty(kind: str, weights: Iterable[Tensor], blocks: Iterable[Blocks] | None = None) -> Tensor:
    """Return the penalty, to be added to the loss with a factor: a scalar, differentiable in the weights.

    - ``l1_scales``: the sum of |w|. Applied to the scales of norms, this is network slimming (Liu et al. 2017, arXiv
      1708.06519, equation 1); applied to gates, the penalty of Gate Decorators (You et al. 2019, arXiv 1909.08174).
    - ``hoyer_square``: (sum |w|)² / sum w² of each tensor, summed over tensors. For each tensor, this is between 1 and
      the number of elements, at any scale (Yang, Wen & Li, "DeepHoyer", 2020, arXiv 1908.09979, section 3.1).
    - ``group_hoyer_square``: ``hoyer_square`` of the L2 norms of a tensor's rows (filters, units; dimension 0) plus
      ``hoyer_square`` of the L2 norms of its columns (input channels; dimension 1), summed over tensors (section 3.2
      and the authors' code). With `blocks`, ``hoyer_square`` of the L2 norms of the blocks instead.
    - ``group_lasso``, with `blocks` only: the sum over blocks of sqrt(size) * L2 norm (Yuan & Lin 2006). Wen et al.
      2016 (arXiv 1608.03665) apply it to filters and channels, without sqrt(size).

    A tensor of zeros adds nothing.
    """
    check_penalty(kind, blocks=blocks is not None)
    values = []
    for weight, own in zip(weights, repeat(None) if blocks is None else blocks, strict=False):
        if kind == "l1_scales":
            values.append(weight.abs().sum())
            continue
        if kind == "group_lasso":
            assert own is not None
            values.append((_block_norms(weight, own) * own.sizes.to(weight).sqrt()).sum())
            continue
        squares = weight.square().sum()
        if own is not None:
            sums = [_block_norms(weight, own).sum()]
        else:
            sums = (
                [weight.abs().sum()]
                if kind == "hoyer_square"
                else [norms.sum() for norms in _row_and_column_norms(weight)]
            )
        values.append(sum((one.square() for one in sums), torch.zeros_like(squares)) / _raise_zeros_to_tiny(squares))
    return torch.stack(values).sum() if values else torch.zeros(())


@torch.no_grad()
def add_penalty_gradients_(
    kind: str, strength: float, parameters: Iterable[Tensor], blocks: Iterable[Blocks] | None = None
) -> None:
    """Add `strength` times the gradient of `penalty` to the gradient of each parameter, in place.

    A parameter without a gradient gets one. The gradient is computed by a formula, which takes less time and memory
    than autograd. For a weight or group that is exactly 0 it is 0, so pruned weights stay 0.
    """
    check_penalty(kind, blocks=blocks is not None)
    for parameter, own in zip(parameters, repeat(None) if blocks is None else blocks, strict=False):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if kind == "l1_scales":
            parameter.grad.add_(parameter.sign(), alpha=strength)
            continue
        if own is not None:
            _add_block_gradients_(kind, strength, parameter, own)
            continue
        squares = _raise_zeros_to_tiny(parameter.square().sum())
        if kind == "hoyer_square":
            total = parameter.abs().sum() / squares
            parameter.grad.addcmul_(parameter.sign(), total, value=2 * strength)
            parameter.grad.addcmul_(parameter, total.square(), value=-2 * strength)
            continue
        rows, columns = _row_and_column_norms(parameter)
        one, other = rows.sum(), columns.sum()
        shape = [1] * (parameter.dim() - 2)
        factor = (
            (one / rows).masked_fill_(rows == 0, 0).view(-1, 1, *shape)
            + (other / columns).masked_fill_(columns == 0, 0).view(1, -1, *shape)
            - (one.square() + other.square()) / squares
        )
        parameter.grad.addcmul_(parameter, factor.mul_(2 / squares), value=strength)


def _add_block_gradients_(kind: str, strength: float, parameter: Tensor, blocks: Blocks) -> None:
    assert parameter.grad is not None
    norms = _block_norms(parameter, blocks)
    if kind == "group_lasso":
        factor = (blocks.sizes.to(parameter).sqrt() / norms).masked_fill_(norms == 0, 0)
    else:
        total, squares = norms.sum(), _raise_zeros_to_tiny(parameter.square().sum())
        factor = ((total / norms).masked_fill_(norms == 0, 0) - total.square() / squares).mul_(2 / squares)
    views = zip(
        blocks.weight_views(parameter.grad), blocks.weight_views(parameter), blocks.block_views(factor), strict=True
    )
    for gradient, weight, own in views:
        gradient.addcmul_(weight, own, value=strength)


def _block_norms(weight: Tensor, blocks: Blocks) -> Tensor:
    """Return the L2 norm of each block, in the shape `Blocks.shape`; the gradient of a block of zeros is 0."""
    squares = blocks.sum_by_block(weight.square())
    zero = squares == 0
    return squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _row_and_column_norms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L2 norms of the rows (dimension 0) and of the columns (dimension 1) of a weight."""
    if weight.dim() < 2:
        raise UsageError(
            f"a group penalty needs weights with rows and columns, got shape {tuple(weight.shape)}: leave biases and"
            " norms out"
        )
    inner = list(range(2, weight.dim()))
    return torch.linalg.vector_norm(weight, dim=[1, *inner]), torch.linalg.vector_norm(weight, dim=[0, *inner])


def _raise_zeros_to_tiny(squares: Tensor) -> Tensor:
    return squares.clamp_min(torch.finfo(squares.dtype).tiny)
