"""Runs a model once and follows every index of every parameter through it.

The model runs on real numbers, under a dispatch mode that sees each ATen operation. A rule for each
operation (`rules`) says which labels become one channel and which must stay; an operation without a rule freezes all
that flows into it. So what is left free can be removed from all tensors at once without changing anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ticketry.core.scope import normal_name
from ticketry.core.structure.axes import Axes, Book
from ticketry.core.structure.labels import Ids, Labels
from ticketry.core.structure.provenance import Provenance
from ticketry.core.structure.twin import Arguments, fresh, plain_operations, run_model, sharing
from ticketry.errors import StructureError

Site = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A `view`: name of the module that runs it, shapes before and after."""

NO_CHANNEL = ""
"""Reason of labels that nobody would take for channels: the height and width of a kernel."""


@dataclass
class Trace:
    """What running a model has shown."""

    model: nn.Module
    """The copy that ran, on the CPU."""
    labels: Labels = field(default_factory=Labels)
    book: Book = field(default_factory=Book)
    tensors: dict[tuple[str, int], Ids] = field(default_factory=dict)
    """(name of a parameter or buffer, dimension) -> label of each index"""
    attributes: dict[tuple[str, str], Ids] = field(default_factory=dict)
    """(name of a module, attribute) -> one label for each unit that the attribute counts"""
    choices: Mapping[Site, int] = field(default_factory=dict)
    """Where a dimension is cut into several, which of these can be narrower, counted from the last; by default 0."""
    cuts: dict[Site, tuple[Ids, int]] = field(default_factory=dict)
    """Such places: labels of all that is cut, and into how many dimensions."""
    stack: list[str] = field(default_factory=list)
    """Names of the modules that run now, the innermost last."""
    spared: frozenset[str] = frozenset()
    """Names of modules that are not looked into: what enters or leaves them stays."""
    provenance: Provenance = field(default_factory=Provenance)
    numbers: dict[tuple[str, str], list[Ids]] = field(default_factory=dict)
    """(name of a module, attribute) -> labels of each dimension that its code may have taken the attribute for."""
    written: dict[str, list[Ids]] = field(default_factory=dict)
    """Name of a module -> labels of all dimensions whose width its code may have as a number."""
    sums: list[Ids] = field(default_factory=list)
    """Labels of channels of different layers that an addition has joined."""
    seen: set[int] = field(default_factory=set)
    """Storages of all tensors that went into an operation."""

    @cached_property
    def weights(self) -> frozenset[int]:
        """Storages of all parameters."""
        return frozenset(parameter.untyped_storage().data_ptr() for parameter in self.model.parameters())

    @property
    def where(self) -> str:
        return self.stack[-1] if self.stack else ""

    @property
    def module(self) -> nn.Module:
        """The innermost module that runs now."""
        return self.model.get_submodule(self.where)

    @property
    def sparing(self) -> str | None:
        """The outermost of the modules that run now which is not looked into."""
        return next((name for name in self.stack if name in self.spared), None)

    def reason(self, why: str) -> str:
        return f"{why} (in {self.where})" if self.where else why

    # -- what rules do -------------------------------------------------------------------------------------------------

    def freeze(self, ids: Ids | None, why: str) -> None:
        if ids is not None:
            self.labels.freeze(ids, why and self.reason(why))

    def freeze_axes(self, axes: Axes, dimensions: Iterable[int], why: str) -> None:
        for dimension in dimensions:
            self.freeze(axes.labels[dimension], why)

    def join(self, one: Ids | None, other: Ids | None) -> Ids | None:
        """Two axes that are met index by index become one; if one of them stays, so does the other."""
        if one is None or other is None:
            self.freeze(
                other if one is None else one,
                "it meets a width that stays, as that of inputs",
            )
            return None
        if len(one) != len(other):
            self.freeze(np.concatenate([one, other]), "it meets a channel's dimension of another size")
            return None
        self.labels.unite(one, other, self.reason("it meets a channel that stays"))
        return one

    def count(self, attribute: str, ids: Ids | None) -> None:
        """`attribute` of the module that runs now counts the units of these labels."""
        if ids is not None:
            known = self.attributes.setdefault((self.where, attribute), ids)
            if len(known) == len(ids):  # a module that runs twice
                self.labels.unite(known, ids, self.reason("it meets a channel that stays"))

    def note_number(self, ids: Ids | None) -> bool:
        """The code of the module that runs now needed the number of these labels, from wherever it has it.

        Its attributes that are this number may be where: they follow, if they never stand for other channels as well.
        Returns whether there are any.
        """
        if ids is None:
            return False
        self.written.setdefault(self.where, []).append(ids)
        names = numbers_of(self.module, len(ids))
        for name in names:
            self.numbers.setdefault((self.where, name), []).append(ids)
        return bool(names)


def numbers_of(module: nn.Module, number: int) -> list[str]:
    """Attributes of a user's module that are this number, as `plan.read_number` takes them."""
    if number < 2 or type(module).__module__.startswith("torch.nn."):  # what torch's layers count is known
        return []
    found = []
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if type(value) is int and value == number:
            found.append(name)
        elif type(value) in (list, tuple):
            found += [f"{name}.{i}" for i, entry in enumerate(value) if type(entry) is int and entry == number]
    return found


def trace(
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
    from ticketry.core.structure.rules import Rules

    found.model.train(training)
    found.stack.clear()
    arguments = fresh(arguments)
    for value in tree_flatten(arguments)[0]:
        if isinstance(value, Tensor):
            found.book.set(value, Axes.plain(value.dim()))
    found.provenance = Provenance.of(arguments)
    with ExitStack() as exits:
        names = {id(module): name for name, module in found.model.named_modules()}
        exits.callback(register_module_forward_pre_hook(_enter(found, names)).remove)
        exits.callback(register_module_forward_hook(_leave(found, names), always_call=True).remove)
        exits.enter_context(plain_operations())
        exits.enter_context(_Watch(Rules(found)))
        outputs = run_model(found.model, arguments)
    found.stack.clear()
    for value in outputs:
        axes = found.book.get(value)
        found.freeze_axes(axes, range(value.dim()), "it is an output of the model")


def _enter(found: Trace, names: dict[int, str]) -> Any:
    def enter(module: nn.Module, arguments: object) -> None:
        if id(module) in names:
            found.stack.append(names[id(module)])

    return enter


def _leave(found: Trace, names: dict[int, str]) -> Any:
    def leave(module: nn.Module, arguments: object, outputs: object) -> None:
        if id(module) in names:
            found.stack.pop()

    return leave


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation to the rules."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else torch imports its compiler first, which takes many seconds

    def __init__(self, rules: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = rules

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._rules.apply(func, args, dict(kwargs or {}))


def _unused(found: Trace) -> list[str]:
    """Parameters that no operation has read."""
    return [
        normal_name(name)
        for name, parameter in found.model.named_parameters()
        if parameter.untyped_storage().data_ptr() not in found.seen
    ]
