"""Image files: folders with a sub-folder for each class, and images decoded to bytes.

They become RGB, are resized, and cut to a square at the centre or at random.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketry.errors import DataError, needs
from ticketry_engine.support.seeds import mix

if TYPE_CHECKING:
    from PIL.Image import Image


SCALE = (0.08, 1.0)
"""Share of the image's area that a random crop has."""
RATIO = (3 / 4, 4 / 3)
"""Its width / height."""
_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; the last two are outside."""


@dataclass(frozen=True)
class Pictures:
    """A request for a batch of image files, see `tasks.task.Reader`: uint8 [n, 3, size, size] when it is called."""

    paths: tuple[str, ...]
    size: int
    resize: int
    """Shorter side of an image before the central square is cropped."""
    seed: int | None = None
    """Seed of random crops, None for central ones; image i of the batch has the draws of (seed, i)."""
    first: int = 0
    """The place of the first image in the batch, where these are a part of one."""

    def __call__(self) -> Tensor:
        """Read them.

        Raises:
            DataError: for the first file that is not a whole image.
        """
        return stacked(
            ((path, path) for path in self.paths), len(self.paths), self.size, self.resize, self.seed, self.first
        )


def stacked(
    files: Iterable[tuple[str | bytes, str]],
    count: int,
    size: int,
    resize: int,
    seed: int | None = None,
    first: int = 0,
) -> Tensor:
    """Image files, each a path or a content with a name for errors, as uint8 [count, 3, size, size]; see `Pictures`.

    Raises:
        DataError: for the first that is not a whole image.
    """
    batch = np.empty((count, 3, size, size), np.uint8)
    for position, (file, name) in enumerate(files):
        image = decoded(file, name)
        if seed is None:
            image = central(image, resize, size)
        else:
            draws = random.Random(mix(seed, first + position))
            image = resized(image.crop(random_box(*image.size, draws)), size, size)
        batch[position] = pixels(image)
    return torch.from_numpy(batch)


def decoded(file: str | bytes, name: str) -> Image:
    """The RGB image in a file, given by its path or its content. Grey and palette images become RGB, alpha is dropped.

    Raises:
        DataError: if it is not a whole image of 8 or 16 bits a channel.
    """
    needs("PIL", "lab", "reading images")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _rgb(image)
    except Exception as error:  # damaged files make decoders raise nearly anything, from SyntaxError to struct.error
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): get it again, or take it away"
        ) from error


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut off everything above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; 8 bits a channel are wanted")
    if image.mode == "P":
        image = image.convert("RGBA")  # or Pillow warns of palettes with transparent colours
    return image.convert("RGB")


def pixels(image: Image) -> NDArray[np.uint8]:
    """uint8 [3, height, width] of an RGB image."""
    values: NDArray[np.uint8] = np.asarray(image, np.uint8).transpose(2, 0, 1)
    return values


def resized(image: Image, width: int, height: int) -> Image:
    """Bilinear, with the filter widened to the pixels of the source when the image shrinks (antialiased)."""
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def central(image: Image, resize: int, size: int) -> Image:
    """The shorter side resized to `resize`, the other in proportion, and the central square of `size` cut out."""
    width, height = image.size
    if width <= height:
        width, height = resize, resize * height // width
    else:
        width, height = resize * width // height, resize
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized(image, width, height).crop((left, top, left + size, top + size))


def random_box(width: int, height: int, draws: random.Random) -> Box:
    """Choose the crop of an image before resizing: the recipe of Inception and ResNet for ImageNet.

    Szegedy et al. 2015 (section 6): a share of the area uniform in [0.08, 1], an aspect ratio in [3/4, 4/3], here
    uniform in its logarithm, anywhere in the image. After ten boxes that do not fit it is the largest central one
    whose ratio is in bounds, as in torchvision.

    Only `Random.random` is drawn from: Python promises that it never changes.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(_ATTEMPTS):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * draws.random())
        ratio = math.exp(low + (high - low) * draws.random())
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(draws.random() * (width - wide + 1)), int(draws.random() * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of image files, in lower or upper case; other files, and hidden ones, are skipped."""

TEST_FOLDERS = ("val", "test")
"""Names of the folder of the test split; the first that exists is used. ImageNet's own test split has no labels."""


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
        """Build the error for one file."""
        return os.path.join(self.folder, self.classes[self.labels[row]], os.fsdecode(bytes(self.names[row])))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A folder of images on disk."""

    train: Listing
    test: Listing
    digest: str
    """SHA-256 (hex) of the sorted paths below the folder and the sizes of the files."""


def scan(root: Path) -> ImageFolder:
    """Scan `root`: train/<class>/... and val/<class>/... (or test/). About 10 s for ImageNet on a local disk.

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
    """Yield the name below the class's folder and the size in bytes of each image, folders inside included."""
    waiting = [(folder, prefix)]
    while waiting:
        place, before = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    yield os.fsencode(before + entry.name), entry.stat().st_size
                elif entry.is_dir():
                    waiting.append((entry.path, f"{before}{entry.name}/"))
