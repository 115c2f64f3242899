"""Make batches from example inputs, and compare outputs of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ticketry_engine.errors import EngineError, UsageError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of a model's arguments, or a dict of them by name."""


def as_arguments(inputs: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Return a tensor, or a tuple or list of arguments, as a tuple of arguments."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def batch_of(inputs: Inputs) -> int:
    """Return the number of examples: the first size of the inputs' first tensor.

    Raises:
        UsageError: if no tensor has a dimension.
    """
    for leaf in tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else inputs)[0]:
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise UsageError("the inputs hold no tensor that has a batch dimension")


@overload
def at_batch(inputs: Tensor | tuple[Any, ...], batch: int, seed: int = 0) -> tuple[Any, ...]: ...


@overload
def at_batch(inputs: Mapping[str, Any], batch: int, seed: int = 0) -> dict[str, Any]: ...


def at_batch(inputs: Inputs, batch: int, seed: int = 0) -> tuple[Any, ...] | dict[str, Any]:
    """Return inputs with `batch` examples: the given ones repeated, with noise added to real numbers.

    The noise, half the standard deviation of the inputs, makes all examples different, to detect engines that mix them
    up. Only tensors whose first size is the batch are changed.
    """
    arguments = dict(inputs) if isinstance(inputs, Mapping) else as_arguments(inputs)
    examples = batch_of(arguments)
    if not examples:
        raise UsageError("the example inputs hold no example: their batch has the size 0")
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = tree_flatten(arguments)

    def to_batch(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != examples:
            return leaf
        rows = leaf[torch.arange(batch) % examples].contiguous()
        if not leaf.is_floating_point():
            return rows
        finite = leaf[leaf.isfinite()]  # masks of attention hold -inf
        spread = float(finite.std()) if finite.numel() > 1 else 1.0
        return rows + 0.5 * spread * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)

    whole: tuple[Any, ...] | dict[str, Any] = tree_unflatten([to_batch(leaf) for leaf in leaves], spec)
    return whole


def outputs_of(to_batch: Any) -> list[Tensor]:
    """Yield the tensors in a model's output, in order."""
    return [leaf for leaf in tree_flatten(to_batch)[0] if isinstance(leaf, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the relative error of outputs: the maximum over tensors of norm(found - expected) / norm(expected).

    The error is infinite if infinities differ or NaN was found. A tensor that should be 0 everywhere is compared with
    1.

    Raises:
        EngineError: if the number of tensors or their shapes differ, or NaN is expected.
    """
    shapes = [tuple(tensor.shape) for tensor in found], [tuple(tensor.shape) for tensor in expected]
    if shapes[0] != shapes[1]:
        raise EngineError(f"the outputs have the shapes {shapes[0]}, not {shapes[1]}")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        to_batch, exact = (_as_real_numbers(tensor).double() for tensor in (one, other))
        if exact.isnan().any():
            raise EngineError(
                "the model itself gives NaN (not a number), with which no output can be compared: look at its weights,"
                " at its buffers and at the example inputs"
            )
        same = exact.isinf() & (to_batch == exact)
        to_batch, exact = to_batch.masked_fill(same, 0), exact.masked_fill(same, 0)
        error = float((to_batch - exact).norm() / (exact.norm() or 1.0))
        worst = max(worst, error) if error == error else float("inf")
    return worst


def _as_real_numbers(tensor: Tensor) -> Tensor:
    """Convert complex numbers to real and imaginary parts; `double` would drop the imaginary parts."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
