"""What running a model shows, an ATen operation about to run, and what rules for operations have in common.

A rule runs the operation once and sets the axes of its outputs. It must make sure that, whatever channels are removed,
the surviving part of each output in the masked model is the output of the shrunk model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.structure.dependencies.axes import Axes, Book, Ids, Labels, Provenance

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

    derived: dict[int, frozenset[str]] = field(default_factory=dict)
    """Storage of a tensor that depends on no input -> names of the parameters that it is computed from."""
    factors: dict[str, set[int]] = field(default_factory=dict)
    """Name of a parameter that activations are multiplied by, in a sum over channels -> dimensions that are summed
    over: there its layer reads channels, and along the others it makes them."""

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

    def note_derived(self, operands: Sequence[Tensor], results: Iterable[Tensor]) -> None:
        """Record the parameters that results are computed from; none if they depend on the model's inputs."""
        names: frozenset[str] = frozenset()
        if not self.provenance.depend_on_inputs(operands):
            names = names.union(*(self.derived.get(_storage(tensor), ()) for tensor in operands))
        for tensor in results:
            self.derived[_storage(tensor)] = names

    def note_factor(self, tensor: Tensor, summed: Ids | None) -> None:
        """Record that activations are multiplied by a tensor and summed over an axis with these labels."""
        for name in self.derived.get(_storage(tensor), ()):
            dimensions = self.factors.setdefault(name, set())
            for (other, dimension), own in self.tensors.items():
                if other == name and summed is not None and bool(np.isin(summed, own).any()):
                    dimensions.add(dimension)

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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


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


def unary(rule: Callable[[Trace, Call, Axes, tuple[int, ...], Tensor], Axes]) -> Rule:
    """A rule for an operation on one tensor that gives one: of the axes and the shape before, the result's axes.

    Both are taken before the operation runs, which may change the tensor in place.
    """

    def apply(t: Trace, call: Call) -> Tensor:
        axes, shape = t.book.get(call.tensors[0]), tuple(call.tensors[0].shape)
        result: Tensor = call.run()
        t.book.set(result, rule(t, call, axes, shape, result))
        return result

    return apply


def unite_pieces(t: Trace, pieces: Ids) -> None:
    """All rows [pieces, labels] lose the same channels."""
    for piece in pieces[1:]:
        t.labels.unite(pieces[0], piece, t.reason("it is one of several that must lose the same channels"))


def unknown(t: Trace, call: Call) -> Any:
    """No rule, or not to be looked into: what flows in stays."""
    why = f"{call.func} cannot be followed" if t.sparing is None else f"{t.sparing} is spared"
    for tensor in call.tensors:
        t.freeze_axes(t.book.get(tensor), range(tensor.dim()), why)
        if call.writes:
            t.book.forget_zeros(tensor)
    return unlabelled(t, call)


def unlabelled(t: Trace, call: Call) -> Any:
    """All dimensions of the results always stay."""
    result = call.run()
    set_axes(t, outputs_of(result))
    return result


def set_axes(t: Trace, outputs: Sequence[Tensor], *known: Axes) -> None:
    """The axes of the first results; all dimensions of the others always stay."""
    for index, output in enumerate(outputs):
        t.book.set(output, known[index] if index < len(known) else Axes.plain(output.dim()))


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
