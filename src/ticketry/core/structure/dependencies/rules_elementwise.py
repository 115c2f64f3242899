"""Rules for what is done element by element, for new tensors and for reductions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ticketry.core.structure.dependencies.axes import Axes, Ids
from ticketry.core.structure.dependencies.trace import Call, Rule, Trace, merge, outputs_of, unary, unlabelled
from ticketry_engine.support.process_state import private_random_state


def pointwise(t: Trace, call: Call) -> Any:
    """Each element of the output is of the elements at its place: operands are met index by index."""
    operands = [(tensor, t.book.get(tensor)) for tensor in call.tensors]
    if not any(ids is not None for _, axes in operands for ids in axes.labels):
        return unlabelled(t, call)
    shape = np.broadcast_shapes(*(tuple(tensor.shape) for tensor, _ in operands))
    merged = Axes.plain(len(shape))
    zeros: dict[int, tuple[int, ...]] = {}
    for dimension in range(-len(shape), 0):
        parts = [
            (index, axes.labels[dimension], axes.zero[dimension])
            for index, (tensor, axes) in enumerate(operands)
            if tensor.dim() >= -dimension and tensor.shape[dimension] == shape[dimension] > 1
        ]
        if call.name in ("add", "sub"):
            note_sum(t, [(operands[index][0], ids) for index, ids, _ in parts])
        ids = merge(t, [ids for _, ids, _ in parts])
        merged.labels[dimension] = ids
        if ids is not None:
            zeros[dimension] = tuple(index for index, _, zero in parts if zero)
    looked_at = {choice: _value_at_zero(call, choice) for choice in set(zeros.values())}
    for dimension, choice in zeros.items():
        merged.zero[dimension] = looked_at[choice] == 0
        if looked_at[choice] is None:
            t.freeze(merged.labels[dimension], f"{call.func} of a removed channel's zeros is not finite")
    result = call.run()
    if call.writes and not all(merged.zero[dimension] for dimension in zeros):
        for tensor in call.tensors[:1]:
            t.book.forget_zeros(tensor)
    for output in outputs_of(result):
        t.book.set(output, merged if tuple(output.shape) == tuple(shape) else Axes.plain(output.dim()))
    return result


def note_sum(t: Trace, parts: Iterable[tuple[Tensor, Ids | None]]) -> None:
    """Activations of different channels are about to be added: a residual stream."""
    met = [ids for tensor, ids in parts if ids is not None and tensor.untyped_storage().data_ptr() not in t.weights]
    t.sums += [
        other[t.labels.find(other) != t.labels.find(one)] for one, other in pairwise(met) if len(one) == len(other)
    ]


def _value_at_zero(call: Call, choice: tuple[int, ...]) -> float | None:
    """What the operation gives where the chosen operands are 0: 0, something else (1), or nothing finite (None).

    Looked at with the other operands as they are, and with random numbers and contrary choices in their place.
    """
    if not choice:
        return 1
    found = [_tried(call, choice, scrambled) for scrambled in (False, True)]
    if not found[0].is_floating_point():
        return 1
    if not bool(torch.isfinite(found[0]).all()):
        return None
    return 0 if all(not bool(value.any()) for value in found) else 1


def _tried(call: Call, choice: tuple[int, ...], scrambled: bool) -> Tensor:
    count, alone = -1, len(choice) == len(call.tensors)

    def twin(value: object) -> object:
        nonlocal count
        if not isinstance(value, Tensor):
            return value
        count += 1
        if count in choice:
            return value.new_zeros((1,) * value.dim()) if alone else torch.zeros_like(value)
        if scrambled and value.dtype == torch.bool:
            return ~value
        return torch.randn_like(value) if scrambled and value.is_floating_point() else value.clone()

    with private_random_state([]):
        arguments, options = tree_map(twin, (call.args, call.kwargs))
        return outputs_of(call.func(*arguments, **options))[0]


def made(t: Trace, call: Call) -> Any:
    """A tensor made on the way, such as a first hidden state of zeros: its width may be that of any channels."""
    result = call.run()
    labels = [t.labels.new(size) if size > 1 else None for size in result.shape]
    for ids in labels:
        t.note_number(ids)
    t.book.set(result, Axes(labels, [call.name in ("zeros", "new_zeros")] * result.dim()))
    return result


@unary
def like(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """A tensor of the shape of another."""
    axes.zero = [call.name == "zeros_like"] * result.dim()
    return axes


def overwritten(t: Trace, call: Call) -> Any:
    """Random numbers, or one number, are written to a tensor."""
    result = call.run()
    t.book.forget_zeros(call.tensors[0])
    return result


def reduction(t: Trace, call: Call) -> Any:
    """Some dimensions are reduced. Of a channel's dimension only a sum, or a norm, leaves out zeros unnoticed."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    reduced = reduced_dimensions(call.argument("dim"), tensor.dim())
    for dimension in reduced:
        if not (_sums(call) and axes.zero[dimension]):
            t.freeze(axes.labels[dimension], f"{call.func} reduces it")
    result = call.run()
    for output in outputs_of(result):
        keeps = output.dim() == tensor.dim()
        order = [-1 if d in reduced else d for d in range(tensor.dim()) if keeps or d not in reduced]
        axes_out = axes.take(order)
        if call.name not in ("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "norm"):
            axes_out.zero = [False] * len(order)
        t.book.set(output, axes_out if len(order) == output.dim() else Axes.plain(output.dim()))
    return result


def _sums(call: Call) -> bool:
    power = {"linalg_vector_norm": call.argument("ord"), "norm": call.argument("p")}
    return call.name == "sum" or (call.name in power and float(2 if power[call.name] is None else power[call.name]) > 0)


def reduced_dimensions(dim: object, dimensions: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(dimensions))
    listed: list[Any] = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    return [int(d) % dimensions for d in listed] if dimensions else []


@unary
def softmax(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Sums over one dimension, in which a removed channel would take its share."""
    dimension = int(call.argument("dim")) % max(len(shape), 1)
    t.freeze(axes.labels[dimension], f"{call.func} normalises over it")
    axes.labels[dimension] = None
    axes.zero = [False] * len(shape)
    return axes


RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "_to_copy", "detach", "alias", "copy", "_prelu_kernel"), pointwise),
    **dict.fromkeys(("native_dropout", "hardswish", "hardsigmoid", "silu", "mish", "contiguous"), pointwise),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "rand", "randn"), made),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), made),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), like),
    **dict.fromkeys(("bernoulli", "fill", "uniform", "normal", "zero"), overwritten),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "max", "min", "logsumexp", "any", "all"), reduction),
    **dict.fromkeys(("argmax", "argmin", "var_mean", "linalg_vector_norm", "norm"), reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("lift_fresh", "arange", "scalar_tensor", "linspace", "eye"), unlabelled),
}
