"""Image data sets by name: found on disk or downloaded, verified, split by a fixed rule and cached.

`image_files` reads the published files, and folders of images on demand; `splits` splits data sets and caches the
splits as one memory-mapped file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ticketry.registry import BUILT_IN, digest_source, load_object
from ticketry.tasks.data.locate import Place, places
from ticketry.tasks.data.splits import average_splits, load_or_prepare, take_fewer
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.task import Splits

VERSION = 1
"""Version of the result of `load`, as part of keys of stored results; increased when an example or a pixel changes."""


def load(name: str, data: Path | None = None, *, train: int = 0, factor: int = 1) -> Splits:
    """Load the splits of a data set: images uint8 [n, channels, height, width] and targets int64 [n].

    Each process loads a data set once. Splits that were prepared earlier are read from the cache folder. Otherwise the
    published files are read from the folder `data`, $TICKETRY_DATA or the cache folder (see `locate.places`), and
    downloaded if they are missing. The tensors may be memory-mapped and are shared: do not write to them.

    Args:
        train: number of training examples, equally many of each class (see `splits.take_fewer`); 0 takes all.
        factor: factor by which height and width are reduced, by averaging squares of pixels.
    """
    DATA_SETS.find_target(name)
    return _load(name, places(data), train, factor)


def source_digest(name: str) -> str:
    """Return a digest of the code that reads the data set `name`; empty if the data set is built in."""
    if name not in DATA_SETS.names() or DATA_SETS.find_origin(name) == BUILT_IN:
        return ""
    return digest_source(DATA_SETS.get(name).read)


@lru_cache(maxsize=4)
def _load(name: str, where: tuple[Place, ...], train: int, factor: int) -> Splits:
    tag = "-".join([name, str(VERSION), *([source_digest(name)[:16]] if source_digest(name) else [])])
    splits = load_or_prepare(tag, folder=where[-1].folder, make=lambda: load_object(DATA_SETS.get(name).read)(where))
    splits = replace(splits, train=take_fewer(splits.train, train)) if train else splits
    return splits if factor == 1 else average_splits(splits, factor)
