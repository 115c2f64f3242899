"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 or 100 classes.

Its files are pickles. The digest of each is checked before it is unpickled, and the unpickler knows no more than the
three numpy objects that they name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError
from ticketry.tasks.data.locate import DAMAGED, Collection, Layout, Origin, Place, check, members, obtain, unpacked
from ticketry.tasks.data.splits import held_out
from ticketry.tasks.task import Splits


@dataclass(frozen=True)
class Published:
    """One of the two sets."""

    title: str
    folder: str
    archive: str
    archive_md5: str
    batches: Mapping[str, str]
    """md5 of each batch by its name; training batches in order, then the test batch."""
    labels: bytes
    """Under which name a batch holds the classes."""
    validation_per_class: int

    def collection(self) -> Collection:
        layouts = (Layout(self.folder, tuple(self.batches), ("", ".xz")), Layout("", (self.archive,)))
        origin = Origin(f"https://www.cs.toronto.edu/~kriz/{self.archive}", self.archive, self.archive_md5)
        return Collection(self.title, layouts, (origin,))

    def read(self, where: tuple[Place, ...]) -> Splits:
        """The splits: the published test set, and the training set less a tenth of each class for validation."""
        files = obtain(self.collection(), where)
        from_archive = files[0].name == self.archive
        contents = _from_archive(self, files[0]) if from_archive else _from_files(self, files)
        batches = [unpickle(content, self.labels) for content in contents]
        images = np.concatenate([images for images, _ in batches[:-1]])
        labels = np.concatenate([labels for _, labels in batches[:-1]])
        return held_out(images, labels, self.validation_per_class, batches[-1])


CIFAR10 = Published(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    batches={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    labels=b"labels",
    validation_per_class=500,
)

CIFAR100 = Published(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    batches={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels=b"fine_labels",
    validation_per_class=50,
)
"""With its 100 fine classes; the 20 coarse ones are left alone."""


def _from_files(published: Published, files: tuple[Path, ...]) -> Iterator[bytes]:
    for path, md5 in zip(files, published.batches.values(), strict=True):
        yield unpacked(path, md5)


def _from_archive(published: Published, path: Path) -> Iterator[bytes]:
    try:
        contents = {file.name: read() for file, read in members(path) if file.name in published.batches}
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {published.archive_md5} expected. Delete it and get it again"
        ) from error
    for name, md5 in published.batches.items():
        if name not in contents:
            raise DataError(f"{path} holds no {published.folder}/{name}. Delete it and get it again")
        check(contents[name], md5, f"{published.folder}/{name} in {path}")
        yield contents[name]


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # numpy has since moved it
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""The names in CIFAR's batches, and what they stand for."""


class _Batch(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch")
        return _KNOWN[module, name]


def unpickle(content: bytes, labels: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 3, 32, 32] and the `labels` [n] of a batch whose digest was checked."""
    batch = _Batch(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.asarray(batch[labels], np.int64)
