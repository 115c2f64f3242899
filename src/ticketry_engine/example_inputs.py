"""Changes the batch size of example inputs, and compares outputs of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ticketry_engine.errors import EngineError, UsageError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of a model's arguments, or a dict of a model's arguments by name."""


def to_argument_tuple(inputs: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Return `inputs`, a tensor or a sequence of arguments, as a tuple of arguments."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def batch_size_of(inputs: Inputs) -> int:
    """Return the number of examples, which is size 0 of the first input tensor that has an axis.

    Raise `UsageError` if no input tensor has an axis.
    """
    for leaf in tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else inputs)[0]:
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise UsageError("the inputs hold no tensor that has a batch dimension")


@overload
def resize_batch(inputs: Tensor | tuple[Any, ...], batch: int, seed: int = 0) -> tuple[Any, ...]: ...


@overload
def resize_batch(inputs: Mapping[str, Any], batch: int, seed: int = 0) -> dict[str, Any]: ...


def resize_batch(inputs: Inputs, batch: int, seed: int = 0) -> tuple[Any, ...] | dict[str, Any]:
    """Repeat the examples of `inputs` until there are `batch`, and add noise to floating-point tensors.

    Only tensors whose size 0 is the number of examples are changed. The noise has half the standard deviation of the
    tensor, and makes all examples different, so that a comparison of outputs detects engines that confuse examples.
    `seed` determines the noise.
    """
    arguments = dict(inputs) if isinstance(inputs, Mapping) else to_argument_tuple(inputs)
    examples = batch_size_of(arguments)
    if not examples:
        raise UsageError("the example inputs hold no example: their batch has the size 0")
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = tree_flatten(arguments)

    def resize_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != examples:
            return leaf
        rows = leaf[torch.arange(batch) % examples].contiguous()
        if not leaf.is_floating_point():
            return rows
        finite = leaf[leaf.isfinite()]  # masks of attention hold -inf
        spread = float(finite.std()) if finite.numel() > 1 else 1.0
        return rows + 0.5 * spread * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)

    whole: tuple[Any, ...] | dict[str, Any] = tree_unflatten([resize_leaf(leaf) for leaf in leaves], spec)
    return whole


def output_tensors(output: Any) -> list[Tensor]:
    """Return the tensors in a model's output, which may be a tensor or nested containers of tensors, in order."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the relative error of outputs: the maximum over tensors of norm(found - expected) / norm(expected).

    The error is infinite if infinities differ, or if `found` contains NaN. If an expected tensor is 0 everywhere, the
    divisor is 1.

    Raises:
        EngineError: if the number of tensors or their shapes differ, or if `expected` contains NaN.
    """
    shapes = [tuple(tensor.shape) for tensor in found], [tuple(tensor.shape) for tensor in expected]
    if shapes[0] != shapes[1]:
        raise EngineError(f"the outputs have the shapes {shapes[0]}, not {shapes[1]}")
    worst = 0.0
    for pair in zip(found, expected, strict=True):
        # Complex numbers are taken apart first, because `double` would drop their imaginary parts.
        made, exact = ((torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double() for x in pair)
        if exact.isnan().any():
            raise EngineError(
                "the model itself gives NaN (not a number), with which no output can be compared: look at its weights,"
                " at its buffers and at the example inputs"
            )
        same = exact.isinf() & (made == exact)
        made, exact = made.masked_fill(same, 0), exact.masked_fill(same, 0)
        error = float((made - exact).norm() / (exact.norm() or 1.0))
        worst = max(worst, error) if error == error else float("inf")
    return worst
