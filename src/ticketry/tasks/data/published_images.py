"""Readers of published image data sets: MNIST, Fashion-MNIST, digits, CIFAR and Tiny ImageNet."""

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
from ticketry.tasks.data.image_files import decode_image, to_array
from ticketry.tasks.data.locate import (
    DAMAGED,
    Collection,
    Layout,
    Origin,
    Place,
    check_digest,
    iterate_members,
    obtain,
    read_verified,
)
from ticketry.tasks.data.splits import hold_out, select_examples, split_published
from ticketry.tasks.task import Splits

_UINT8 = 0x08


def parse_idx(content: bytes, *, dimensions: int, what: str) -> NDArray[np.uint8]:
    """Parse `content` of an idx file (the format of MNIST) with elements of one byte; return a read-only view.

    Args:
        dimensions: required number of dimensions.
        what: name of the file in error messages.

    Raises:
        DataError: if it is not an idx file of bytes with these dimensions, or its length does not match its header.
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
    """The files of MNIST or of Fashion-MNIST, which have the same format."""

    title: str
    folder: str
    url: str
    packed: tuple[str, ...]
    """MD5 digests of the .gz files, in the order of `_FILES`."""
    plain: tuple[str, ...]
    """MD5 digests of the unpacked files, in the order of `_FILES`."""

    def collection(self) -> Collection:
        layout = Layout(self.folder, _FILES, ("", ".gz"))
        origins = (
            Origin(f"{self.url}{file}.gz", f"{self.folder}/{file}.gz", md5)
            for file, md5 in zip(_FILES, self.packed, strict=True)
        )
        return Collection(self.title, (layout,), tuple(origins))

    def read(self, where: tuple[Place, ...]) -> Splits:
        """Read the splits: the test set is the published one, and validation has 500 training examples per class."""
        arrays = []
        for path, md5 in zip(obtain(self.collection(), where), self.plain, strict=True):
            dimensions = 3 if "images" in path.name else 1
            arrays.append(parse_idx(read_verified(path, md5), dimensions=dimensions, what=str(path)))
        images, labels, test_images, test_labels = arrays
        return split_published(images[:, None], labels, MNIST_VALIDATION_PER_CLASS, (test_images[:, None], test_labels))


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
"""Number of validation examples and of test examples per class of the digits of scikit-learn."""


def read_digits(_: tuple[Place, ...]) -> Splits:
    """Read the digits of scikit-learn: of each class, 40 are for testing, 20 for validation, the rest for training.

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
    return Splits(*(select_examples(images, labels, rows) for rows in (train, validation, test)))


@dataclass(frozen=True)
class CifarFiles:
    """The files of CIFAR-10 or of CIFAR-100."""

    title: str
    folder: str
    archive: str
    archive_md5: str
    batches: Mapping[str, str]
    """MD5 digest of each batch file by its name: first the training batches in order, then the test batch."""
    labels: bytes
    """Name of the entry of a batch file that has the classes."""
    validation_per_class: int

    def collection(self) -> Collection:
        layouts = (Layout(self.folder, tuple(self.batches), ("", ".xz")), Layout("", (self.archive,)))
        origin = Origin(f"https://www.cs.toronto.edu/~kriz/{self.archive}", self.archive, self.archive_md5)
        return Collection(self.title, layouts, (origin,))

    def read(self, where: tuple[Place, ...]) -> Splits:
        """Read the splits: the test set is the published one, and validation has a tenth of each training class."""
        files = obtain(self.collection(), where)
        from_archive = files[0].name == self.archive
        contents = _read_cifar_archive(self, files[0]) if from_archive else _read_cifar_files(self, files)
        batches = [unpickle(content, self.labels) for content in contents]
        images = np.concatenate([images for images, _ in batches[:-1]])
        labels = np.concatenate([labels for _, labels in batches[:-1]])
        return split_published(images, labels, self.validation_per_class, batches[-1])


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
"""CIFAR-100 with its 100 fine classes; the 20 coarse classes are not used."""


def _read_cifar_files(published: CifarFiles, files: tuple[Path, ...]) -> Iterator[bytes]:
    for path, md5 in zip(files, published.batches.values(), strict=True):
        yield read_verified(path, md5)


