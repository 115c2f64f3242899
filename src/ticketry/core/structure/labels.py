"""Labels: which indices of which tensors are one channel. A union-find over arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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
            edges = coo_array((np.ones(len(low)), np.split(places, 2)), shape=(len(nodes), len(nodes)))
            _, component = connected_components(edges, directed=False)
            smallest = np.full(component.max() + 1, np.iinfo(np.int64).max)
            np.minimum.at(smallest, component, nodes)
            low, high = smallest[component], nodes
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
