"""Find groups of coupled channels by tracing every index of every parameter through a run of a model.

The model runs on real numbers under a dispatch mode that sees each ATen operation. Every index of every parameter has a
label. A rule for each operation determines which labels belong to the same channel, and which cannot be removed (are
frozen). An operation without a rule freezes all labels of its operands. All labels of a channel that is not frozen can
then be removed from all tensors together, without changing anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ticketry.core.scope import name_without_wrappers
from ticketry.core.structure import layer_rules, model_copies, shape_rules
from ticketry.core.structure.layout import Roles, find_roles
from ticketry.core.structure.model_copies import Arguments, EagerMode
from ticketry.core.structure.trace import (
    NO_CHANNEL,
    Axes,
    Call,
    Ids,
    Provenance,
    Rule,
    Trace,
    ViewCall,
    freeze_operands,
    list_tensors,
)
from ticketry.errors import ControlFlowError, StructureError


def _label_parameters(trace: Trace) -> None:
    tensors = {**dict(trace.model.named_parameters()), **dict(trace.model.named_buffers())}
    parameters = {id(parameter) for parameter in trace.model.parameters()}
    for name, tensor in tensors.items():
        labels = [trace.labels.create(size) if size > 1 else None for size in tensor.shape]
        trace.tensors |= {
            (name_without_wrappers(name), dimension): ids for dimension, ids in enumerate(labels) if ids is not None
        }
        trace.book.set(tensor, Axes(list(labels), [id(tensor) in parameters] * tensor.dim()))
        if id(tensor) in parameters:
            trace.derived[tensor.untyped_storage().data_ptr()] = frozenset((name_without_wrappers(name),))
    trace.labels.mark_as_model_labels()
    for name, module in trace.model.named_modules():
        _apply_class_constraints(trace, name, module)
        if name in trace.spared:
            for parameter in module.parameters():
                trace.freeze_axes(trace.book.get(parameter), range(parameter.dim()), f"{name} is spared")


def _apply_class_constraints(trace: Trace, name: str, module: nn.Module) -> None:
    """Record which channels of a module must stay or be removed together, because the module's class requires it."""
    if isinstance(module, nn.MultiheadAttention):
        why = f"nn.MultiheadAttention has one width for inputs, heads and outputs ({name})"
        for parameter in module.parameters():
            trace.freeze_axes(trace.book.get(parameter), range(parameter.dim()), why)
    if isinstance(module, _ConvNd):
        for ids in trace.book.get(module.weight).labels[2:]:
            if ids is not None:
                trace.labels.freeze(ids, NO_CHANNEL)
    if isinstance(module, nn.RNNBase):  # all its layers, directions and gates have one hidden size
        first = trace.book.get(module.weight_hh_l0).labels[0]  # type: ignore[arg-type]
        for local, parameter in module.named_parameters(recurse=False):
            labels = trace.book.get(parameter).labels
            if "weight_hr" in local and first is not None:
                trace.unite_axes(trace.book.get(module.weight_hr_l0).labels[0], labels[0])  # type: ignore[arg-type]
            elif labels[0] is not None and first is not None:
                units = first[: module.hidden_size]
                trace.labels.unite(np.tile(units, len(labels[0]) // len(units)), labels[0], "")


def _trace_run(trace: Trace, arguments: Arguments, *, training: bool) -> None:
    trace.model.train(training)
    trace.stack.clear()
    arguments = model_copies.clone_arguments(arguments)
    for value in tree_flatten(arguments)[0]:
        if isinstance(value, Tensor):
            trace.book.set(value, Axes.unlabelled(value.dim()))
    trace.provenance = Provenance(arguments)
    with ExitStack() as exits:
        names = {id(module): name for name, module in trace.model.named_modules()}

        def push_module_name(module: nn.Module, arguments: object) -> None:
            if id(module) in names:
                trace.stack.append(names[id(module)])

        def pop_module_name(module: nn.Module, arguments: object, outputs: object) -> None:
            if id(module) in names:
                trace.stack.pop()

        exits.callback(register_module_forward_pre_hook(push_module_name).remove)
        exits.callback(register_module_forward_hook(pop_module_name, always_call=True).remove)
        exits.enter_context(model_copies.traceable_operations(trace.model))
        exits.enter_context(_RuleMode(trace))
        exits.enter_context(_AttentionScaleMode(trace))
        outputs = model_copies.run_model(trace.model, arguments)
    trace.stack.clear()
    for value in outputs:
        axes = trace.book.get(value)
        trace.freeze_axes(axes, range(value.dim()), "it is an output of the model")


RULES: dict[str, Rule] = {**shape_rules.RULES, **layer_rules.RULES}
"""Name of an operation (see `Call`) -> the rule that traces the operation."""

READING_OPERATIONS = ("_local_scalar_dense", "equal")
"""Operations that return the values of tensors to Python, as in `if x.sum() > 0`, `x.item()`, `torch.equal`."""

PACKING_OPERATIONS = ("_pack_padded_sequence", "_pad_packed_sequence")
"""Operations that return sequences and the lengths of these sequences."""


def _control_flow_error(t: Trace, call: Call) -> ControlFlowError:
    model = type(t.model).__name__
    advice = f"spare=({t.running_module_name!r},) spares it: all channels that enter or leave it stay"
    if not t.running_module_name:
        advice = "move that decision into a module of its own, whose name `spare=` then takes"
    return ControlFlowError(
        f"{model} looks at its activations to decide what to do ({call.func} in"
        f" {t.running_module_name or model}): what it would do with other inputs cannot be followed; {advice}",
        t.running_module_name,
    )


class _RuleMode(EagerMode):
    """A dispatch mode that calls, for every operation of a run, the function that follows channels through it."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        t, call = self._trace, Call(func, args, dict(kwargs or {}))
        tensors = call.tensors
        for tensor in tensors:
            if tensor.layout == torch.strided:
                t.seen.add(tensor.untyped_storage().data_ptr())
        rule = RULES.get(call.name)
        if t.spared_module is not None:
            rule = freeze_operands
        elif call.name in READING_OPERATIONS and t.provenance.depend_on_activations(tensors):
            raise _control_flow_error(t, call)
        elif rule is None:
            rule = layer_rules.trace_pointwise if torch.Tag.pointwise in func.tags else freeze_operands
        result = rule(t, call)
        outputs = list_tensors(result)
        t.provenance.record_operation(tensors, outputs)
        t.record_derivation(tensors, outputs)
        if call.name in PACKING_OPERATIONS:  # lengths of sequences depend on no activation
            t.provenance.record_operation(tensors[1:], outputs[1:])
        return result


class _AttentionScaleMode(TorchFunctionMode):
    """Detects attention whose scale depends on the width of query and key, before torch decomposes the call."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention and named.get("scale") is None:
            query, key = (*args, *(named[name] for name in ("query", "key") if name in named))[:2]
            layer_rules.freeze_query_and_key_widths(self._trace, self._trace.book.get(query), self._trace.book.get(key))
        return func(*args, **named)


def _find_unused_parameters(trace: Trace) -> list[str]:
    return [
        name_without_wrappers(name)
        for name, parameter in trace.model.named_parameters()
        if parameter.untyped_storage().data_ptr() not in trace.seen
    ]


@dataclass(frozen=True, eq=False)
class Member:
    """A dimension of a parameter or buffer, and the indices along it that belong to each channel of a group.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = next(group for group in tk.structure.channel_groups(model, torch.randn(2, 4)) if group.prunable)
        >>> member = hidden.parameters[0]
        >>> member.name, member.dim, member.indices[:3]
        ('0.weight', 0, ((0,), (1,), (2,)))
    """

    name: str
    """Name of a parameter or buffer."""
    dim: int
    """Position of the dimension in the tensor's shape."""
    array: Ids
    """Indices of each channel along `dim`: [channels, indices]."""
    buffer: bool = False
    """Whether the tensor is a buffer, such as a running mean."""

    @cached_property
    def indices(self) -> tuple[tuple[int, ...], ...]:
        """Indices of each channel along `dim`, as tuples."""
        return tuple(map(tuple, self.array.tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.name, self.dim, self.array.shape, self.array.tobytes(), self.buffer


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels, each of which has indices in the same dimensions of the same tensors.

    Channel i consists of the indices `indices[i]` of every member, and can only be removed from all members together.
    Channels of one layer are in different groups if different tensors read them, as after a concatenation.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = next(group for group in tk.structure.channel_groups(model, torch.randn(2, 4)) if group.prunable)
        >>> hidden.name, hidden.size
        ('0', 8)
        >>> [(member.name, member.dim) for member in hidden.parameters]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
        >>> [member.name for member in hidden.within([("2.weight", 1)])]
        ['2.weight']
    """

    name: str
    """Name of the first layer that produces the channels.

    If no layer produces them: name of a layer that reads them, followed by "(inputs)".
    """
    members: tuple[Member, ...]
    """The dimensions of parameters and buffers that have indices of these channels."""
    size: int
    """Number of channels."""
    reason: str = ""
    """Why the channels cannot be removed; empty if they can."""
    residual: bool = False
    """Whether the channels are sums over several layers, as in a residual stream."""

    @property
    def prunable(self) -> bool:
        return not self.reason

    @property
    def parameters(self) -> tuple[Member, ...]:
        """Members that are dimensions of parameters, not of buffers."""
        return tuple(member for member in self.members if not member.buffer)

    def within(self, places: Collection[tuple[str, int]]) -> list[Member]:
        """Return the members in parameters whose (name, dimension) is among `places`, for example `Roles.outputs`."""
        return [member for member in self.parameters if (member.name, member.dim) in places]

    def __repr__(self) -> str:
        end = "" if self.prunable else f", stays: {self.reason}"
        return f"ChannelGroup({self.name!r}, {self.size} channels, {len(self.members)} members{end})"


@dataclass(frozen=True)
class ChannelCount:
    """A module attribute, such as `out_features`, that counts units: channels or groups of channels."""

    module: str
    attribute: str
    units: tuple[tuple[int, int] | None, ...]
    """For each unit, the channel (index of the group, index in the group) removed with it; None if it must stay."""
    guessed: bool = False
    """Whether the attribute equals the number of these units, but may count something else."""


@dataclass(frozen=True)
class DimensionSplit:
    """A reshape that splits a dimension into several; pruning is assumed to make one of them narrower."""

    site: ViewCall
    """The call that reshapes."""
    options: int
    """Number of resulting dimensions."""
    groups: frozenset[int]
    """Indices of the channel groups whose channels are indices of the split dimension."""


@dataclass(frozen=True)
class Structure:
    """The channel structure of a model: all channel groups, and the module attributes that depend on their sizes.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = tk.structure.tried_structure(model, torch.randn(2, 4))
        >>> structure.free
        8
        >>> free = next(i for i, group in enumerate(structure.groups) if group.prunable)
        >>> structure.staying({free: "I need them all"}).free
        0
    """

    groups: tuple[ChannelGroup, ...]
    counted: tuple[ChannelCount, ...]
    """Module attributes that count channels."""
    cuts: tuple[DimensionSplit, ...] = ()
    """Reshapes that split a dimension into several, for example into attention heads and their widths."""
    written: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Name of a module -> indices of the groups whose width the module's code may contain as a number."""
    roles: Roles = field(default_factory=Roles)
    """The dimensions, as (parameter name, dimension), along which layers produce and read channels."""

    @property
    def free(self) -> int:
        """Number of channels that can be removed."""
        return sum(group.size for group in self.groups if group.prunable)

    def staying(self, why: dict[int, str]) -> Structure:
        """Return a copy of the structure in which some groups are marked as not prunable.

        Args:
            why: index of a group -> the reason.
        """
        groups = [replace(group, reason=why.get(i, group.reason)) for i, group in enumerate(self.groups)]
        return replace(self, groups=tuple(groups))


def find_structure(
    model_copy: nn.Module, arguments: Arguments, choices: Mapping[ViewCall, int], spared: frozenset[str] = frozenset()
) -> Structure:
    """Find a model's channel structure by tracing a copy of the model; do not test whether channels can be removed.

    Args:
        model_copy: a copy on the CPU, see `copy_in_dtype`; it is not changed.
        choices: which dimension becomes narrower where a reshape splits a dimension, see `Trace.choices`.
        spared: names of modules that are not traced.
    """
    trace = Trace(model_copies.copy_sharing_parameters(model_copy), choices=choices, spared=spared)
    _label_parameters(trace)
    _trace_run(trace, arguments, training=False)
    unused = _find_unused_parameters(trace)
    try:
        _trace_run(trace, arguments, training=True)
    except StructureError:  # a batch norm of one example and one pixel has no variance
        if unused:
            raise
    for name in _find_unused_parameters(trace):
        for (other, _), ids in trace.tensors.items():
            if other == name:
                trace.labels.freeze(ids, "the model does not use it on the example inputs")
    parts = find_roles(trace.model, trace.factors)
    buffers = {name for name, _ in trace.model.named_buffers()}
    made: list[ChannelGroup] = []
    channel_of: dict[int, tuple[int, int]] = {}
    sums = set(trace.labels.find_roots(np.concatenate(trace.sums)).tolist()) if trace.sums else set()
    for roots, places in _classify_channels(trace):
        reason = trace.labels.reason_not_removable(roots[0])
        if reason == NO_CHANNEL or all(name in buffers for name, _ in places):
            continue
        channel_of |= {root: (len(made), channel) for channel, root in enumerate(roots)}
        members = tuple(Member(name, dim, indices, name in buffers) for (name, dim), indices in places.items())
        if not reason and len(roots) == 1:
            reason = "its channels can only go all together"
        parameters = [member for member in members if not member.buffer]
        makers = [one for one in parameters if (one.name, one.dim) in parts.outputs or one.dim == 0]
        name = (makers or parameters)[0].name
        name = name.rpartition(".")[0] or name
        made.append(
            ChannelGroup(name if makers else f"{name} (inputs)", members, len(roots), reason or "", roots[0] in sums)
        )
    written = {module: _find_groups_of_labels(trace, channel_of, several) for module, several in trace.written.items()}
    cuts = tuple(
        DimensionSplit(site, options, _find_groups_of_labels(trace, channel_of, [ids]))
        for site, (ids, options) in trace.cuts.items()
    )
    return Structure(tuple(made), _find_channel_counts(trace, channel_of), cuts, written, parts)


def _find_groups_of_labels(
    trace: Trace, channel_of: Mapping[int, tuple[int, int]], several: list[Ids]
) -> frozenset[int]:
    roots = np.unique(trace.labels.find_roots(np.concatenate(several))).tolist()
    return frozenset(channel_of[root][0] for root in roots if root in channel_of)


def _find_channel_counts(trace: Trace, channel_of: Mapping[int, tuple[int, int]]) -> tuple[ChannelCount, ...]:
    """Return module attributes that count channels, or that may equal a number of channels only by chance."""
    guesses: dict[tuple[str, str], Ids] = {}
    for key, several in trace.numbers.items():
        roots = [trace.labels.find_roots(ids) for ids in several]
        ours = [each for each in roots if any(root in channel_of for root in each.tolist())]
        if ours and key not in trace.attributes and all(np.array_equal(each, ours[0]) for each in ours):
            guesses[key] = ours[0]
    return tuple(
        ChannelCount(
            *key, tuple(channel_of.get(root) for root in trace.labels.find_roots(ids).tolist()), key in guesses
        )
        for key, ids in (*trace.attributes.items(), *guesses.items())
    )


def _classify_channels(trace: Trace) -> Iterator[tuple[list[int], dict[tuple[str, int], Ids]]]:
    """Divide all channels into classes by the tensors that contain them and the reason why they cannot be removed.

    Yield for each class, in the model's order: the smallest label of each channel; and (name, dimension) -> indices
    [channels, indices] for each dimension that contains the channels.
    """
    keys = list(trace.tensors)
    sizes = [len(ids) for ids in trace.tensors.values()]
    if not keys:
        return
    roots = np.concatenate([trace.labels.find_roots(ids) for ids in trace.tensors.values()])
    tensor, index = np.repeat(np.arange(len(keys)), sizes), np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort(roots, kind="stable")  # indices of each channel, tensor by tensor
    first = np.flatnonzero(np.diff(roots[order], prepend=-1))
    last = np.append(first[1:], len(order))
    classes: dict[tuple[bytes, str | None], list[int]] = {}
    for run in np.argsort(order[first]).tolist():  # by first occurrence
        reason = trace.labels.reason_not_removable(int(roots[order[first[run]]]))
        classes.setdefault((tensor[order[first[run] : last[run]]].tobytes(), reason), []).append(run)
    for runs in classes.values():
        parts = np.stack([order[first[run] : last[run]] for run in runs])
        where = tensor[parts[0]]
        places = {keys[key]: index[parts[:, where == key]] for key in dict.fromkeys(where.tolist())}
        yield roots[parts[:, 0]].tolist(), places
