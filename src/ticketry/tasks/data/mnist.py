"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28, 10 classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ticketry.tasks.base import Splits
from ticketry.tasks.data import idx
from ticketry.tasks.data.download import Origin
from ticketry.tasks.data.files import unpacked
from ticketry.tasks.data.locate import Collection, Layout, Place, obtain
from ticketry.tasks.data.split import hold_out, pick

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


def read(published: Published, where: tuple[Place, ...]) -> Splits:
    """The splits: the published test set, and the training set less 500 of each class for validation."""
    arrays = []
    for path, md5 in zip(obtain(published.collection(), where), published.plain, strict=True):
        dimensions = 3 if "images" in path.name else 1
        arrays.append(idx.parse(unpacked(path, md5), dimensions=dimensions, what=str(path)))
    images, labels, test_images, test_labels = arrays
    train, validation = hold_out(labels, VALIDATION_PER_CLASS)
    return Splits(
        train=pick(images[:, None], labels, train),
        validation=pick(images[:, None], labels, validation),
        test=pick(test_images[:, None], test_labels, np.arange(len(test_labels))),
    )
