"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 classes.

Its files are pickles. The digest of each is checked before it is unpickled, and the unpickler knows no more than the
three numpy objects that they name.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError
from ticketry.tasks.base import Splits
from ticketry.tasks.data.download import Origin
from ticketry.tasks.data.files import check, unpacked
from ticketry.tasks.data.locate import Collection, Layout, Place, obtain
from ticketry.tasks.data.split import hold_out, pick

VALIDATION_PER_CLASS = 500

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""The md5 of each batch; training batches in order, then the test batch."""

_COLLECTION = Collection(
    title="CIFAR-10",
    layouts=(Layout(FOLDER, tuple(BATCHES), ("", ".xz")), Layout("", (ARCHIVE,))),
    origins=(Origin(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}", ARCHIVE, ARCHIVE_MD5),),
)


def read(where: tuple[Place, ...]) -> Splits:
    """The splits: the published test set, and the training set less 500 of each class for validation."""
    files = obtain(_COLLECTION, where)
    contents = _from_archive(files[0]) if files[0].name == ARCHIVE else _from_files(files)
    batches = [unpickle(content) for content in contents]
    images = np.concatenate([images for images, _ in batches[:-1]])
    labels = np.concatenate([labels for _, labels in batches[:-1]])
    train, validation = hold_out(labels, VALIDATION_PER_CLASS)
    test_images, test_labels = batches[-1]
    return Splits(
        train=pick(images, labels, train),
        validation=pick(images, labels, validation),
        test=pick(test_images, test_labels, np.arange(len(test_labels))),
    )


def _from_files(files: tuple[Path, ...]) -> Iterator[bytes]:
    for path, md5 in zip(files, BATCHES.values(), strict=True):
        yield unpacked(path, md5)


def _from_archive(path: Path) -> Iterator[bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in BATCHES and (file := archive.extractfile(member)) is not None:
                    contents[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {ARCHIVE_MD5} expected. Delete it and get it again"
        ) from error
    for name, md5 in BATCHES.items():
        if name not in contents:
            raise DataError(f"{path} holds no {FOLDER}/{name}. Delete it and get it again")
        check(contents[name], md5, f"{FOLDER}/{name} in {path}")
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
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")
        return _KNOWN[module, name]


def unpickle(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 3, 32, 32] and labels [n] of a batch whose digest was checked."""
    batch = _Batch(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], np.int64)
