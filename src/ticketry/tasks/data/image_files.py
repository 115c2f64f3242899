"""Image files: folders with a sub-folder for each class, and published data sets (MNIST, CIFAR, Tiny ImageNet).

Images are decoded to RGB, resized and cropped.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketry.errors import DataError, MissingExtraError, needs
from ticketry.files import iterate_below
from ticketry.tasks.data.locate import (
    DAMAGED,
    Collection,
    Layout,
    Origin,
    Place,
    check_digest,
    find_or_download,
    iterate_members,
    read_verified,
)
from ticketry.tasks.data.splits import hold_out, select_examples, split_published
from ticketry.tasks.task import Splits
from ticketry_engine.support.seeds import mix_seeds

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
        """Read the images; raise `DataError` for the first file that is not a complete image."""
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
    """Read image files as uint8 [count, 3, size, size]; `files` has pairs (path or content, name for messages).

    The other arguments are those of `ImageRequest`.
    """
    batch = np.empty((count, 3, size, size), np.uint8)
    for position, (file, name) in enumerate(files):
        image = decode_image(file, name)
        if seed is None:
            image = crop_centre(image, resize, size)
        else:
            draws = random.Random(mix_seeds(seed, first + position))
            image = resize_image(image.crop(random_box(*image.size, draws)), size, size)
        batch[position] = to_array(image)
    return torch.from_numpy(batch)


def decode_image(file: str | bytes, name: str) -> Image:
    """Decode an image file, given by its path or content, to RGB without an alpha channel."""
    needs("PIL", "lab", "reading images")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _convert_to_rgb(image)
    except Exception as error:  # damaged files make decoders raise nearly anything, from SyntaxError to struct.error
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): get it again, or remove it"
        ) from error


def _convert_to_rgb(image: Image) -> Image:
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

    def request(self, rows: list[int], size: int, resize: int, seed: int | None, first: int = 0) -> ImageRequest:
        """Return a callable that reads the images at indices `rows`; for the other arguments see `ImageRequest`."""
        return ImageRequest(tuple(map(self.path, rows)), size, resize, seed, first)


L = TypeVar("L")


@dataclass(frozen=True, eq=False)
class ImageSet(Generic[L]):
    """Lists of the training and test images of a data set, which is stored as image files or as shards."""

    train: L
    test: L
    digest: str
    """SHA-256 (hex) of names, sizes and order of all image files or shards; of shards also the classes of images."""


def scan(root: Path) -> ImageSet[Listing]:
    """List the images in train/<class>/... and val/<class>/... (or test/) below `root`.

    Classes are numbered in the order of their folder names in train. Files are not read, so that scanning ImageNet on a
    local disk takes about 10 s.
    """
    found = hashlib.sha256()
    try:
        train = _find_folder(root, ("train",))
        test = _find_folder(root, TEST_FOLDERS)
        classes = _list_class_names(train)
        if len(classes) < 2:
            raise DataError(f"{train}: {len(classes)} folders of classes, but at least two are needed: train/<class>/*")
        tested = _list_class_names(test)
        if strangers := sorted(set(tested) - set(classes)):
            raise DataError(
                f"{test / strangers[0]} is a class that is not in {train}: each class in {test.name} needs images there"
            )
        return ImageSet(
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
    raise DataError(f"there is no folder {wanted}: images are expected in train/<class>/* and val/<class>/* of it")


def _list_class_names(folder: Path) -> tuple[str, ...]:
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
                " there: add some, or remove the folder"
            )
        prefix = os.fsencode(f"{folder.name}/{name}/")
        found.update(b"".join(b"%s%s\0%d\n" % (prefix, file, size) for file, size in files))
        names += [file for file, _ in files]
        labels.append(np.full(len(files), classes.index(name), np.int64))
    if not names:
        raise DataError(f"{folder} has no folders of classes: images are expected in {folder.name}/<class>/*")
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


_UINT8 = 0x08


def parse_idx(content: bytes, *, dimensions: int, what: str) -> NDArray[np.uint8]:
    """Return the array in an idx file (the format of MNIST); raise an error unless it has `dimensions` dimensions."""
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UINT8, dimensions))
    if content[:4] != magic or len(content) < header:
        raise DataError(f"{what} does not start as an idx file of {dimensions}-dimensional bytes: {content[:4]!r}")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise DataError(f"{what} should hold {sizes} bytes after its header, but holds {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


MNIST_VALIDATION_PER_CLASS = 500

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


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
        """Read the splits; the published test set is for testing, and 500 training images per class for validation."""
        arrays = []
        for path, md5 in zip(find_or_download(self.collection(), where), self.plain, strict=True):
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
    """Read scikit-learn's digits; of each class, 40 are for testing, 20 for validation, the rest for training."""
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
    """The files of CIFAR-10 or CIFAR-100."""

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
        """Read the splits; the published test set is for testing, and a tenth of each training class for validation."""
        files = find_or_download(self.collection(), where)
        from_archive = files[0].name == self.archive
        contents = (
            _read_cifar_archive(self, files[0]) if from_archive else map(read_verified, files, self.batches.values())
        )
        batches = [unpickle_cifar_batch(content, self.labels) for content in contents]
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


def _read_cifar_archive(published: CifarFiles, path: Path) -> Iterator[bytes]:
    try:
        contents = {file.name: read() for file, read in iterate_members(path) if file.name in published.batches}
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {published.archive_md5} expected. Delete it and get it again"
        ) from error
    for name, md5 in published.batches.items():
        if name not in contents:
            raise DataError(f"{path} lacks {published.folder}/{name}. Delete it and get it again")
        check_digest(contents[name], md5, f"{published.folder}/{name} in {path}")
        yield contents[name]


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # numpy has since moved it
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""The objects that pickled CIFAR batches may refer to, by module and name."""


class _Batch(pickle.Unpickler):
    """An unpickler that refuses all classes and functions except those in `_KNOWN`, so that files cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch")
        return _KNOWN[module, name]


def unpickle_cifar_batch(content: bytes, labels: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [n, 3, 32, 32] and classes [n] of a pickled CIFAR batch; `labels` is the key of the classes."""
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
        """Read the splits; published validation images are for testing, 50 training images per class for validation.

        Classes are numbered in the order of their WordNet ids.
        """
        source = find_or_download(self.collection(), where)[0]
        if source.name == self.archive:
            check_digest(source.read_bytes(), self.archive_md5, str(source))
            train, test = _collect_tiny_images(
                (PurePosixPath(*place.parts[1:]), read) for place, read in iterate_members(source)
            )
        else:
            source = source.parent
            paths = (path for part in ("train", "val") for path in iterate_below(source / part))
            train, test = _collect_tiny_images(
                (PurePosixPath(path.relative_to(source).as_posix()), path.read_bytes) for path in paths
            )
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


def _collect_tiny_images(files: Iterator[_File]) -> tuple[list[_Image], list[_Image]]:
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
    """Decode `per_class` images of each class, or raise `DataError`; return pixels [n, 3, 64, 64] and classes [n]."""
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