def _read_cifar_archive(published: CifarFiles, path: Path) -> Iterator[bytes]:
    try:
        contents = {file.name: read() for file, read in iterate_members(path) if file.name in published.batches}
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {published.archive_md5} expected. Delete it and get it again"
        ) from error
    for name, md5 in published.batches.items():
        if name not in contents:
            raise DataError(f"{path} holds no {published.folder}/{name}. Delete it and get it again")
        check_digest(contents[name], md5, f"{published.folder}/{name} in {path}")
        yield contents[name]


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # numpy has since moved it
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""The objects that pickled CIFAR batches may refer to, by module and name."""


class _Batch(pickle.Unpickler):
    """An unpickler that refuses all objects except those in `_KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch")
        return _KNOWN[module, name]


def unpickle(content: bytes, labels: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images [n, 3, 32, 32] and classes [n] of a pickled CIFAR batch.

    `labels` is the name of the entry that has the classes.
    """
    batch = _Batch(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.asarray(batch[labels], np.int64)


TINY_VALIDATION_PER_CLASS = 50
SIZE = 64

_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class TinyImageNetFiles:
    """The files of Tiny ImageNet, or of its subset with 20 classes."""

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
        """Read the splits: the published validation set is for testing; validation has 50 training images per class.

        Classes are numbered in the order of their WordNet ids.

        Raises:
            DataError: if the files are missing, damaged or incomplete.
        """
        source = obtain(self.collection(), where)[0]
        if source.name == self.archive:
            check_digest(source.read_bytes(), self.archive_md5, str(source))
            train, test = _sort_images(_iterate_tiny_archive(source))
        else:
            source = source.parent
            train, test = _sort_images(_iterate_tiny_folder(source))
        images, labels = _decode_images(train, self.classes, self.train_per_class, f"{source}, train")
        tested = _decode_images(test, self.classes, self.test_per_class, f"{source}, val")
        return split_published(images, labels, TINY_VALIDATION_PER_CLASS, tested)


_ZIP, _ZIP_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"

WHOLE = TinyImageNetFiles(
    title="Tiny ImageNet",
    folder="tiny-imagenet-200",
    archive=_ZIP,
    archive_md5=_ZIP_MD5,
    classes=200,
    # The authors publish no digest; several independent readers of the data set have this one.
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
"""Class, name and content of an image file; images are sorted by these."""


_File = tuple[PurePosixPath, Callable[[], bytes]]
"""The path of a file, relative to the folder of the data set, and a function that returns the content."""


def _iterate_tiny_folder(folder: Path) -> Iterator[_File]:
    for part in ("train", "val"):
        for path in iterate_below(folder / part):
            yield PurePosixPath(path.relative_to(folder).as_posix()), path.read_bytes


def _iterate_tiny_archive(path: Path) -> Iterator[_File]:
    for place, read in iterate_members(path):
        yield PurePosixPath(*place.parts[1:]), read


def _sort_images(files: Iterator[_File]) -> tuple[list[_Image], list[_Image]]:
    """Return the training images and the published validation images, each list sorted by class and name."""
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


def _decode_images(
    images: list[_Image], classes: int, per_class: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode images; return pixels [n, 3, 64, 64] and classes [n].

    Raises `DataError` unless there are `per_class` images of each of the `classes` classes.
    """
    names, labels, counts = np.unique([wnid for wnid, _, _ in images], return_inverse=True, return_counts=True)
    if len(names) != classes or np.any(counts != per_class):
        found = f"{len(images):,} images of {len(names)} classes"
        raise DataError(
            f"{where} holds {found}, not {per_class} of each of {classes}: it is incomplete. Delete it and get it again"
        )
    array = np.empty((len(images), 3, SIZE, SIZE), np.uint8)
    for index, (wnid, name, content) in enumerate(images):
        image = decode_image(content, f"{where}: {wnid}/{name}")
        if image.size != (SIZE, SIZE):
            raise DataError(f"{where}: {wnid}/{name} is not of {SIZE}x{SIZE} pixels, but {image.width}x{image.height}")
        array[index] = to_array(image)
    return array, labels.astype(np.int64)
