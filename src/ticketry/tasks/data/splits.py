"""Split data sets by a fixed rule, reduce the numbers of examples and pixels, and cache splits in files."""

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
from ticketry.files import replace_on_success
from ticketry.tasks.task import Split, Splits


def hold_out(labels: NDArray[Any], *per_class: int | NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.int64], ...]:
    """Hold out random examples of every class; return indices of the remaining examples, then of each held-out set.

    Example i gets the i-th raw 64-bit output of the generator PCG64 seeded with `seed`. In each class, the examples
    with the smallest outputs form the first set, those with the next larger outputs the second set, and so on. numpy
    promises never to change the raw outputs; it makes no such promise for shuffles. Indices are in ascending order.

    Args:
        labels: [n] class of each example.
        per_class: for each set, the number of examples per class; or an array with a number for each class.
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


def count_share_of_each(labels: NDArray[np.int64], share: Fraction) -> NDArray[np.int64]:
    """Return, for each class, the number of examples times `share`, but at least 1 and at most all but 1."""
    sizes = np.bincount(labels)
    wanted = [int(share * size + Fraction(1, 2)) for size in sizes.tolist()]
    return np.clip(np.array(wanted, np.int64), 1, sizes - 1)


def select_examples(images: NDArray[np.uint8], labels: NDArray[Any], indices: NDArray[np.int64]) -> Split:
    """Return a split with copies of the examples `indices` of `images` [n, c, h, w] and `labels` [n]."""
    return Split(torch.from_numpy(images[indices]), torch.from_numpy(labels[indices].astype(np.int64)))


def split_published(
    images: NDArray[np.uint8], labels: NDArray[Any], per_class: int, test: tuple[NDArray[np.uint8], NDArray[Any]]
) -> Splits:
    """Hold out `per_class` training examples of each class for validation, and keep the published `test` set."""
    train, validation = hold_out(labels, per_class)
    return Splits(
        train=select_examples(images, labels, train),
        validation=select_examples(images, labels, validation),
        test=select_examples(*test, np.arange(len(test[1]))),
    )


def take_fewer(split: Split, count: int) -> Split:
    """Return a split of `count` examples of `split`, equally many of each class, chosen by `hold_out`."""
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
"""Number of images whose pixels are averaged at a time."""


def average_pixels(images: Tensor, factor: int) -> Tensor:
    """Reduce images uint8 [n, c, h, w] to [n, c, h / factor, w / factor] by averaging squares of pixels.

    Means are rounded half up, in integer arithmetic, which gives the same bytes on every machine.
    """
    count, channels, height, width = images.shape
    area = factor * factor
    squares = (count, channels, height // factor, factor, width // factor, factor)
    sums = images.reshape(squares).sum((3, 5), dtype=torch.int32)
    return torch.div(2 * sums + area, 2 * area, rounding_mode="floor").to(torch.uint8)


def average_splits(splits: Splits, factor: int) -> Splits:
    """Reduce height and width of the images of all splits by `factor`, see `average_pixels`."""

    def average_inputs(inputs: Tensor) -> Tensor:
        return torch.cat([average_pixels(part, factor) for part in torch.split(inputs, _AT_ONCE)])

    return Splits(**{name: replace(part, inputs=average_inputs(part.inputs)) for name, part in vars(splits).items()})


def load_or_prepare(name: str, *, folder: Path, make: Callable[[], Splits]) -> Splits:
    """Load splits from `folder`/prepared/`name`.safetensors; if the file is missing or damaged, create and save them.

    `make` creates the splits. If the splits cannot be saved (no space, no permission), they are returned unsaved.
    """
    path = folder / "prepared" / f"{name}.safetensors"
    if (found := _load_splits(path)) is not None:
        return found
    splits = make()
    tensors = {f"{name}.inputs": part.inputs for name, part in vars(splits).items()}
    tensors |= {f"{name}.targets": part.targets for name, part in vars(splits).items()}
    try:
        with replace_on_success(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _digest_tensors(tensors)})
    except (OSError, SafetensorError):
        return splits
    return _load_splits(path) or splits  # memory-mapped, so that processes share it


def _load_splits(path: Path) -> Splits | None:
    """Load the splits in a file; return None if the file is missing or its content does not match its digest."""
    try:
        with safe_open(path, framework="pt") as file:
            wanted = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest_tensors(tensors) != wanted:
            return None
        parts = ("train", "validation", "test")
        return Splits(*(Split(tensors[f"{name}.inputs"], tensors[f"{name}.targets"]) for name in parts))
    except (OSError, SafetensorError, KeyError):
        return None


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the names, types, shapes and values of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(-1).numpy().data)
    return found.hexdigest()
