"""Digits and clothes: MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017) and scikit-learn's digits.

The first two have 60,000 + 10,000 grey images of 28x28 in 10 classes, in files of the idx format: two zero bytes, a
type, the number of dimensions, their sizes, the values. scikit-learn's digits (the test set of UCI's optical
recognition of digits) are 1,797 of 8x8: small enough to train in a second, and installed with the library, so that
nothing is downloaded.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError, MissingExtraError
from ticketry.tasks.data.locate import Collection, Layout, Origin, Place, obtain, unpacked
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


VALIDATION_PER_CLASS = 500

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Published:
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
        return held_out(images[:, None], labels, VALIDATION_PER_CLASS, (test_images[:, None], test_labels))


MNIST = Published(
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

FASHION_MNIST = Published(
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
"""Of each class."""


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
