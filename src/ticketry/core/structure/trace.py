"""State of a traced run: the channels of tensors, and the sources of their numbers.

A rule for an ATen operation runs it once and sets the axes of its outputs. Whatever channels are removed, the remaining
part of each output in the masked model must equal the output of the shrunk model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ticketry.core.structure.model_copies import Arguments

Ids = NDArray[np.int64]

FIXED = 0
"""Label of an index that always stays, as in the model's inputs or a constant."""


class Labels:
    """Classes of labels that are removed together, and the reasons why some always stay.

    Every index of every dimension of a parameter starts with a separate label. An addition of two activations unites
    their labels index by index; an operation that needs an index freezes its label.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._used = 1
        self._named = 1
        self._reasons: dict[int, str] = {FIXED: "it is fixed"}

    def new(self, count: int) -> Ids:
        """Return `count` new labels in separate classes."""
        if self._used + count > len(self._parent):
            grown = np.arange(2 * (self._used + count), dtype=np.int64)
            grown[: self._used] = self._parent[: self._used]
            self._parent = grown
        ids = np.arange(self._used, self._used + count, dtype=np.int64)
        self._used += count
        return ids

    def name_all(self) -> None:
        """Mark the labels so far as the model's; later ones belong to tensors created during the run."""
        self._named = self._used

    def loose(self, ids: Ids) -> bool:
        """Return whether none of these labels is a channel of the model."""
        return bool((self.find(ids) >= self._named).all())

    def find(self, ids: Ids) -> Ids:
        """Return the root of each label's class: its smallest label."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[ids] = roots
                return roots
            roots = above

    def unite(self, one: Ids, other: Ids, reason: str) -> None:
        """Unite the classes at each position; classes united with `FIXED` are frozen for `reason`."""
        one, other = self.find(one), self.find(other)
        different = one != other
        if not different.any():
            return
        one, other = one[different], other[different]
        self.freeze(np.concatenate([one[other == FIXED], other[one == FIXED]]), reason)
        free = (one != FIXED) & (other != FIXED)
        self._join(np.minimum(one[free], other[free]), np.maximum(one[free], other[free]))

    def _join(self, low: Ids, high: Ids) -> None:
        """Unite pairs of classes by their roots, `low` < `high`."""
        if not len(low):
            return
        if len(np.unique(high)) < len(high) or np.isin(low, high).any():  # chains of pairs
            nodes, places = np.unique(np.concatenate([low, high]), return_inverse=True)
            low, high = nodes[smallest_connected(places.reshape(2, -1), len(nodes))], nodes
        self._parent[high] = low
        for root, above in zip(high.tolist(), low.tolist(), strict=True):
            if root != above and root in self._reasons:
                self._reasons.setdefault(above, self._reasons.pop(root))

    def freeze(self, ids: Ids, reason: str) -> None:
        """Make the channels of these labels stay; the first reason is stored."""
        for root in np.unique(self.find(ids)):
            self._reasons.setdefault(int(root), reason)

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Return whether the channel of each label stays."""
        return np.asarray([root in self._reasons for root in self.find(ids).tolist()], dtype=bool)

    def reason(self, root: int) -> str | None:
        """Return why a class (by its root) stays; None if it may be removed."""
        return self._reasons.get(root)


def smallest_connected(edges: Ids, count: int) -> Ids:
    """Return the smallest node connected with each of `count` nodes; each column of `edges` is a pair."""
    roots = np.arange(count)
    while True:
        low, high = np.sort(roots[edges], axis=0)
        if np.array_equal(low, high):
            return roots
        np.minimum.at(roots, high, low)
        while not np.array_equal(above := roots[roots], roots):
            roots = above


@dataclass
class Axes:
    """Facts about a tensor, one entry per dimension.

    labels: the label of each index; None if all of them always stay (batch, space, time).
    zero: whether the slices of a removed channel are exactly 0 in the masked model, for any inputs.
    """

    labels: list[Ids | None]
    zero: list[bool]

    @classmethod
    def plain(cls, dimensions: int) -> Axes:
        return cls([None] * dimensions, [False] * dimensions)

    def copy(self) -> Axes:
        return Axes(list(self.labels), list(self.zero))

    def take(self, order: list[int]) -> Axes:
        """Return the axes in another order; -1 stands for an axis that stays."""
        return Axes(
            [None if axis < 0 else self.labels[axis] for axis in order],
            [False if axis < 0 else self.zero[axis] for axis in order],
        )


View = tuple[int, tuple[int, ...], tuple[int, ...]]


