"""Data sets by name: found on disk or downloaded, checked, split by a fixed rule and kept in memory.

From the published files (`mnist`, `cifar`, `tiny_imagenet`) to splits (`splits`) to one memory-mapped file
(`prepared`). Folders of images that are read when they are asked for are in `image_files`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ticketry.registry import BUILT_IN, digest_source
from ticketry.registry import load as load_object
from ticketry.tasks.data.locate import Place, places
from ticketry.tasks.data.splits import fewer, prepared, shrunk
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.task import Splits

VERSION = 1
"""Version of what `load` returns, raised by a change of a reader or split rule that moves an example or a pixel."""


def load(name: str, data: Path | None = None, *, train: int = 0, factor: int = 1) -> Splits:
    """The data set `name`: images uint8 [n, channels, height, width], targets int64 [n]; loaded once a process.

    The copy that an earlier process prepared in the cache folder comes first. Without one the published files are
    looked for in the folder `data`, in $TICKETRY_DATA and in the cache folder, see `locate.places`, and downloaded
    into the cache folder otherwise. The tensors may be memory-mapped and are shared: do not write to them.

    Args:
        train: only so many of the training examples, as many of each class (see `splits.fewer`); 0 is all.
        factor: by how much height and width are divided: images are averaged over squares of so many pixels a side.

    Raises:
        TaskError: for an unknown name, or a number of training examples that cannot be had.
        DataError: if it is absent and cannot be downloaded, or not what its published digest says.
    """
    DATA_SETS.find_target(name)
    return _load(name, places(data), train, factor)


def source(name: str) -> str:
    """The digest of what reads a data set of an installed package; empty for any other."""
    if name not in DATA_SETS.names() or DATA_SETS.find_origin(name) == BUILT_IN:
        return ""
    return digest_source(DATA_SETS.get(name).read)


@lru_cache(maxsize=4)
def _load(name: str, where: tuple[Place, ...], train: int, factor: int) -> Splits:
    tag = "-".join([name, str(VERSION), *([source(name)[:16]] if source(name) else [])])
    splits = prepared(tag, folder=where[-1].folder, make=lambda: load_object(DATA_SETS.get(name).read)(where))
    splits = replace(splits, train=fewer(splits.train, train)) if train else splits
    return splits if factor == 1 else shrunk(splits, factor)
