"""What each ATen operation does to labels: the choice of the rule, and the rules for whole families.

A rule runs the operation once and sets the axes of its outputs. It must make sure that, whatever channels are removed,
the surviving part of each output in the masked model is the output of the shrunk model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ticketry.core.structure.axes import Axes
from ticketry.core.structure.labels import Ids
from ticketry.core.structure.trace import Trace
from ticketry.errors import ControlFlowError


@dataclass(frozen=True)
class Call:
    """An operation about to run."""

    func: Any
    name: str
    """Without namespace, overload and the underscore of in-place forms."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        name = func._schema.name.partition("::")[2]
        return cls(func, name if name.startswith("_") else name.rstrip("_"), args, kwargs)

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def argument(self, name: str) -> Any:
        """An argument by the name in the operation's schema, given or default."""
        for position, known in enumerate(self.func._schema.arguments):
            if known.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, known.default_value)
        return None

    @cached_property
    def tensors(self) -> list[Tensor]:
        return _tensors([*self.args, *self.kwargs.values()])

    @property
    def writes(self) -> bool:
        """Whether it writes to an argument."""
        return bool(self.func._schema.is_mutable)


Rule = Callable[[Trace, Call], Any]


class Rules:
    """Applies the rules to one run of a model."""

    def __init__(self, trace: Trace) -> None:
        from ticketry.core.structure import rules_layer, rules_part, rules_shape

        self._trace = trace
        self._by_name: dict[str, Rule] = {
            **FAMILIES,
            **rules_shape.RULES,
            **rules_part.RULES,
            **rules_layer.RULES,
        }

    def apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        t, call = self._trace, Call.of(func, args, kwargs)
        tensors = call.tensors
        for tensor in tensors:
            if tensor.layout == torch.strided:
                t.seen.add(tensor.untyped_storage().data_ptr())
        rule = self._by_name.get(call.name)
        if t.sparing is not None:
            rule = unknown
        elif call.name in LOOKS and t.provenance.activation(tensors):
            raise _decides(t, call)
        elif rule is None:
            rule = pointwise if torch.Tag.pointwise in func.tags else unknown
        result = rule(t, call)
        t.provenance.computed(tensors, outputs_of(result))
        return result


LOOKS = ("_local_scalar_dense", "equal")
"""Operations that hand values to the user's code: `if x.sum() > 0`, `x.item()`, `torch.equal`."""


def _decides(t: Trace, call: Call) -> ControlFlowError:
    model = type(t.model).__name__
    advice = f"spare=({t.where!r},) spares it: all channels that enter or leave it stay"
    if not t.where:
        advice = "move that decision into a module of its own, whose name `spare=` then takes"
    return ControlFlowError(
        f"{model} looks at its activations to decide what to do ({call.func} in {t.where or model}): what it would do"
        f" with other inputs cannot be followed; {advice}",
        t.where,
    )


def outputs_of(result: Any) -> list[Tensor]:
    return _tensors([result])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """All tensors among an operation's arguments or results, and in lists of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def unknown(t: Trace, call: Call) -> Any:
    """No rule, or not to be looked into: what flows in stays."""
    why = f"{call.func} cannot be followed" if t.sparing is None else f"{t.sparing} is spared"
    for tensor in call.tensors:
        t.freeze_axes(t.book.get(tensor), range(tensor.dim()), why)
        if call.writes:
            t.book.forget_zeros(tensor)
    result = call.run()
    for output in outputs_of(result):
        t.book.set(output, Axes.plain(output.dim()))
    return result


# -- element by element -----------------------------------------------------------------------------------------------


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


def merge(t: Trace, several: Iterable[Ids | None]) -> Ids | None:
    """The labels of axes that are all met index by index; None if there are none."""
    parts = list(several)
    if not parts:
        return None
    ids = parts[0]
    for other in parts[1:]:
        ids = t.join(ids, other)
    if ids is None:
        for other in parts:
            t.join(None, other)
    return ids


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

    with torch.random.fork_rng(devices=[]):
        arguments, options = tree_map(twin, (call.args, call.kwargs))
        return outputs_of(call.func(*arguments, **options))[0]


def unlabelled(t: Trace, call: Call) -> Any:
    result = call.run()
    for output in outputs_of(result):
        t.book.set(output, Axes.plain(output.dim()))
    return result


# -- new tensors ------------------------------------------------------------------------------------------------------


def made(t: Trace, call: Call) -> Any:
    """A tensor made on the way, such as a first hidden state of zeros: its width may be that of any channels."""
    result = call.run()
    labels = [t.labels.new(size) if size > 1 else None for size in result.shape]
    for ids in labels:
        t.note_number(ids)
    t.book.set(result, Axes(labels, [call.name in ("zeros", "new_zeros")] * result.dim()))
    return result


def like(t: Trace, call: Call) -> Any:
    """A tensor of the shape of another."""
    axes = t.book.get(call.tensors[0])
    result = call.run()
    axes.zero = [call.name == "zeros_like"] * result.dim()
    t.book.set(result, axes)
    return result


def overwritten(t: Trace, call: Call) -> Any:
    """Random numbers, or one number, are written to a tensor."""
    result = call.run()
    t.book.forget_zeros(call.tensors[0])
    return result


# -- reductions -------------------------------------------------------------------------------------------------------


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
        if call.name not in ("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm"):
            axes_out.zero = [False] * len(order)
        t.book.set(output, axes_out if len(order) == output.dim() else Axes.plain(output.dim()))
    return result


def _sums(call: Call) -> bool:
    return call.name == "sum" or (call.name == "linalg_vector_norm" and float(call.argument("ord")) > 0)


def reduced_dimensions(dim: object, dimensions: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(dimensions))
    listed: list[Any] = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    return [int(d) % dimensions for d in listed] if dimensions else []


def softmax(t: Trace, call: Call) -> Any:
    """Sums over one dimension, in which a removed channel would take its share."""
    tensor = call.tensors[0]
    axes = t.book.get(tensor)
    dimension = int(call.argument("dim")) % max(tensor.dim(), 1)
    t.freeze(axes.labels[dimension], f"{call.func} normalises over it")
    axes.labels[dimension] = None
    axes.zero = [False] * tensor.dim()
    result = call.run()
    t.book.set(result, axes)
    return result


FAMILIES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "_to_copy", "detach", "alias", "copy", "_prelu_kernel"), pointwise),
    **dict.fromkeys(("native_dropout", "hardswish", "hardsigmoid", "silu", "mish", "contiguous"), pointwise),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "rand", "randn"), made),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), made),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), like),
    **dict.fromkeys(("bernoulli", "fill", "uniform", "normal", "zero"), overwritten),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "max", "min", "logsumexp", "any", "all"), reduction),
    **dict.fromkeys(("argmax", "argmin", "var_mean", "linalg_vector_norm"), reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("lift_fresh", "arange", "scalar_tensor", "linspace", "eye"), unlabelled),
}
