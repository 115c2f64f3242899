"""The rule by which examples are held out. It is fixed for ever: results are stored under it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ticketry.errors import TaskError
from ticketry.tasks.task import Split, Splits


def hold_out(labels: NDArray[Any], *per_class: int | NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.int64], ...]:
    """Disjoint sets of indices: the rest, then for each number of `per_class` that many examples of every class.

    Example i gets the i-th raw 64-bit output of PCG64 seeded with `seed`. In each class the examples with the smallest
    numbers are taken, in that order, for the first set, then for the second. Raw outputs, because numpy promises
    never to change them, as it does not for its shuffles. Indices come in ascending order.

    Args:
        per_class: one number for all classes, or one for each in the order of their labels.
        seed: another than 0 gives another choice, for data that are split several times.
    """
    numbers = np.random.PCG64(seed).random_raw(len(labels))
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    ranked = np.lexsort((numbers, classes))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each of `ranked` in its class
    set_of, taken = np.zeros(len(labels), np.int64), np.zeros_like(sizes)
    for count in per_class:
        taken = taken + count
        set_of += rank >= np.repeat(taken, sizes)
    return tuple(np.sort(ranked[set_of == held]) for held in (len(per_class), *range(len(per_class))))


def share_of_each(labels: NDArray[np.int64], share: Fraction) -> NDArray[np.int64]:
    """How many of each class (with two examples or more) are a share of it: rounded half up, neither none nor all."""
    sizes = np.bincount(labels)
    wanted = [int(share * size + Fraction(1, 2)) for size in sizes.tolist()]
    return np.clip(np.array(wanted, np.int64), 1, sizes - 1)


def pick(images: NDArray[np.uint8], labels: NDArray[Any], indices: NDArray[np.int64]) -> Split:
    """Those examples of images [n, c, h, w] and labels [n], copied."""
    return Split(torch.from_numpy(images[indices]), torch.from_numpy(labels[indices].astype(np.int64)))


def held_out(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    per_class: int,
    test: tuple[NDArray[np.uint8], NDArray[Any]],
) -> Splits:
    """The splits of a published set: its test set, and its training set less so many of each class for validation."""
    train, validation = hold_out(labels, per_class)
    return Splits(
        train=pick(images, labels, train),
        validation=pick(images, labels, validation),
        test=pick(*test, np.arange(len(test[1]))),
    )


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
    return replace(split, inputs=split.inputs[chosen], targets=split.targets[chosen])
