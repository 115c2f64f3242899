"""What is known of tensors while a model runs: which indices are one channel, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ticketry.core.structure.dependencies.model_copies import Arguments

Ids = NDArray[np.int64]

FIXED = 0
"""The label of an index that always stays: of the model's inputs, of a constant."""


class Labels:
    """Classes of labels that stay or go together, and why some of them always stay.

    Every index of every dimension of a parameter starts with a label of its own. An addition of two activations unites
    their labels, index by index; an operation that cannot do without an index freezes its label.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._used = 1
        self._named = 1
        self._reasons: dict[int, str] = {FIXED: "it is fixed"}

    def new(self, count: int) -> Ids:
        """`count` labels, each in a class of its own."""
        if self._used + count > len(self._parent):
            grown = np.arange(2 * (self._used + count), dtype=np.int64)
            grown[: self._used] = self._parent[: self._used]
            self._parent = grown
        ids = np.arange(self._used, self._used + count, dtype=np.int64)
        self._used += count
        return ids

    def name_all(self) -> None:
        """The labels so far are the model's own; all later ones are of tensors that are made on the way."""
        self._named = self._used

    def loose(self, ids: Ids) -> bool:
        """Whether none of these is a channel of the model."""
        return bool((self.find(ids) >= self._named).all())

    def find(self, ids: Ids) -> Ids:
        """The class of each label, named by its smallest label."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[ids] = roots
                return roots
            roots = above

    def unite(self, one: Ids, other: Ids, reason: str) -> None:
        """Join the classes of the labels at each position; what meets `FIXED` is frozen, for `reason`."""
        one, other = self.find(one), self.find(other)
        different = one != other
        if not different.any():
            return
        one, other = one[different], other[different]
        self.freeze(np.concatenate([one[other == FIXED], other[one == FIXED]]), reason)
        free = (one != FIXED) & (other != FIXED)
        self._join(np.minimum(one[free], other[free]), np.maximum(one[free], other[free]))

    def _join(self, low: Ids, high: Ids) -> None:
        """Join classes named by their roots, pair by pair, `low` < `high`."""
        if not len(low):
            return
        if len(np.unique(high)) < len(high) or np.isin(low, high).any():  # chains: name each component by its smallest
            nodes, places = np.unique(np.concatenate([low, high]), return_inverse=True)
            low, high = nodes[smallest_connected(places.reshape(2, -1), len(nodes))], nodes
        self._parent[high] = low
        for root, above in zip(high.tolist(), low.tolist(), strict=True):
            if root != above and root in self._reasons:
                self._reasons.setdefault(above, self._reasons.pop(root))

    def freeze(self, ids: Ids, reason: str) -> None:
        """The channels of these labels stay; the first reason is kept."""
        for root in np.unique(self.find(ids)):
            self._reasons.setdefault(int(root), reason)

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether the channel of each label stays."""
        return np.asarray([root in self._reasons for root in self.find(ids).tolist()], dtype=bool)

    def reason(self, root: int) -> str | None:
        """Why a class (named as `find` does) stays; None if it may go."""
        return self._reasons.get(root)


def smallest_connected(edges: Ids, count: int) -> Ids:
    """For each of `count` nodes the smallest that it is connected with; each column of `edges` is a pair of nodes."""
    roots = np.arange(count)
    while True:
        low, high = np.sort(roots[edges], axis=0)
        if np.array_equal(low, high):
            return roots
        np.minimum.at(roots, high, low)  # a root hangs below the smallest that an edge leads it to
        while not np.array_equal(above := roots[roots], roots):
            roots = above


@dataclass
class Axes:
    """One entry a dimension.

    labels: the label of each index; None where all of them always stay (batch, space, time).
    zero: whether the slices of a removed channel are exactly 0 in the masked model, whatever the inputs.
    """

    labels: list[Ids | None]
    zero: list[bool]

    @classmethod
    def plain(cls, dimensions: int) -> Axes:
        return cls([None] * dimensions, [False] * dimensions)

    def copy(self) -> Axes:
        return Axes(list(self.labels), list(self.zero))

    def take(self, order: list[int]) -> Axes:
        """The axes in another order; -1 is an axis that stays."""
        return Axes(
            [None if axis < 0 else self.labels[axis] for axis in order],
            [False if axis < 0 else self.zero[axis] for axis in order],
        )


View = tuple[int, tuple[int, ...], tuple[int, ...]]


class Book:
    """The axes of every tensor seen.

    Tensors are known by the piece of memory that they look at (storage, offset, sizes, strides) and not by object: the
    autograd engine gives views new objects, and in-place operations write to the same piece.
    """

    def __init__(self) -> None:
        self._axes: dict[int, dict[View, Axes]] = {}

    def get(self, tensor: Tensor) -> Axes:
        """The tensor's axes; of a tensor never seen all stay."""
        found = self._views(tensor).get(_view(tensor))
        return found.copy() if found else Axes.plain(tensor.dim())

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self._views(tensor)[_view(tensor)] = axes.copy()

    def forget_zeros(self, tensor: Tensor) -> None:
        """Nothing in the tensor's memory is known to be 0 any more: it was written to."""
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
    """Which tensors have been computed from the model's inputs, and which of these are, or come from, floats."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._activations: set[int] = set()

    @classmethod
    def of(cls, arguments: Arguments) -> Provenance:
        found = cls()
        found._add([value for value in tree_flatten(arguments)[0] if isinstance(value, Tensor)], True, False)
        return found

    def depend_on_inputs(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these is computed from the inputs."""
        return any(_storage(tensor) in self._inputs for tensor in tensors)

    def activation(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these is computed from floats that depend on the inputs."""
        return any(_storage(tensor) in self._activations for tensor in tensors)

    def computed(self, operands: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """An operation has made `results` from `operands`."""
        storages = {_storage(tensor) for tensor in operands}
        self._add(results, bool(storages & self._inputs), bool(storages & self._activations))

    def _add(self, tensors: Iterable[Tensor], inputs: bool, activations: bool) -> None:
        for tensor in tensors:
            storage = _storage(tensor)  # the memory may have been another tensor's before
            (set.add if inputs else set.discard)(self._inputs, storage)
            floats = activations or (inputs and tensor.is_floating_point())
            (set.add if floats else set.discard)(self._activations, storage)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
