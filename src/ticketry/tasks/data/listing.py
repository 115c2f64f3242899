"""The image files below a folder with one sub-folder for each class, and a digest of what is there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Of image files, in small or capital letters; other files are passed over, and so are hidden ones."""

TEST_FOLDERS = ("val", "test")
"""What the folder of the test split is called; the first that is there. ImageNet's own test has no labels."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of one split, ordered by class, then by name."""

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    """[n] below the class's folder, as the file system spells them: a third of what strings take."""
    labels: NDArray[np.int64]
    """[n]"""

    def path(self, row: int) -> str:
        """Of one file."""
        return os.path.join(self.folder, self.classes[self.labels[row]], os.fsdecode(bytes(self.names[row])))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A folder of images, as it is on disk."""

    train: Listing
    test: Listing
    digest: str
    """SHA-256 (hex) of the sorted paths below the folder and the sizes of the files."""


def scan(root: Path) -> ImageFolder:
    """What is in `root`: train/<class>/... and val/<class>/... (or test/). About 10 s for ImageNet on a local disk.

    A class's number is the rank of its folder's name in train. Times and contents of files are not looked at.

    Raises:
        DataError: if a folder is missing or cannot be read, a class has no images or is not in train, or there are
            fewer than two classes.
    """
    found = hashlib.sha256()
    try:
        train = _folder(root, ("train",))
        test = _folder(root, TEST_FOLDERS)
        classes = _classes(train)
        if len(classes) < 2:
            raise DataError(f"{train}: {len(classes)} folders of classes, but at least two are needed: train/<class>/*")
        tested = _classes(test)
        if strangers := sorted(set(tested) - set(classes)):
            raise DataError(
                f"{test / strangers[0]} is a class that is not in {train}: each class in {test.name} needs images there"
            )
        return ImageFolder(
            train=_list(train, classes, classes, found, least=2),
            test=_list(test, classes, tested, found),
            digest=found.hexdigest(),
        )
    except OSError as error:
        raise DataError(f"{root} cannot be read as a folder of images: {error}") from error


def _folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(str(root / name) for name in names)
    raise DataError(f"there is no folder {wanted}: images are looked for in train/<class>/* and val/<class>/* of it")


def _classes(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _list(
    folder: Path, classes: tuple[str, ...], present: tuple[str, ...], found: hashlib._Hash, *, least: int = 1
) -> Listing:
    names: list[bytes] = []
    labels = []
    for name in present:
        files = sorted(_files(os.path.join(folder, name), ""))
        if len(files) < least:  # of two for training, one is held out for validation
            raise DataError(
                f"{folder / name} holds {len(files)} images ({', '.join(SUFFIXES)}), but a class needs at least {least}"
                " there: add some, or take the folder away"
            )
        prefix = os.fsencode(f"{folder.name}/{name}/")
        found.update(b"".join(b"%s%s\0%d\n" % (prefix, file, size) for file, size in files))
        names += [file for file, _ in files]
        labels.append(np.full(len(files), classes.index(name), np.int64))
    if not names:
        raise DataError(f"{folder} holds no folders of classes: images are looked for in {folder.name}/<class>/*")
    return Listing(folder, classes, np.array(names, np.bytes_), np.concatenate(labels))


def _files(folder: str, prefix: str) -> Iterator[tuple[bytes, int]]:
    """Name below the class's folder and size in bytes of each image, folders inside included."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield os.fsencode(prefix + entry.name), entry.stat().st_size
            elif entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/")
