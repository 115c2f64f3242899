"""Image files: folders with a sub-folder for each class, and images decoded to RGB, resized and cropped."""

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
"""Smallest and largest share of the image's area that a random crop has."""
RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a random crop."""
_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""A rectangle in an image, in pixels: left, top, right, bottom; right and bottom are exclusive."""


@dataclass(frozen=True)
class ImageRequest:
    """A callable object that reads a batch of image files as uint8 [n, 3, size, size], see `Reader.request`."""

    paths: tuple[str, ...]
    size: int
    resize: int
    """Number of pixels to which the shorter side of an image is resized before the central square is cropped."""
    seed: int | None = None
    """Seed of random crops, which depend on this seed and on the position in the batch; None crops the centre."""
    first: int = 0
    """Position, in the whole batch, of the first of these images, if a batch is split over processes."""

    def __call__(self) -> Tensor:
        """Read the images.

        Raises:
            DataError: for the first file that is not a complete image.
        """
        return read_images(
            ((path, path) for path in self.paths), len(self.paths), self.size, self.resize, self.seed, self.first
        )


def read_images(
    files: Iterable[tuple[str | bytes, str]],
    count: int,
    size: int,
    resize: int,
    seed: int | None = None,
    first: int = 0,
) -> Tensor:
    """Read `count` images as uint8 [count, 3, size, size]; `ImageRequest` describes the other arguments.

    Args:
        files: for each image, the path or content of its file, and a name for error messages.

    Raises:
        DataError: for the first file that is not a complete image.
    """
    batch = np.empty((count, 3, size, size), np.uint8)
    for position, (file, name) in enumerate(files):
        image = decode_image(file, name)
        if seed is None:
            image = crop_centre(image, resize, size)
        else:
            draws = random.Random(mix(seed, first + position))
            image = resize_image(image.crop(random_box(*image.size, draws)), size, size)
        batch[position] = to_array(image)
    return torch.from_numpy(batch)


def decode_image(file: str | bytes, name: str) -> Image:
    """Decode an image file, given by its path or content, to RGB without an alpha channel.

    Raises:
        DataError: if the file is not a complete image with 8 or 16 bits per channel.
    """
    needs("PIL", "lab", "reading images")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _to_rgb(image)
    except Exception as error:  # damaged files make decoders raise nearly anything, from SyntaxError to struct.error
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): get it again, or take it away"
        ) from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would clip values above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; 8 bits a channel are wanted")
    if image.mode == "P":
        image = image.convert("RGBA")  # or Pillow warns of palettes with transparent colours
    return image.convert("RGB")


def to_array(image: Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image, uint8 [3, height, width]."""
    values: NDArray[np.uint8] = np.asarray(image, np.uint8).transpose(2, 0, 1)
    return values


def resize_image(image: Image, width: int, height: int) -> Image:
    """Resize an image bilinearly to `width` x `height` pixels, with antialiasing if it shrinks."""
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def crop_centre(image: Image, resize: int, size: int) -> Image:
    """Resize the shorter side of an image to `resize` pixels and crop the central square of `size` pixels."""
    width, height = image.size
    if width <= height:
        width, height = resize, resize * height // width
    else:
        width, height = resize * width // height, resize
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resize_image(image, width, height).crop((left, top, left + size, top + size))


def random_box(width: int, height: int, draws: random.Random) -> Box:
    """Return the box of a random crop of an image, as in the training of Inception and ResNet on ImageNet.

    The share of the area is uniform in [0.08, 1], the logarithm of the aspect ratio is uniform in [log 3/4, log 4/3],
    and the position is uniform (Szegedy et al. 2015, section 6). After ten boxes that do not fit into the image, the
    result is the largest central box with an aspect ratio in [3/4, 4/3], as in torchvision. Random numbers come from
    `Random.random`, which Python promises never to change.
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
"""Suffixes of image files, in lower or upper case; other files and hidden files are skipped."""

TEST_FOLDERS = ("val", "test")
"""Names of the folder of the test split; the first that exists is used. ImageNet's test folder has no labels."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a split, ordered by class and then by name."""

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    """[n] paths relative to the folder of the class, as bytes, which take a third of the memory of strings."""
    labels: NDArray[np.int64]
    """[n] class number of each file."""

    def path(self, row: int) -> str:
        """Return the path of the file at index `row`."""
        return os.path.join(self.folder, self.classes[self.labels[row]], os.fsdecode(bytes(self.names[row])))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The contents of a folder of images: classes and listings of files."""

    train: Listing
    test: Listing
    digest: str
    """SHA-256 (hex) of the sizes and relative paths of all files, in the order of the paths."""


def scan(root: Path) -> ImageFolder:
    """List the images in train/<class>/... and val/<class>/... (or test/) below `root`.

    Classes are numbered in the order of their folder names in train. Files are listed but not read. This takes about
    10 s for ImageNet on a local disk.

    Raises:
        DataError: if a folder is missing or cannot be read, if a class has no images or has no folder in train, or if
            there are fewer than two classes.
    """
    found = hashlib.sha256()
    try:
        train = _find_folder(root, ("train",))
        test = _find_folder(root, TEST_FOLDERS)
        classes = _list_classes(train)
        if len(classes) < 2:
            raise DataError(f"{train}: {len(classes)} folders of classes, but at least two are needed: train/<class>/*")
        tested = _list_classes(test)
        if strangers := sorted(set(tested) - set(classes)):
            raise DataError(
                f"{test / strangers[0]} is a class that is not in {train}: each class in {test.name} needs images there"
            )
        return ImageFolder(
            train=_list_images(train, classes, classes, found, least=2),
            test=_list_images(test, classes, tested, found),
            digest=found.hexdigest(),
        )
    except OSError as error:
        raise DataError(f"{root} cannot be read as a folder of images: {error}") from error


def _find_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(str(root / name) for name in names)
    raise DataError(f"there is no folder {wanted}: images are looked for in train/<class>/* and val/<class>/* of it")


def _list_classes(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _list_images(
    folder: Path, classes: tuple[str, ...], present: tuple[str, ...], found: hashlib._Hash, *, least: int = 1
) -> Listing:
    names: list[bytes] = []
    labels = []
    for name in present:
        files = sorted(_iterate_files(os.path.join(folder, name), ""))
        if len(files) < least:  # one of two training images is held out for validation
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


def _iterate_files(folder: str, prefix: str) -> Iterator[tuple[bytes, int]]:
    """Yield the path and the size in bytes of each image in `folder` and its sub-folders; paths start with `prefix`."""
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
