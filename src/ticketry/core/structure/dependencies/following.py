"""Runs a model once and follows every index of every parameter through it.

The model runs on real numbers, under a dispatch mode that sees each ATen operation. A rule for each operation says
which labels become one channel and which must stay; an operation without a rule freezes all that flows into it. So
what is left free can be removed from all tensors at once without changing anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ticketry.core.scope import normal_name
from ticketry.core.structure.dependencies import rules_elementwise, rules_layer, rules_part, rules_shape
from ticketry.core.structure.dependencies.axes import Axes, Provenance
from ticketry.core.structure.dependencies.model_copies import (
    Arguments,
    EagerMode,
    fresh,
    plain_operations,
    run_model,
    sharing,
)
from ticketry.core.structure.dependencies.trace import NO_CHANNEL, Call, Rule, Site, Trace, outputs_of, unknown
from ticketry.errors import ControlFlowError, StructureError


def follow(
    twin: nn.Module, arguments: Arguments, choices: Mapping[Site, int], spared: frozenset[str] = frozenset()
) -> Trace:
    """Run a copy of `twin` in evaluation mode and in training mode, where it may do other things.

    Args:
        twin: see `twin_of`; it is not changed.
        spared: names of modules that are not looked into.

    Raises:
        StructureError: if the model does not run on the arguments, or decides by activations what to run.
    """
    found = Trace(sharing(twin), choices=choices, spared=spared)
    _label(found)
    _run(found, arguments, training=False)
    unused = _unused(found)
    try:
        _run(found, arguments, training=True)
    except StructureError:  # a batch norm of one example and one pixel has no variance
        if unused:
            raise
    for name in _unused(found):
        for (other, _), ids in found.tensors.items():
            if other == name:
                found.labels.freeze(ids, "the model does not use it on the example inputs")
    return found


def _label(found: Trace) -> None:
    tensors = {**dict(found.model.named_parameters()), **dict(found.model.named_buffers())}
    parameters = {id(parameter) for parameter in found.model.parameters()}
    for name, tensor in tensors.items():
        labels = [found.labels.new(size) if size > 1 else None for size in tensor.shape]
        found.tensors |= {
            (normal_name(name), dimension): ids for dimension, ids in enumerate(labels) if ids is not None
        }
        found.book.set(tensor, Axes(list(labels), [id(tensor) in parameters] * tensor.dim()))
        if id(tensor) in parameters:
            found.derived[tensor.untyped_storage().data_ptr()] = frozenset((normal_name(name),))
    found.labels.name_all()
    for name, module in found.model.named_modules():
        _tie(found, name, module)
        if name in found.spared:
            for parameter in module.parameters():
                found.freeze_axes(found.book.get(parameter), range(parameter.dim()), f"{name} is spared")


def _tie(found: Trace, name: str, module: nn.Module) -> None:
    """What a module's class demands of its parameters, whatever it computes."""
    if isinstance(module, nn.MultiheadAttention):
        why = f"nn.MultiheadAttention has one width for inputs, heads and outputs ({name})"
        for parameter in module.parameters():
            found.freeze_axes(found.book.get(parameter), range(parameter.dim()), why)
    if isinstance(module, _ConvNd):
        for ids in found.book.get(module.weight).labels[2:]:
            if ids is not None:
                found.labels.freeze(ids, NO_CHANNEL)
    if isinstance(module, nn.RNNBase):
        _tie_recurrent(found, module)


def _tie_recurrent(found: Trace, module: nn.RNNBase) -> None:
    """A recurrent module has one hidden size: unit j of every layer, direction and gate goes together."""
    first = found.book.get(_tensor(module, "weight_hh_l0")).labels[0]
    assert isinstance(module.hidden_size, int)
    if first is None:
        return
    units = first[: module.hidden_size]
    for name, parameter in module.named_parameters(recurse=False):
        labels = found.book.get(parameter).labels
        if "weight_hr" in name:
            found.join(found.book.get(_tensor(module, "weight_hr_l0")).labels[0], labels[0])
        elif labels[0] is not None:
            found.labels.unite(np.tile(units, len(labels[0]) // len(units)), labels[0], "")


def _tensor(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value


def _run(found: Trace, arguments: Arguments, *, training: bool) -> None:
    found.model.train(training)
    found.stack.clear()
    arguments = fresh(arguments)
    for value in tree_flatten(arguments)[0]:
        if isinstance(value, Tensor):
            found.book.set(value, Axes.plain(value.dim()))
    found.provenance = Provenance.of(arguments)
    with ExitStack() as exits:
        names = {id(module): name for name, module in found.model.named_modules()}

        def enter(module: nn.Module, arguments: object) -> None:
            if id(module) in names:
                found.stack.append(names[id(module)])

        def leave(module: nn.Module, arguments: object, outputs: object) -> None:
            if id(module) in names:
                found.stack.pop()

        exits.callback(register_module_forward_pre_hook(enter).remove)
        exits.callback(register_module_forward_hook(leave, always_call=True).remove)
        exits.enter_context(plain_operations(found.model))
        exits.enter_context(_Watch(found))
        exits.enter_context(_WatchAttention(found))
        outputs = run_model(found.model, arguments)
    found.stack.clear()
    for value in outputs:
        axes = found.book.get(value)
        found.freeze_axes(axes, range(value.dim()), "it is an output of the model")


RULES: dict[str, Rule] = {
    **rules_elementwise.RULES,
    **rules_shape.RULES,
    **rules_part.RULES,
    **rules_layer.RULES,
}
"""By the operation's name, see `Call`."""

LOOKS = ("_local_scalar_dense", "equal")
"""Operations that hand values to the user's code: `if x.sum() > 0`, `x.item()`, `torch.equal`."""

PACKING = ("_pack_padded_sequence", "_pad_packed_sequence")
"""Operations on sequences and their lengths, in this order, that give both."""


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


class _Watch(EagerMode):
    """Applies the rules to every operation of a run."""

    def __init__(self, found: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        t, call = self._trace, Call.of(func, args, dict(kwargs or {}))
        tensors = call.tensors
        for tensor in tensors:
            if tensor.layout == torch.strided:
                t.seen.add(tensor.untyped_storage().data_ptr())
        rule = RULES.get(call.name)
        if t.sparing is not None:
            rule = unknown
        elif call.name in LOOKS and t.provenance.activation(tensors):
            raise _decides(t, call)
        elif rule is None:
            rule = rules_elementwise.pointwise if torch.Tag.pointwise in func.tags else unknown
        result = rule(t, call)
        outputs = outputs_of(result)
        t.provenance.computed(tensors, outputs)
        t.note_derived(tensors, outputs)
        if call.name in PACKING:  # how long sequences are depends on no activation
            t.provenance.computed(tensors[1:], outputs[1:])
        return result


class _WatchAttention(TorchFunctionMode):
    """Sees attention that takes its scale from a width, also where it runs as products and a softmax."""

    def __init__(self, found: Trace) -> None:
        super().__init__()
        self._trace = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention and named.get("scale") is None:
            query, key = (*args, *(named[name] for name in ("query", "key") if name in named))[:2]
            rules_layer.freeze_scaled(self._trace, self._trace.book.get(query), self._trace.book.get(key))
        return func(*args, **named)


def _unused(found: Trace) -> list[str]:
    """Parameters that no operation has read."""
    return [
        normal_name(name)
        for name, parameter in found.model.named_parameters()
        if parameter.untyped_storage().data_ptr() not in found.seen
    ]
