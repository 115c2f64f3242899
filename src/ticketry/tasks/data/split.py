"""The rule by which examples are held out. It is fixed for ever: results are stored under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ticketry.errors import TaskError
from ticketry.tasks.base import Split

_SEED = 0


def hold_out(labels: NDArray[Any], *per_class: int) -> tuple[NDArray[np.int64], ...]:
    """Disjoint sets of indices: the rest, then for each number of `per_class` that many examples of every class.

    Example i gets the i-th raw 64-bit output of PCG64 seeded with 0. In each class the examples with the smallest
    numbers are taken, in that order, for the first set, then for the second. Raw outputs, because numpy promises
    never to change them, as it does not for its shuffles. Indices come in ascending order.
    """
    numbers = np.random.PCG64(_SEED).random_raw(len(labels))
    sets: list[list[NDArray[np.int64]]] = [[] for _ in range(len(per_class) + 1)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranked = members[np.argsort(numbers[members], kind="stable")]
        *held, rest = np.split(ranked, np.cumsum(per_class))
        for chosen, part in zip(sets, (rest, *held), strict=True):
            chosen.append(part)
    return tuple(np.sort(np.concatenate(parts)) for parts in sets)


def pick(images: NDArray[np.uint8], labels: NDArray[Any], indices: NDArray[np.int64]) -> Split:
    """Those examples of images [n, c, h, w] and labels [n], copied."""
    return Split(torch.from_numpy(images[indices]), torch.from_numpy(labels[indices].astype(np.int64)))


def fewer(split: Split, count: int) -> Split:
    """`count` examples of a split, as many of each class, by the rule of `hold_out`; copied.

    Raises:
        TaskError: if the count is not a multiple of the number of classes, or a class has too few.
    """
    labels = split.targets.numpy()
    members = np.bincount(labels)
    each, rest = divmod(count, len(members))
    if rest or not 0 < each <= members.min():
        raise TaskError(
            f"{count} training examples: give a multiple of {len(members)}, the number of classes, up to"
            f" {len(members) * int(members.min())}"
        )
    chosen = torch.from_numpy(hold_out(labels, each)[1])
    return Split(split.inputs[chosen], split.targets[chosen])
