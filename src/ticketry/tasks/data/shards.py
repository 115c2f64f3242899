"""Images in shards, as WebDataset has them: tar files with members ``key.jpg`` and ``key.cls``, a class's number.

Beside them there may be, and at a URL must be, a manifest ``shards.json`` with digests and an ``index.npz`` that tells
where in which shard each image lies. With these an image is one read at a known place: no archive is walked through,
nothing but the images of a few batches is in memory, and any step's batch is known without its past.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ticketry.errors import DataError
from ticketry.files import content_of, file_digest, reason_of
from ticketry.folders import iterate_below
from ticketry.tasks.data.image_files import SUFFIXES, stacked
from ticketry.tasks.data.shard_files import Source

MANIFEST, INDEX = "shards.json", "index.npz"
_LARGEST_MANIFEST = 1 << 26
PARTS = ("train", "test")
_WORDS = {"train": "train", "training": "train", "val": "test", "validation": "test", "valid": "test"}


class Shard(msgspec.Struct, frozen=True):
    """A tar file of a manifest."""

    file: str
    bytes: int
    sha256: str
    part: str
    """``train`` or ``test``."""


class Manifest(msgspec.Struct, frozen=True):
    """What ``shards.json`` says."""

    format: int
    shards: tuple[Shard, ...]
    index_sha256: str
    classes: tuple[str, ...] = ()
    """Their names by number, where they are known."""


@dataclass(frozen=True, eq=False)
class Index:
    """Every image of a set, in the order of shards and within them."""

    shard: NDArray[np.int64]
    """[n], the place of its shard in the manifest."""
    offset: NDArray[np.int64]
    """[n], of its first byte in the shard."""
    size: NDArray[np.int64]
    """[n], in bytes."""
    label: NDArray[np.int64]
    """[n]"""

    def digest(self, shards: tuple[Shard, ...]) -> str:
        """SHA-256 (hex) over what there is: the parts and names of the shards, their images' places and labels."""
        found = hashlib.sha256("".join(f"{one.part}/{one.file}\n" for one in shards).encode())
        for values in (self.shard, self.offset, self.size, self.label):
            found.update(values.astype("<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class ShardListing:
    """The images of one part, as `image_files.Listing` is of a folder."""

    source: Source
    shards: tuple[Shard, ...]
    index: Index
    classes: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.index.label

    def request(self, rows: list[int], size: int, resize: int, seed: int | None, first: int = 0) -> ShardPictures:
        """Of those images."""
        shard = self.index.shard[rows]
        numbers, places = np.unique(shard, return_inverse=True)
        images = zip(places.tolist(), self.index.offset[rows].tolist(), self.index.size[rows].tolist(), strict=True)
        own = tuple(self.shards[one] for one in numbers)
        return ShardPictures(self.source, own, tuple(images), size, resize, seed, first)


@dataclass(frozen=True)
class ShardPictures:
    """A request for a batch of images, see `tasks.task.Reader`: uint8 [n, 3, size, size] when it is called."""

    source: Source
    shards: tuple[Shard, ...]
    images: tuple[tuple[int, int, int], ...]
    """Of each: the place of its shard in `shards`, where it begins there, and its bytes."""
    size: int
    resize: int
    seed: int | None = None
    first: int = 0

    def __call__(self) -> Tensor:
        """Read them; shards at a URL are fetched first.

        Raises:
            DataError: for a shard that cannot be had, and the first image that is none.
        """
        return stacked(self._contents(), len(self.images), self.size, self.resize, self.seed, self.first)

    def _contents(self) -> Iterator[tuple[bytes, str]]:
        opened: dict[int, int] = {}
        try:
            for number, offset, size in self.images:
                shard = self.shards[number]
                if number not in opened:
                    path = self.source.local(shard.file, shard.sha256, shard.bytes)
                    opened[number] = os.open(path, os.O_RDONLY)
                content = os.pread(opened[number], size, offset)
                yield content, f"the image at byte {offset:,} of {self.source}/{shard.file}"
        except OSError as error:
            raise DataError(f"a shard of {self.source} cannot be read: {error}") from error
        finally:
            for descriptor in opened.values():
                os.close(descriptor)


@dataclass(frozen=True, eq=False)
class ShardSet:
    """A set of shards, as `image_files.ImageFolder` is of a folder."""

    train: ShardListing
    test: ShardListing
    digest: str


def open_shards(source: Source) -> ShardSet:
    """The images of a source: by its manifest, or where a folder has none by looking through its shards.

    Raises:
        DataError: if there are none, a member has no class, a class has fewer than two training images, or the manifest
            is damaged.
    """
    if source.url or (Path(source.folder) / MANIFEST).is_file():
        manifest, index = _described(source)
    else:
        manifest, index = walked(Path(source.folder))
    return _set_of(source, manifest, index)


def _set_of(source: Source, manifest: Manifest, index: Index) -> ShardSet:
    listings = {}
    count = int(index.label.max()) + 1
    classes = manifest.classes or tuple(map(str, range(count)))
    if len(classes) < count:
        raise DataError(f"{source} has images of class {count - 1}, but {len(classes)} classes")
    parts = np.array([PARTS.index(one.part) for one in manifest.shards])
    for part in PARTS:
        own = np.flatnonzero(parts[index.shard] == PARTS.index(part))
        if not len(own):
            raise DataError(
                f"{source} has no shards for {part}: their names tell, such as train-000000.tar and val-000000.tar"
            )
        fields = (values[own] for values in (index.shard, index.offset, index.size, index.label))
        listings[part] = ShardListing(source, manifest.shards, Index(*fields), classes)
    counts = np.bincount(listings["train"].labels, minlength=len(classes))
    if len(classes) < 2 or counts.min() < 2:  # of two for training, one is held out for validation
        raise DataError(
            f"{source} has {counts.min()} training images of class {classes[counts.argmin()]}: two at least"
        )
    return ShardSet(listings["train"], listings["test"], index.digest(manifest.shards))


# -- the manifest ------------------------------------------------------------------------------------------------------


def _described(source: Source) -> tuple[Manifest, Index]:
    path = source.local(MANIFEST)
    try:
        manifest = msgspec.json.decode(content_of(path, most=_LARGEST_MANIFEST), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{source}/{MANIFEST} is not a manifest of shards: {error}") from error
    if manifest.format != 1:
        raise DataError(f"{source}/{MANIFEST} has format {manifest.format}: a later ticketry wrote it")
    found = source.local(INDEX, manifest.index_sha256)
    if file_digest(found) != manifest.index_sha256:
        raise DataError(f"{source}/{INDEX} is not the one of {MANIFEST}: describe the shards anew")
    return manifest, _read_index(found, manifest)


def _read_index(path: Path, manifest: Manifest) -> Index:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shard, offset, size, label = (
                np.asarray(arrays[name]).astype(np.int64) for name in ("shard", "offset", "size", "label")
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no index of shards: {error}") from error
    lengths = np.array([one.bytes for one in manifest.shards], np.int64)
    same = len({len(values) for values in (shard, offset, size, label)}) == 1 and len(shard) > 0
    if (
        not same
        or {one.part for one in manifest.shards} - set(PARTS)
        or min(shard.min(), offset.min(), size.min(), label.min()) < 0
        or shard.max() >= len(lengths)
        or (offset + size > lengths[shard]).any()
    ):
        raise DataError(f"{path} names what is not in the shards: describe them anew")
    return Index(shard, offset, size, label)


# -- without one -------------------------------------------------------------------------------------------------------


def walked(folder: Path, *, digests: bool = False) -> tuple[Manifest, Index]:
    """The shards of a folder (and of folders in it), looked through; `digests` reads all of them.

    Raises:
        DataError: if there are none, or one is no WebDataset shard of images with classes.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    try:
        files = [path for path in iterate_below(folder) if path.name.endswith(".tar") and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {reason_of(error)}") from error
    names = [path.relative_to(folder).as_posix() for path in files]
    parts = {part_of(name) for name in names}
    shards: list[Shard] = []
    rows: list[tuple[int, int, int, int]] = []
    for path, name in zip(files, names, strict=True):
        part = part_of(name)
        if part == "labelled?" and "test" in parts:
            continue  # as of an image folder, where there are both val and test
        part = "test" if part == "labelled?" else part
        if not part:
            raise DataError(f"{path}: is it for training or for testing? Its name says train or val")
        rows += [(len(shards), *image) for image in images_of(path)]
        shards.append(Shard(name, path.stat().st_size, file_digest(path) if digests else "", part))
    if not rows:
        raise DataError(f"{folder} holds no shards (train-*.tar, val-*.tar) with images")
    return Manifest(1, tuple(shards), ""), Index(*np.array(rows, np.int64).T)


def part_of(name: str) -> str:
    """``train`` or ``test``, as the words of a file's name tell; ``labelled?`` for the word test, empty without any."""
    words = re.findall(r"[a-z]+", name.lower())
    found = next((_WORDS[word] for word in words if word in _WORDS), "")
    return found or ("labelled?" if "test" in words else "")


def images_of(path: Path) -> Iterator[tuple[int, int, int]]:
    """Where each image of a shard begins, its bytes and its class.

    Members of one key follow one another, as WebDataset wants it; those that are neither image nor class are passed
    over.

    Raises:
        DataError: for an image without a class, a class that is no number, or what is no tar file.
    """
    key, image, label = "", None, None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                own, _, kind = member.name.rpartition("/")[2].partition(".")
                own = f"{member.name.rpartition('/')[0]}/{own}"
                if own != key:
                    yield from _image(path, key, image, label)
                    key, image, label = own, None, None
                if f".{kind.lower()}" in SUFFIXES:
                    image = (member.offset_data, member.size)
                elif kind == "cls":
                    file = archive.extractfile(member)
                    label = _number(path, member.name, file.read(32) if file else b"")
            yield from _image(path, key, image, label)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as a shard: {error}. Get it again") from error


def _image(path: Path, key: str, image: tuple[int, int] | None, label: int | None) -> Iterator[tuple[int, int, int]]:
    if image is None:
        return
    if label is None:
        raise DataError(f"{path}: the image {key.lstrip('/')} has no class: a member {key.lstrip('/')}.cls, a number")
    yield (*image, label)


def _number(path: Path, name: str, text: bytes) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 31:
        raise DataError(f"{path}: {name} is no class: a whole number from 0 on, not {text!r:.40}")
    return number


def npz(index: Index) -> bytes:
    """The content of `INDEX`; the same for the same images."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: getattr(index, name) for name in ("shard", "offset", "size", "label")})
    return file.getvalue()
