"""Splits of data sets: the fixed rule, subsets, smaller images, and copies cached as one memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ticketry.errors import TaskError
from ticketry.files import replacing
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
    """Copy the selected examples of images [n, c, h, w] and labels [n]."""
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


_AT_ONCE = 4096
"""Images whose pixels are taken to 32 bits together."""


def averaged(images: Tensor, factor: int) -> Tensor:
    """Images uint8 [n, c, h, w] to [n, c, h / factor, w / factor]: means of squares, rounded, halves up.

    Whole numbers throughout, so that the same bytes come out on every machine.
    """
    count, channels, height, width = images.shape
    area = factor * factor
    squares = (count, channels, height // factor, factor, width // factor, factor)
    sums = images.reshape(squares).sum((3, 5), dtype=torch.int32)
    return torch.div(2 * sums + area, 2 * area, rounding_mode="floor").to(torch.uint8)


def shrunk(splits: Splits, factor: int) -> Splits:
    """All splits with `averaged` images."""

    def smaller(inputs: Tensor) -> Tensor:
        return torch.cat([averaged(part, factor) for part in torch.split(inputs, _AT_ONCE)])

    return Splits(**{name: replace(part, inputs=smaller(part.inputs)) for name, part in vars(splits).items()})


def prepared(name: str, *, folder: Path, make: Callable[[], Splits]) -> Splits:
    """The splits kept as `folder`/prepared/`name`.safetensors; made and kept if that is absent or damaged.

    If they cannot be kept (no room, no permission) they are returned all the same.
    """
    path = folder / "prepared" / f"{name}.safetensors"
    splits = _load(path)
    if splits is None:
        splits = make()
        if _save(splits, path):
            splits = _load(path) or splits  # memory-mapped from here on, so that processes share it
    return splits


def _save(splits: Splits, path: Path) -> bool:
    tensors = _to_tensors(splits)
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _digest(tensors)})
    except (OSError, SafetensorError):
        return False
    return True


def _load(path: Path) -> Splits | None:
    """Return the content of the file, or None if it is absent or does not match its digest."""
    try:
        with safe_open(path, framework="pt") as file:
            wanted = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _to_splits(tensors) if _digest(tensors) == wanted else None
    except (OSError, SafetensorError, KeyError):
        return None


def _to_tensors(splits: Splits) -> dict[str, Tensor]:
    found = {f"{name}.inputs": part.inputs for name, part in vars(splits).items()}
    return found | {f"{name}.targets": part.targets for name, part in vars(splits).items()}


def _to_splits(tensors: Mapping[str, Tensor]) -> Splits:
    parts = ("train", "validation", "test")
    return Splits(*(Split(tensors[f"{name}.inputs"], tensors[f"{name}.targets"]) for name in parts))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute a digest of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(-1).numpy().data)
    return found.hexdigest()
