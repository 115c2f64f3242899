"""Readers of published image data sets: MNIST and its relatives, CIFAR and Tiny ImageNet."""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError, MissingExtraError
from ticketry.folders import iterate_below
from ticketry.tasks.data.image_files import decoded, pixels
from ticketry.tasks.data.locate import DAMAGED, Collection, Layout, Origin, Place, check, members, obtain, unpacked
from ticketry.tasks.data.splits import held_out, hold_out, pick
from ticketry.tasks.task import Splits

_UINT8 = 0x08


def parse_idx(content: bytes, *, dimensions: int, what: str) -> NDArray[np.uint8]:
    """The array of bytes that `content` holds; a read-only view of it.

    Raises:
        DataError: if it is not idx, holds something other than bytes, has another number of dimensions than wanted,
            or fewer or more values than its header says; `what` names it.
    """
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UINT8, dimensions))
    if content[:4] != magic or len(content) < header:
        raise DataError(f"{what} does not start as an idx file of {dimensions}-dimensional bytes: {content[:4]!r}")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise DataError(f"{what} should hold {sizes} bytes after its header, but holds {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


MNIST_VALIDATION_PER_CLASS = 500

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class MnistFiles:
    """One of the two sets, which differ in nothing but their bytes."""

    title: str
    folder: str
    url: str
    packed: tuple[str, ...]
    """md5 of the .gz files, in the order of `_FILES`."""
    plain: tuple[str, ...]
    """md5 of the unpacked files."""

    def collection(self) -> Collection:
        layout = Layout(self.folder, _FILES, ("", ".gz"))
        origins = (
            Origin(f"{self.url}{file}.gz", f"{self.folder}/{file}.gz", md5)
            for file, md5 in zip(_FILES, self.packed, strict=True)
        )
        return Collection(self.title, (layout,), tuple(origins))

    def read(self, where: tuple[Place, ...]) -> Splits:
        """The splits: the published test set, and the training set less 500 of each class for validation."""
        arrays = []
        for path, md5 in zip(obtain(self.collection(), where), self.plain, strict=True):
            dimensions = 3 if "images" in path.name else 1
            arrays.append(parse_idx(unpacked(path, md5), dimensions=dimensions, what=str(path)))
        images, labels, test_images, test_labels = arrays
        return held_out(images[:, None], labels, MNIST_VALIDATION_PER_CLASS, (test_images[:, None], test_labels))


MNIST = MnistFiles(
    title="MNIST",
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    packed=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    plain=(
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)

FASHION_MNIST = MnistFiles(
    title="Fashion-MNIST",
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    packed=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    plain=(
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)


DIGITS_VALIDATION, DIGITS_TEST = 20, 40
"""Number of validation examples of each class."""


def read_digits(_: tuple[Place, ...]) -> Splits:
    """The splits: no test set is published, so 40 of each class are taken for it, and 20 for validation.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "digits", "the task digits") from error
    values, labels = load_digits(return_X_y=True)
    images = values.astype(np.uint8).reshape(-1, 1, 8, 8)
    train, test, validation = hold_out(labels, DIGITS_TEST, DIGITS_VALIDATION)
    return Splits(*(pick(images, labels, rows) for rows in (train, validation, test)))


@dataclass(frozen=True)
class CifarFiles:
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
        contents = _from_cifar_archive(self, files[0]) if from_archive else _from_files(self, files)
        batches = [unpickle(content, self.labels) for content in contents]
        images = np.concatenate([images for images, _ in batches[:-1]])
        labels = np.concatenate([labels for _, labels in batches[:-1]])
        return held_out(images, labels, self.validation_per_class, batches[-1])


CIFAR10 = CifarFiles(
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

CIFAR100 = CifarFiles(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    batches={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels=b"fine_labels",
    validation_per_class=50,
)
"""With its 100 fine classes; the 20 coarse ones are left alone."""


def _from_files(published: CifarFiles, files: tuple[Path, ...]) -> Iterator[bytes]:
    for path, md5 in zip(files, published.batches.values(), strict=True):
        yield unpacked(path, md5)


def _from_cifar_archive(published: CifarFiles, path: Path) -> Iterator[bytes]:
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


TINY_VALIDATION_PER_CLASS = 50
SIZE = 64

_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class TinyImageNetFiles:
    """The whole set or the small one."""

    title: str
    folder: str
    archive: str
    archive_md5: str
    classes: int
    origins: tuple[Origin, ...] = ()
    train_per_class: int = 500
    test_per_class: int = 50

    def collection(self) -> Collection:
        return Collection(self.title, (Layout(self.folder, ("wnids.txt",)), Layout("", (self.archive,))), self.origins)

    def read(self, where: tuple[Place, ...]) -> Splits:
        """The splits: the published validation set is the test set, 50 of each class of the training set validate.

        Classes are numbered in the order of their names (WordNet ids).

        Raises:
            DataError: if it is absent, damaged or incomplete.
        """
        source = obtain(self.collection(), where)[0]
        if source.name == self.archive:
            check(source.read_bytes(), self.archive_md5, str(source))
            train, test = _sorted(_from_tiny_archive(source))
        else:
            source = source.parent
            train, test = _sorted(_from_folder(source))
        images, labels = _arrays(train, self.classes, self.train_per_class, f"{source}, train")
        tested = _arrays(test, self.classes, self.test_per_class, f"{source}, val")
        return held_out(images, labels, TINY_VALIDATION_PER_CLASS, tested)


_ZIP, _ZIP_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"

WHOLE = TinyImageNetFiles(
    title="Tiny ImageNet",
    folder="tiny-imagenet-200",
    archive=_ZIP,
    archive_md5=_ZIP_MD5,
    classes=200,
    # Its authors give no digest; this one stands in many independent readers of the set.
    origins=(Origin(f"http://cs231n.stanford.edu/{_ZIP}", _ZIP, _ZIP_MD5),),
)

TWENTY = TinyImageNetFiles(
    title="Tiny ImageNet, 20 classes",
    folder="tiny-imagenet-20",
    archive="tiny-imagenet-20.tar.gz",
    archive_md5="b29ffecb1578109df5ae2085b4624f0b",
    classes=20,
)

_Image = tuple[str, str, bytes]
"""Class, name, content of the file; in this order they are sorted."""


_File = tuple[PurePosixPath, Callable[[], bytes]]
"""Its place below the data set's folder, and what returns its content."""


def _from_folder(folder: Path) -> Iterator[_File]:
    for part in ("train", "val"):
        for path in iterate_below(folder / part):
            yield PurePosixPath(path.relative_to(folder).as_posix()), path.read_bytes


def _from_tiny_archive(path: Path) -> Iterator[_File]:
    for place, read in members(path):
        yield PurePosixPath(*place.parts[1:]), read


def _sorted(files: Iterator[_File]) -> tuple[list[_Image], list[_Image]]:
    """Training and published validation images, by class, then by name."""
    train: list[_Image] = []
    test: list[_Image] = []
    classes: dict[str, str] = {}
    try:
        for path, content in files:
            match path.parts:
                case ("train", wnid, *_, name) if path.suffix == ".JPEG":
                    train.append((wnid, name, content()))
                case ("val", folder, name) if path.suffix == ".JPEG":
                    test.append((folder, name, content()))
                case ("val", name) if name == _ANNOTATIONS:
                    lines = (line.split() for line in content().decode().splitlines())
                    classes = {image: wnid for image, wnid, *_ in lines}
                case _:
                    pass
    except (*DAMAGED, ValueError) as error:
        raise DataError(f"Tiny ImageNet cannot be read: {error}. Delete it and get it again") from error
    test = [(classes.get(name, folder), name, content) for folder, name, content in test]
    return sorted(train), sorted(test)


def _arrays(
    images: list[_Image], classes: int, per_class: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels [n, 3, 64, 64] and classes [n]."""
    names, labels, counts = np.unique([wnid for wnid, _, _ in images], return_inverse=True, return_counts=True)
    if len(names) != classes or np.any(counts != per_class):
        found = f"{len(images):,} images of {len(names)} classes"
        raise DataError(
            f"{where} holds {found}, not {per_class} of each of {classes}: it is incomplete. Delete it and get it again"
        )
    array = np.empty((len(images), 3, SIZE, SIZE), np.uint8)
    for index, (wnid, name, content) in enumerate(images):
        image = decoded(content, f"{where}: {wnid}/{name}")
        if image.size != (SIZE, SIZE):
            raise DataError(f"{where}: {wnid}/{name} is not of {SIZE}x{SIZE} pixels, but {image.width}x{image.height}")
        array[index] = pixels(image)
    return array, labels.astype(np.int64)
