"""Tiny ImageNet (Stanford CS231N, 2015): 500 + 50 colour images of 64x64 for each of 200 classes, or of the first 20.

The published validation set has the labels, and is the test set here. Its images lie in one folder, with a file that
names their classes; in the set of 20 classes they lie in a folder for each class. Both layouts are read, from a folder
or out of the archive, and give the same examples in the same order: by class, then by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError
from ticketry.folders import iterate_below
from ticketry.tasks.data.image_files import decoded, pixels
from ticketry.tasks.data.locate import DAMAGED, Collection, Layout, Origin, Place, check, members, obtain
from ticketry.tasks.data.splits import held_out
from ticketry.tasks.task import Splits

VALIDATION_PER_CLASS = 50
SIZE = 64

_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class Published:
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
            train, test = _sorted(_from_archive(source))
        else:
            source = source.parent
            train, test = _sorted(_from_folder(source))
        images, labels = _arrays(train, self.classes, self.train_per_class, f"{source}, train")
        tested = _arrays(test, self.classes, self.test_per_class, f"{source}, val")
        return held_out(images, labels, VALIDATION_PER_CLASS, tested)


_ZIP, _ZIP_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"

WHOLE = Published(
    title="Tiny ImageNet",
    folder="tiny-imagenet-200",
    archive=_ZIP,
    archive_md5=_ZIP_MD5,
    classes=200,
    # Its authors give no digest; this one stands in many independent readers of the set.
    origins=(Origin(f"http://cs231n.stanford.edu/{_ZIP}", _ZIP, _ZIP_MD5),),
)

TWENTY = Published(
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


def _from_archive(path: Path) -> Iterator[_File]:
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