class Book:
    """The axes of every tensor seen.

    Tensors are identified by their memory (storage, offset, sizes, strides), not by object: views get new objects, and
    in-place operations write to the same memory.
    """

    def __init__(self) -> None:
        self._axes: dict[int, dict[View, Axes]] = {}

    def get(self, tensor: Tensor) -> Axes:
        """Return the tensor's axes; all axes of an unknown tensor stay."""
        found = self._views(tensor).get(_view(tensor))
        return found.copy() if found else Axes.plain(tensor.dim())

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self._views(tensor)[_view(tensor)] = axes.copy()

    def forget_zeros(self, tensor: Tensor) -> None:
        """Record that the tensor's memory was written to, so that nothing in it is known to be 0."""
        for axes in self._views(tensor).values():
            axes.zero = [False] * len(axes.zero)

    def _views(self, tensor: Tensor) -> dict[View, Axes]:
        if tensor.layout != torch.strided:
            return {}
        return self._axes.setdefault(tensor.untyped_storage().data_ptr(), {})


def _view(tensor: Tensor) -> View:
    if tensor.layout != torch.strided:
        return 0, tuple(tensor.shape), ()
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


class Provenance:
    """Which tensors were computed from the model's inputs, and which of these are, or depend on, floats."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._activations: set[int] = set()

    @classmethod
    def from_arguments(cls, arguments: Arguments) -> Provenance:
        found = cls()
        found._add([value for value in tree_flatten(arguments)[0] if isinstance(value, Tensor)], True, False)
        return found

    def depend_on_inputs(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether any of these is computed from the inputs."""
        return any(_storage(tensor) in self._inputs for tensor in tensors)

    def activation(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether any of these is computed from floats that depend on the inputs."""
        return any(_storage(tensor) in self._activations for tensor in tensors)

    def computed(self, operands: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """Record that an operation computed `results` from `operands`."""
        storages = {_storage(tensor) for tensor in operands}
        self._add(results, bool(storages & self._inputs), bool(storages & self._activations))

    def _add(self, tensors: Iterable[Tensor], inputs: bool, activations: bool) -> None:
        for tensor in tensors:
            storage = _storage(tensor)  # memory may be reused
            (set.add if inputs else set.discard)(self._inputs, storage)
            floats = activations or (inputs and tensor.is_floating_point())
            (set.add if floats else set.discard)(self._activations, storage)


Site = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A call of `view`: name of the module that runs it, shapes before and after."""

NO_CHANNEL = ""
"""Reason of labels that are not channels: the height and width of a kernel."""


@dataclass
class Trace:
    """Findings of a run."""

    model: nn.Module
    """The copy that ran, on the CPU."""
    labels: Labels = field(default_factory=Labels)
    book: Book = field(default_factory=Book)
    tensors: dict[tuple[str, int], Ids] = field(default_factory=dict)
    """(name of a parameter or buffer, dimension) -> label of each index"""
    attributes: dict[tuple[str, str], Ids] = field(default_factory=dict)
    """(name of a module, attribute) -> one label for each unit that the attribute counts"""
    choices: Mapping[Site, int] = field(default_factory=dict)
    """Split of a dimension -> which part can be narrower, counted from the last; by default 0."""
    cuts: dict[Site, tuple[Ids, int]] = field(default_factory=dict)
    """Such splits: labels of the dimension, and number of resulting dimensions."""
    stack: list[str] = field(default_factory=list)
    """Names of the running modules, the innermost last."""
    spared: frozenset[str] = frozenset()
    """Names of modules that are not traced: what enters or leaves them stays."""
    provenance: Provenance = field(default_factory=Provenance)
    numbers: dict[tuple[str, str], list[Ids]] = field(default_factory=dict)
    """(name of a module, attribute) -> labels of each dimension for whose width its code may have used it."""
    written: dict[str, list[Ids]] = field(default_factory=dict)
    """Name of a module -> labels of all dimensions whose width its code may contain as a number."""
    sums: list[Ids] = field(default_factory=list)
    """Labels of channels of different layers that an addition united."""
    seen: set[int] = field(default_factory=set)
    """Storages of all operands of operations."""
    derived: dict[int, frozenset[str]] = field(default_factory=dict)
    """Storage of a tensor that depends on no input -> the parameters that it is computed from."""
    factors: dict[str, set[int]] = field(default_factory=dict)
    """Parameter that activations are multiplied by -> dimensions that are summed over, where its layer reads channels;
    along the others it produces them."""

    @cached_property
    def weights(self) -> frozenset[int]:
        """Storages of all parameters."""
        return frozenset(parameter.untyped_storage().data_ptr() for parameter in self.model.parameters())

    @property
    def running(self) -> str:
        return self.stack[-1] if self.stack else ""

    @property
    def module(self) -> nn.Module:
        """The innermost running module."""
        return self.model.get_submodule(self.running)

    @property
    def sparing(self) -> str | None:
        """The outermost running module that is not traced."""
        return next((name for name in self.stack if name in self.spared), None)

    def reason(self, why: str) -> str:
        return f"{why} (in {self.running})" if self.running else why

    # -- what rules do -------------------------------------------------------------------------------------------------

    def freeze(self, ids: Ids | None, why: str) -> None:
        if ids is not None:
            self.labels.freeze(ids, why and self.reason(why))

    def freeze_axes(self, axes: Axes, dimensions: Iterable[int], why: str) -> None:
        for dimension in dimensions:
            self.freeze(axes.labels[dimension], why)

    def join(self, one: Ids | None, other: Ids | None) -> Ids | None:
        """Unite two axes index by index; if one of them stays, so does the other."""
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
        """Record that an attribute of the running module counts the units of these labels."""
        if ids is not None:
            known = self.attributes.setdefault((self.running, attribute), ids)
            if len(known) == len(ids):  # a module that runs twice
                self.labels.unite(known, ids, self.reason("it meets a channel that stays"))

    def note_derived(self, operands: Sequence[Tensor], results: Iterable[Tensor]) -> None:
        """Note the parameters that results are computed from; none if they depend on the model's inputs."""
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
        """Record that the running module's code needed the number of these labels.

        Attributes with this number may be its source; they are changed with it unless they also count other channels.
        Returns whether there are any.
        """
        if ids is None:
            return False
        self.written.setdefault(self.running, []).append(ids)
        names = numbers_of(self.module, len(ids))
        for name in names:
            self.numbers.setdefault((self.running, name), []).append(ids)
        return bool(names)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def numbers_of(module: nn.Module, number: int) -> list[str]:
    """Return the attributes of a user's module that equal a number, in the notation of `plans.read_number`."""
    if number < 2 or type(module).__module__.startswith("torch.nn."):  # attributes of torch's layers are known
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
    """An ATen operation about to run."""

    func: Any
    name: str
    """Name without namespace, overload and the underscore of in-place forms."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def from_dispatch(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        name = func._schema.name.partition("::")[2]
        return cls(func, name if name.startswith("_") else name.rstrip("_"), args, kwargs)

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def argument(self, name: str) -> Any:
        """Return an argument, or its default, by its name in the operation's schema."""
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
        """Whether the operation writes to an argument."""
        return bool(self.func._schema.is_mutable)


Rule = Callable[[Trace, Call], Any]


def outputs_of(result: Any) -> list[Tensor]:
    return _tensors([result])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return all tensors among arguments or results, also in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def unary(rule: Callable[[Trace, Call, Axes, tuple[int, ...], Tensor], Axes]) -> Rule:
    """Return a rule for an operation from one tensor to one, given a function from axes and shape to the result's axes.

    Axes and shape are read before the operation runs, because it may change the tensor in place.
    """

    def apply(t: Trace, call: Call) -> Tensor:
        axes, shape = t.book.get(call.tensors[0]), tuple(call.tensors[0].shape)
        result: Tensor = call.run()
        t.book.set(result, rule(t, call, axes, shape, result))
        return result

    return apply


def unite_pieces(t: Trace, pieces: Ids) -> None:
    """Make all rows [pieces, labels] lose the same channels."""
    for piece in pieces[1:]:
        t.labels.unite(pieces[0], piece, t.reason("it is one of several that must lose the same channels"))


def unknown(t: Trace, call: Call) -> Any:
    """Freeze all operands of an operation without a rule, or in a module that is not traced."""
    why = f"{call.func} cannot be followed" if t.sparing is None else f"{t.sparing} is spared"
    for tensor in call.tensors:
        t.freeze_axes(t.book.get(tensor), range(tensor.dim()), why)
        if call.writes:
            t.book.forget_zeros(tensor)
    return unlabelled(t, call)


def unlabelled(t: Trace, call: Call) -> Any:
    """Run an operation whose results always stay."""
    result = call.run()
    set_axes(t, outputs_of(result))
    return result


def set_axes(t: Trace, outputs: Sequence[Tensor], *known: Axes) -> None:
    """Set the axes of the first results; all dimensions of the others always stay."""
    for index, output in enumerate(outputs):
        t.book.set(output, known[index] if index < len(known) else Axes.plain(output.dim()))


def merge(t: Trace, several: Iterable[Ids | None]) -> Ids | None:
    """Unite the labels of several axes index by index; None without axes."""
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
