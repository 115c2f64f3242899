"""Data sets by name: found on disk or downloaded, checked, split by a fixed rule and kept in memory.

From the published files (`mnist`, `cifar`, `tiny_imagenet`, `digits`) to splits (`split`) to one memory-mapped file
(`prepared`). Folders of images that are read when they are asked for are in `listing` and `pictures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from ticketry.errors import TaskError
from ticketry.tasks.base import Splits
from ticketry.tasks.data import cifar, digits, mnist, tiny_imagenet
from ticketry.tasks.data.locate import Place, places
from ticketry.tasks.data.prepared import prepared
from ticketry.tasks.data.split import fewer

VERSION = 1
"""Of what `load` returns. A change of a reader or of the split rule that moves an example or a pixel raises it."""

_READERS: dict[str, Callable[[tuple[Place, ...]], Splits]] = {
    "digits": digits.read,
    "mnist": partial(mnist.read, mnist.MNIST),
    "fashion-mnist": partial(mnist.read, mnist.FASHION_MNIST),
    "cifar10": partial(cifar.read, cifar.CIFAR10),
    "cifar100": partial(cifar.read, cifar.CIFAR100),
    "tiny-imagenet": partial(tiny_imagenet.read, tiny_imagenet.WHOLE),
    "tiny-imagenet-20": partial(tiny_imagenet.read, tiny_imagenet.TWENTY),
}


def load(name: str, data: Path | None = None, *, train: int = 0) -> Splits:
    """The data set `name`: images uint8 [n, channels, height, width], targets int64 [n]; loaded once a process.

    The copy that an earlier process prepared in the cache folder comes first. Without one the published files are
    looked for in the folder `data`, in $TICKETRY_DATA and in the cache folder, see `locate.places`, and downloaded
    into the cache folder otherwise. The tensors may be memory-mapped and are shared: do not write to them.

    Args:
        train: only so many of the training examples, as many of each class (see `split.fewer`); 0 is all.

    Raises:
        TaskError: for an unknown name, or a number of training examples that cannot be had.
        DataError: if it is absent and cannot be downloaded, or not what its published digest says.
    """
    if name not in _READERS:
        raise TaskError(f"there is no data set {name!r}: choose one of {', '.join(_READERS)}")
    return _load(name, places(data), train)


@lru_cache(maxsize=4)
def _load(name: str, where: tuple[Place, ...], train: int) -> Splits:
    splits = prepared(f"{name}-{VERSION}", folder=where[-1].folder, make=lambda: _READERS[name](where))
    return replace(splits, train=fewer(splits.train, train)) if train else splits
