"""Data recorded while a run of a model is traced: labels of tensor indices, and where tensors come from.

Every index of every parameter has a label. Labels that must be removed together are united; labels that cannot be
removed are frozen. For each ATen operation, a rule runs the operation once and sets the axes of the outputs, that is,
the labels of each dimension. Rules guarantee: for any removed channels, the remaining part of each output in the
masked model equals the output of the smaller model.
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
"""Label of indices that are never removed, such as those of the model's inputs or of a constant."""


class Labels:
    """Sets of labels (called classes) that must be removed together, and the reasons why some cannot be removed.

    Every index of every dimension of a parameter starts with its own label. An addition of two activations unites their
    labels index by index. An operation that needs an index freezes the label of this index: the label can then never be
    removed.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._used = 1
        self._named = 1
        self._reasons: dict[int, str] = {FIXED: "it is fixed"}

    def create(self, count: int) -> Ids:
        """Return `count` new labels, which are not united with other labels."""
        if self._used + count > len(self._parent):
            grown = np.arange(2 * (self._used + count), dtype=np.int64)
            grown[: self._used] = self._parent[: self._used]
            self._parent = grown
        ids = np.arange(self._used, self._used + count, dtype=np.int64)
        self._used += count
        return ids

    def mark_as_model_labels(self) -> None:
        """Record that all labels created so far belong to the model's tensors; later labels belong to other tensors."""
        self._named = self._used

    def are_created_by_run(self, ids: Ids) -> bool:
        """Return whether all of these labels belong to tensors that the run creates, none to the model's tensors."""
        return bool((self.find_roots(ids) >= self._named).all())

    def find_roots(self, ids: Ids) -> Ids:
        """Return, for each label, the smallest label that it is united with, which identifies the class of labels."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[ids] = roots
                return roots
            roots = above

    def unite(self, one: Ids, other: Ids, reason: str) -> None:
        """Unite the labels `one[i]` and `other[i]`, so that they are only removed together, for each i.

        Labels that are united with `FIXED` cannot be removed, for the given `reason`.
        """
        one, other = self.find_roots(one), self.find_roots(other)
        different = one != other
        if not different.any():
            return
        one, other = one[different], other[different]
        self.freeze(np.concatenate([one[other == FIXED], other[one == FIXED]]), reason)
        free = (one != FIXED) & (other != FIXED)
        low, high = np.minimum(one[free], other[free]), np.maximum(one[free], other[free])
        if not len(low):
            return
        if len(np.unique(high)) < len(high) or np.isin(low, high).any():  # chains of pairs
            nodes, places = np.unique(np.concatenate([low, high]), return_inverse=True)
            low, high = nodes[find_smallest_connected(places.reshape(2, -1), len(nodes))], nodes
        self._parent[high] = low
        for root, above in zip(high.tolist(), low.tolist(), strict=True):
            if root != above and root in self._reasons:
                self._reasons.setdefault(above, self._reasons.pop(root))

    def freeze(self, ids: Ids, reason: str) -> None:
        """Mark labels, and all labels removed together with them, as not removable; an earlier reason is kept."""
        for root in np.unique(self.find_roots(ids)):
            self._reasons.setdefault(int(root), reason)

    def reason_not_removable(self, root: int) -> str | None:
        """Return why the labels whose smallest is `root` cannot be removed; None if they can."""
        return self._reasons.get(root)


def find_smallest_connected(edges: Ids, count: int) -> Ids:
    """Return, for each of `count` nodes, the smallest node connected with it; columns of `edges` are pairs of nodes."""
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
    """Labels, which identify channels, of a tensor's indices; both fields have one entry per dimension.

    labels: the label of each index; None for a dimension without channels (batch, space, time). zero: whether the
    tensor is exactly 0 at the indices of a removed channel in the masked model, for any inputs.
    """

    labels: list[Ids | None]
    zero: list[bool]

    @classmethod
    def unlabelled(cls, dimensions: int) -> Axes:
        return cls([None] * dimensions, [False] * dimensions)

    def copy(self) -> Axes:
        return Axes(list(self.labels), list(self.zero))

    def reorder(self, order: list[int]) -> Axes:
        """Return the labels of the dimensions listed in `order`; -1 stands for a new dimension without labels."""
        return Axes(
            [None if axis < 0 else self.labels[axis] for axis in order],
            [False if axis < 0 else self.zero[axis] for axis in order],
        )


View = tuple[int, tuple[int, ...], tuple[int, ...]]


class AxesByTensor:
    """Stores the `Axes` of every tensor seen so far.

    Tensors are identified by their memory (storage, offset, sizes, strides), not by object, because views are new
    objects, and in-place operations write to the same memory.
    """

    def __init__(self) -> None:
        self._axes: dict[int, dict[View, Axes]] = {}

    def get(self, tensor: Tensor) -> Axes:
        """Return a copy of the `Axes` of a tensor; if the tensor is unknown, none of its dimensions has labels."""
        found = self._axes_by_view(tensor).get(_view_key(tensor))
        return found.copy() if found else Axes.unlabelled(tensor.dim())

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self._axes_by_view(tensor)[_view_key(tensor)] = axes.copy()

    def forget_zeros(self, tensor: Tensor) -> None:
        """Record that the memory of a tensor was overwritten, so that no part of this memory is known to be 0."""
        for axes in self._axes_by_view(tensor).values():
            axes.zero = [False] * len(axes.zero)

    def _axes_by_view(self, tensor: Tensor) -> dict[View, Axes]:
        if tensor.layout != torch.strided:
            return {}
        return self._axes.setdefault(tensor.untyped_storage().data_ptr(), {})


def _view_key(tensor: Tensor) -> View:
    if tensor.layout != torch.strided:
        return 0, tuple(tensor.shape), ()
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


class Provenance:
    """Records which tensors depend on the model's inputs, and which are activations: floats that depend on inputs."""

    def __init__(self, arguments: Arguments = ()) -> None:
        self._inputs: set[int] = set()
        self._activations: set[int] = set()
        inputs = [value for value in tree_flatten(arguments)[0] if isinstance(value, Tensor)]
        self._record_dependence(inputs, True, False)

    def depend_on_inputs(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether any of these tensors is computed from the inputs."""
        return any(_storage_address(tensor) in self._inputs for tensor in tensors)

    def depend_on_activations(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether any of these tensors is computed from activations: floats that depend on the inputs."""
        return any(_storage_address(tensor) in self._activations for tensor in tensors)

    def record_operation(self, operands: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """Record that an operation computed `results` from `operands`."""
        storages = {_storage_address(tensor) for tensor in operands}
        self._record_dependence(results, bool(storages & self._inputs), bool(storages & self._activations))

    def _record_dependence(self, tensors: Iterable[Tensor], inputs: bool, activations: bool) -> None:
        for tensor in tensors:
            storage = _storage_address(tensor)  # memory may be reused
            (set.add if inputs else set.discard)(self._inputs, storage)
            floats = activations or (inputs and tensor.is_floating_point())
            (set.add if floats else set.discard)(self._activations, storage)


ViewCall = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A call of `view`: (name of the module that makes the call, shape before, shape after)."""

NO_CHANNEL = ""
"""Reason recorded for labels that cannot be removed because they are no channels: a kernel's height and width."""


@dataclass
class Trace:
    """Collects which channels must be removed together, and which must stay, while a run of a model is traced."""

    model: nn.Module
    """The copy of the model that runs, on the CPU."""
    labels: Labels = field(default_factory=Labels)
    book: AxesByTensor = field(default_factory=AxesByTensor)
    tensors: dict[tuple[str, int], Ids] = field(default_factory=dict)
    """(name of a parameter or buffer, dimension) -> label of each index."""
    attributes: dict[tuple[str, str], Ids] = field(default_factory=dict)
    """(name of a module, attribute) -> one label for each channel or group of channels that the attribute counts."""
    choices: Mapping[ViewCall, int] = field(default_factory=dict)
    """Call that splits a dimension -> which resulting dimension can become narrower: 0, the default, is the last."""
    cuts: dict[ViewCall, tuple[Ids, int]] = field(default_factory=dict)
    """Call that splits a dimension -> (labels of the dimension, number of resulting dimensions)."""
    stack: list[str] = field(default_factory=list)
    """Names of the modules whose forward is running, the innermost last."""
    spared: frozenset[str] = frozenset()
    """Names of modules that are not traced: channels that enter or leave these modules cannot be removed."""
    provenance: Provenance = field(default_factory=Provenance)
    numbers: dict[tuple[str, str], list[Ids]] = field(default_factory=dict)
    """(name of a module, attribute) -> labels of each dimension whose width the module may have read from it."""
    written: dict[str, list[Ids]] = field(default_factory=dict)
    """Name of a module -> labels of all dimensions whose width the module's code may contain as a number."""
    sums: list[Ids] = field(default_factory=list)
    """Labels of channels that were united because the outputs of different layers are added."""
    seen: set[int] = field(default_factory=set)
    """Memory addresses of all tensors that operations of the run read."""
    derived: dict[int, frozenset[str]] = field(default_factory=dict)
    """Address of a tensor that depends on no input -> names of the parameters from which the tensor is computed."""
    factors: dict[str, set[int]] = field(default_factory=dict)
    """Name of a parameter that activations are multiplied by -> dimensions over which the product sums.

    A layer reads channels along these dimensions, and produces channels along the parameter's other dimensions.
    """

    @cached_property
    def weight_addresses(self) -> frozenset[int]:
        """Memory addresses of all parameters."""
        return frozenset(parameter.untyped_storage().data_ptr() for parameter in self.model.parameters())

    @property
    def running_module_name(self) -> str:
        return self.stack[-1] if self.stack else ""

    @property
    def running_module(self) -> nn.Module:
        """The innermost module whose forward is running."""
        return self.model.get_submodule(self.running_module_name)

    @property
    def spared_module(self) -> str | None:
        """Name of the outermost running module that is not to be traced, or None."""
        return next((name for name in self.stack if name in self.spared), None)

    def add_location(self, why: str) -> str:
        return f"{why} (in {self.running_module_name})" if self.running_module_name else why

    # -- what rules do -------------------------------------------------------------------------------------------------

    def freeze(self, ids: Ids | None, why: str) -> None:
        if ids is not None:
            self.labels.freeze(ids, why and self.add_location(why))

    def freeze_axes(self, axes: Axes, dimensions: Iterable[int], why: str) -> None:
        for dimension in dimensions:
            self.freeze(axes.labels[dimension], why)

    def unite_axes(self, one: Ids | None, other: Ids | None) -> Ids | None:
        """Record that channels at the same index of two dimensions must be removed together; return their labels.

        If one dimension has no labels (None), or the sizes differ, mark all labels as not removable and return None.
        """
        if one is None or other is None:
            self.freeze(other if one is None else one, "it meets a width that stays, as that of inputs")
            return None
        if len(one) != len(other):
            self.freeze(np.concatenate([one, other]), "it meets a channel's dimension of another size")
            return None
        self.labels.unite(one, other, self.add_location("it meets a channel that stays"))
        return one

    def record_unit_count(self, attribute: str, ids: Ids | None) -> None:
        """Record that the attribute `attribute` of the running module counts the channels with the labels `ids`."""
        if ids is not None:
            known = self.attributes.setdefault((self.running_module_name, attribute), ids)
            if len(known) == len(ids):  # a module that runs twice
                self.labels.unite(known, ids, self.add_location("it meets a channel that stays"))

    def record_derivation(self, operands: Sequence[Tensor], results: Iterable[Tensor]) -> None:
        """Record from which parameters the `results` of an operation are computed; none if they depend on inputs."""
        names: frozenset[str] = frozenset()
        if not self.provenance.depend_on_inputs(operands):
            names = names.union(*(self.derived.get(_storage_address(tensor), ()) for tensor in operands))
        for tensor in results:
            self.derived[_storage_address(tensor)] = names

    def record_multiplication(self, tensor: Tensor, summed: Ids | None) -> None:
        """Record a multiplication of activations by `tensor`; `summed` labels the channels that are summed, if any."""
        for name in self.derived.get(_storage_address(tensor), ()):
            dimensions = self.factors.setdefault(name, set())
            for (other, dimension), own in self.tensors.items():
                if other == name and summed is not None and bool(np.isin(summed, own).any()):
                    dimensions.add(dimension)

    def record_width_use(self, ids: Ids | None) -> bool:
        """Record that the running module's code used the number of labels in `ids`.

        Return whether an attribute of the module equals this number. The code may have read the number from it.
        After pruning, the attribute gets the new number, unless it also counts other channels.
        """
        if ids is None:
            return False
        self.written.setdefault(self.running_module_name, []).append(ids)
        names = find_equal_attributes(self.running_module, len(ids))
        for name in names:
            self.numbers.setdefault((self.running_module_name, name), []).append(ids)
        return bool(names)


def _storage_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def find_equal_attributes(module: nn.Module, number: int) -> list[str]:
    """Return the attributes of a user-defined module that equal `number`.

    Entries of lists and tuples are named `name.i`, see `plans.get_int_attribute`.
    """
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
    """An ATen operation with its arguments, which has not run yet."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def name(self) -> str:
        """Name of the operation without namespace and overload, and without the final underscore of in-place forms."""
        name: str = self.func._schema.name.partition("::")[2]
        return name if name.startswith("_") else name.rstrip("_")

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def argument(self, name: str) -> Any:
        """Return the argument called `name` in the operation's schema; its default if it is not given."""
        for position, known in enumerate(self.func._schema.arguments):
            if known.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, known.default_value)
        return None

    @cached_property
    def tensors(self) -> list[Tensor]:
        return list_tensors(*self.args, *self.kwargs.values())

    @property
    def writes_in_place(self) -> bool:
        """Whether the operation changes one of its arguments in place."""
        return bool(self.func._schema.is_mutable)


Rule = Callable[[Trace, Call], Any]


def list_tensors(*values: Any) -> list[Tensor]:
    """Return all tensors among `values`, including tensors in lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def rule_on_first_tensor(rule: Callable[..., Axes | list[Axes]]) -> Rule:
    """Turn `rule(trace, call, axes, shape, *outputs)`, which returns the axes of the outputs, into a rule.

    The axes and the shape of the first tensor operand are read before the operation runs, because it may change the
    tensor in place. Outputs without returned axes get no labels.
    """

    def run_and_set_axes(t: Trace, call: Call) -> Any:
        axes, shape = t.book.get(call.tensors[0]), tuple(call.tensors[0].shape)
        result = call.run()
        outputs = list_tensors(result)
        found = rule(t, call, axes, shape, *outputs)
        set_output_axes(t, outputs, *([found] if isinstance(found, Axes) else found))
        return result

    return run_and_set_axes


def unite_labels_of_pieces(t: Trace, pieces: Ids) -> None:
    """Unite the rows of `pieces` [pieces, labels] position by position, so that all pieces lose the same channels."""
    for piece in pieces[1:]:
        t.labels.unite(pieces[0], piece, t.add_location("it is one of several that must lose the same channels"))


def freeze_operands(t: Trace, call: Call) -> Any:
    """Run an operation that cannot be followed, after marking all labels of its operands as not removable.

    This rule applies to operations without a rule, and inside modules that are not traced.
    """
    why = f"{call.func} cannot be followed" if t.spared_module is None else f"{t.spared_module} is spared"
    for tensor in call.tensors:
        t.freeze_axes(t.book.get(tensor), range(tensor.dim()), why)
        if call.writes_in_place:
            t.book.forget_zeros(tensor)
    return run_without_labels(t, call)


def run_without_labels(t: Trace, call: Call) -> Any:
    """Run an operation and record that its results have no labels."""
    result = call.run()
    set_output_axes(t, list_tensors(result))
    return result


def set_output_axes(t: Trace, outputs: Sequence[Tensor], *known: Axes) -> None:
    """Set the axes of `outputs` to those in `known`, in order; any further outputs get no labels."""
    for index, output in enumerate(outputs):
        t.book.set(output, known[index] if index < len(known) else Axes.unlabelled(output.dim()))


def unite_all_labels(t: Trace, several: Iterable[Ids | None]) -> Ids | None:
    """Record that channels at the same index of several dimensions must be removed together; return their labels.

    If a dimension has no labels, mark all labels as not removable and return None.
    """
    parts = list(several)
    if not parts:
        return None
    ids = parts[0]
    for other in parts[1:]:
        ids = t.unite_axes(ids, other)
    if ids is None:
        for other in parts:
            t.unite_axes(None, other)
    return ids
