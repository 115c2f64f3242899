"""Read and write shards: large image data sets as a few tar files (WebDataset format), listed in a manifest."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from ticketry.errors import DataError, MissingExtraError, TaskError
from ticketry.files import (
    cache_folder,
    describe_os_error,
    file_digest,
    iterate_below,
    join_inside,
    read_bytes,
    replace_on_success,
    write_atomically,
)
from ticketry.tasks.data.image_files import SUFFIXES, ImageSet, Listing, read_images, scan
from ticketry_engine.support.seeds import generator

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
_CHUNK = 8 << 20
_SECONDS = 600


@dataclass(frozen=True)
class Source:
    """The location of shards (tar files of images), a folder or a URL."""

    url: str = ""
    folder: str = ""
    """Folder of the shards; for a URL, the cache folder of its files."""

    def __str__(self) -> str:
        return self.url or self.folder

    def local(self, name: str, sha256: str = "", size: int | None = None) -> Path:
        """Return the local path of a file; download it first if the source is a URL and the cache lacks the file.

        Args:
            name: path of the file, relative to the source; from a manifest.
            sha256: digest of the file (hex), with which a download is checked; empty for no check.
            size: expected size in bytes; None for no check.
        """
        # Cached under the digest, so that a replaced shard is downloaded again.
        path = join_inside(Path(self.folder), *([sha256] if self.url and sha256 else name.split("/")))
        if self.url and not (sha256 and path.is_file()):
            self._fetch(name, path, sha256)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if size is not None and found != size:
            raise DataError(
                f"{path} has {found:,} bytes, where its manifest says {size:,}: get it again, or describe the shards"
                " anew (ticketry.tasks.data.shards.describe)"
            )
        return path

    def _fetch(self, name: str, path: Path, sha256: str) -> None:
        """Download a file to `path`; if another process of this machine already downloads it, wait instead."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if sha256 and path.is_file():
                return
            if os.environ.get("TICKETRY_OFFLINE"):
                if path.is_file():  # the manifest of the last download
                    return
                raise DataError(f"{self.url}/{name} is not in the cache, and $TICKETRY_OFFLINE is set")
            try:
                with replace_on_success(path) as temporary:
                    self._download(name, temporary)
                    if sha256 and (found := file_digest(temporary)) != sha256:
                        raise DataError(
                            f"{self.url}/{name} is not the shard of the manifest: SHA-256 {sha256} expected, {found}"
                            " found. Put it there again, or describe the shards anew"
                        )
            except OSError as error:
                raise DataError(f"{self.url}/{name} could not be downloaded to {path}: {error}") from error

    def _download(self, name: str, target: Path) -> None:
        store = _open_remote_store(self.url)
        import obstore
        from obstore.exceptions import BaseError

        try:
            with open(target, "wb") as file:
                for chunk in obstore.get(store, name).stream(min_chunk_size=_CHUNK):
                    file.write(bytes(chunk))
        except FileNotFoundError:
            raise DataError(f"there is no {self.url}/{name}: a set of shards at a URL has a shards.json") from None
        except (BaseError, OSError) as error:
            text = str(error).partition("\n")[0].partition("?")[0]  # the query of a URL may hold secrets
            raise DataError(f"{self.url}/{name} cannot be fetched: {text:.300}") from None


def _open_remote_store(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError("obstore", "cloud", "data at a URL") from None
    plain = url.startswith("http://") or any(
        os.environ.get(f"{provider}_ALLOW_HTTP", "").lower() in ("true", "1") for provider in ("AWS", "AZURE", "GOOGLE")
    )
    if url.startswith("file://"):
        return from_url(url)
    try:
        return from_url(url, client_options={"timeout": f"{_SECONDS}s", "connect_timeout": "10s", "allow_http": plain})
    except Exception as error:
        raise DataError(f"{url} cannot be opened: {error!s:.300}") from None


def parse_address(address: str) -> Source:
    """Parse the address of shards, which is a folder or a URL."""
    scheme, found, rest = address.partition("://")
    if not found:
        return Source(folder=str(Path(address).expanduser().absolute()))
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise TaskError(f"no shards are read from {scheme:.20}:// addresses: name a folder, or a URL with {known}")
    parts = urllib.parse.urlsplit(address)
    if "@" in parts.netloc or "?" in rest or "#" in rest:
        raise TaskError(
            f"the address of shards ({scheme}://…) holds a password or a signature: leave it out. Credentials come from"
            " the provider's usual place (environment, instance role), and are never written down"
        )
    url = address.rstrip("/")
    if url.startswith("file://"):
        return Source(folder=urllib.parse.unquote(parts.path))
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    return Source(url, str(cache_folder() / "shards" / name))


MANIFEST, INDEX = "shards.json", "index.npz"
_LARGEST_MANIFEST = 1 << 26
PARTS = ("train", "test")
_WORDS = {"train": "train", "training": "train", "val": "test", "validation": "test", "valid": "test"}


class Shard(msgspec.Struct, frozen=True):
    """Describes a tar file of images; a manifest has such an entry for each of its tar files."""

    file: str
    bytes: int
    sha256: str
    part: str
    """Split to which the images belong: ``train`` or ``test``."""


class Manifest(msgspec.Struct, frozen=True):
    """The content of the manifest ``shards.json``: the shards of a data set, and the names of its classes."""

    format: int
    shards: tuple[Shard, ...]
    index_sha256: str
    classes: tuple[str, ...] = ()
    """Names of the classes by number, if they are known."""


@dataclass(frozen=True, eq=False)
class Index:
    """Locations and labels of all images of a data set, in the order of the shards and the images in them."""

    shard: NDArray[np.int64]
    """[n] index, in the manifest, of the shard that contains the image."""
    offset: NDArray[np.int64]
    """[n] offset of the image's first byte in the shard, in bytes."""
    size: NDArray[np.int64]
    """[n] size of the image file in bytes."""
    label: NDArray[np.int64]
    """[n] class number of the image."""

    def digest(self, shards: tuple[Shard, ...]) -> str:
        """Return the SHA-256 (hex) of the names and splits of the shards, and the locations and labels of images."""
        found = hashlib.sha256("".join(f"{one.part}/{one.file}\n" for one in shards).encode())
        for values in (self.shard, self.offset, self.size, self.label):
            found.update(values.astype("<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class ShardListing:
    """The images of a split that is stored in shards; `image_files.Listing` is the same for image files."""

    source: Source
    shards: tuple[Shard, ...]
    index: Index
    classes: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.index.label

    def request(self, rows: list[int], size: int, resize: int, seed: int | None, first: int = 0) -> ShardImageRequest:
        """Return a callable that reads the images at indices `rows`; for the other arguments see `ImageRequest`."""
        shard = self.index.shard[rows]
        numbers, places = np.unique(shard, return_inverse=True)
        images = zip(places.tolist(), self.index.offset[rows].tolist(), self.index.size[rows].tolist(), strict=True)
        own = tuple(self.shards[one] for one in numbers)
        return ShardImageRequest(self.source, own, tuple(images), size, resize, seed, first)


@dataclass(frozen=True)
class ShardImageRequest:
    """A callable object that reads a batch of images from shards as uint8 [n, 3, size, size]."""

    source: Source
    shards: tuple[Shard, ...]
    images: tuple[tuple[int, int, int], ...]
    """For each image: index of its shard in `shards`, offset in the shard in bytes, and size in bytes."""
    size: int
    resize: int
    seed: int | None = None
    first: int = 0

    def __call__(self) -> Tensor:
        """Read the images; shards at a URL are downloaded first."""
        return read_images(self._iterate_contents(), len(self.images), self.size, self.resize, self.seed, self.first)

    def _iterate_contents(self) -> Iterator[tuple[bytes, str]]:
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


def open_shards(source: Source) -> ImageSet[ShardListing]:
    """Return the images that the manifest at `source` lists; if a folder has no manifest, scan its shards."""
    if source.url or (Path(source.folder) / MANIFEST).is_file():
        manifest, index = _read_manifest(source)
    else:
        manifest, index = scan_shards(Path(source.folder))
    return _build_image_set(source, manifest, index)


def _build_image_set(source: Source, manifest: Manifest, index: Index) -> ImageSet[ShardListing]:
    listings = {}
    count = int(index.label.max()) + 1
    classes = manifest.classes or tuple(map(str, range(count)))
    if len(classes) < count:
        raise DataError(f"{source} has images of class {count - 1}, but {len(classes)} classes")
    parts = np.array([PARTS.index(one.part) for one in manifest.shards])
    for part in PARTS:
        own = np.flatnonzero(parts[index.shard] == PARTS.index(part))
        if not len(own):
            raise DataError(f"{source} has no shards for {part}: name them like train-000000.tar and val-000000.tar")
        fields = (values[own] for values in (index.shard, index.offset, index.size, index.label))
        listings[part] = ShardListing(source, manifest.shards, Index(*fields), classes)
    counts = np.bincount(listings["train"].labels, minlength=len(classes))
    if len(classes) < 2 or counts.min() < 2:  # one of two training images is held out for validation
        raise DataError(
            f"{source} has {counts.min()} training images of class {classes[counts.argmin()]}: two at least"
        )
    return ImageSet(listings["train"], listings["test"], index.digest(manifest.shards))


# -- the manifest ------------------------------------------------------------------------------------------------------


def _read_manifest(source: Source) -> tuple[Manifest, Index]:
    path = source.local(MANIFEST)
    try:
        manifest = msgspec.json.decode(read_bytes(path, most=_LARGEST_MANIFEST), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{source}/{MANIFEST} is not a manifest of shards: {error}") from None
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


# -- scanning -------------------------------------------------------------------------------------------------------


def scan_shards(folder: Path, *, digests: bool = False) -> tuple[Manifest, Index]:
    """Scan the shards in a folder and its sub-folders; return manifest (with SHA-256 if `digests`) and index."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    try:
        files = [path for path in iterate_below(folder) if path.name.endswith(".tar") and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {describe_os_error(error)}") from error
    names = [path.relative_to(folder).as_posix() for path in files]
    parts = {guess_split(name) for name in names}
    shards: list[Shard] = []
    rows: list[tuple[int, int, int, int]] = []
    for path, name in zip(files, names, strict=True):
        part = guess_split(name)
        if part == "labelled?" and "test" in parts:
            continue  # as in an image folder with both val and test
        part = "test" if part == "labelled?" else part
        if not part:
            raise DataError(f"{path}: is it for training or for testing? Its name says train or val")
        rows += [(len(shards), *image) for image in iterate_images(path)]
        shards.append(Shard(name, path.stat().st_size, file_digest(path) if digests else "", part))
    if not rows:
        raise DataError(f"{folder} has no shards (train-*.tar, val-*.tar) with images")
    return Manifest(1, tuple(shards), ""), Index(*np.array(rows, np.int64).T)


def guess_split(name: str) -> str:
    """Return the split, ``train`` or ``test``, that the words of a file name suggest; empty if none does.

    The result is ``labelled?`` for the word test, because published test sets often have no labels.
    """
    words = re.findall(r"[a-z]+", name.lower())
    found = next((_WORDS[word] for word in words if word in _WORDS), "")
    return found or ("labelled?" if "test" in words else "")


def iterate_images(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield the offset in bytes, the size in bytes and the class of each image in a shard.

    The image and the class of an example are files with the same name and different suffixes, one after the other, as
    WebDataset requires. Other files are skipped.
    """

    def name_of_example(member: tarfile.TarInfo) -> str:
        folder, _, name = member.name.rpartition("/")
        return f"{folder}/{name.partition('.')[0]}".lstrip("/")

    try:
        with tarfile.open(path, "r:") as archive:
            for example, members in groupby(filter(tarfile.TarInfo.isfile, archive), name_of_example):
                image, label = None, None
                for member in members:
                    kind = member.name.rpartition("/")[2].partition(".")[2]
                    if f".{kind.lower()}" in SUFFIXES:
                        image = (member.offset_data, member.size)
                    elif kind == "cls":
                        file = archive.extractfile(member)
                        label = _parse_class_number(path, member.name, file.read(32) if file else b"")
                if image is not None and label is None:
                    raise DataError(f"{path}: the image {example} has no class: a member {example}.cls, a number")
                if image is not None and label is not None:
                    yield (*image, label)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as a shard: {error}. Get it again") from error


def _parse_class_number(path: Path, name: str, text: bytes) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 31:
        raise DataError(f"{path}: {name} is no class: a whole number from 0 on, not {text!r:.40}")
    return number


MEGABYTES = 128
"""Approximate size of a shard, in megabytes."""


def write_shards(images: str | Path, shards: str | Path, *, megabytes: float = MEGABYTES) -> Path:
    """Write a folder of images (train/<class>/* and val/<class>/* or test/) as shards with a manifest.

    Image files are copied unchanged, in a fixed random order, so that each shard has many classes. The same images
    always give the same shards. Other readers of WebDataset can read the shards.

    Args:
        images: folder of images, as for the task imagefolder.
        shards: new or empty folder for the shards.
        megabytes: size of a shard in megabytes; the last shard may be smaller.

    Returns:
        The folder of the shards.

    Raises:
        DataError: if `images` is not such a folder, or `shards` is not empty or cannot be written.
    """
    found, target = scan(Path(images)), Path(shards)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise DataError(f"{target} has something in it: name a new folder for the shards")
        for name, listing in (("train", found.train), ("val", found.test)):
            _write_split(listing, target, name, round(megabytes * 1e6))
    except OSError as error:
        raise DataError(f"shards of {images} cannot be written to {target}: {error}") from error
    return describe(target, classes=found.train.classes)


def describe(shards: str | Path, *, classes: Sequence[str] = ()) -> Path:
    """Write the manifest ``shards.json`` and the index ``index.npz`` of the shards in a folder; return the folder.

    The two files are needed to read the shards from a URL; for a folder, they save a scan of the shards at every start.
    This function reads all shards once.

    Args:
        shards: folder of the shards.
        classes: names of the classes, in the order of their numbers.

    Raises:
        DataError: if there are no shards, or one is not a WebDataset shard of images with classes.
    """
    folder = Path(shards)
    manifest, index = scan_shards(folder, digests=True)
    file = io.BytesIO()
    np.savez_compressed(file, **{name: getattr(index, name) for name in ("shard", "offset", "size", "label")})
    complete = Manifest(1, manifest.shards, hashlib.sha256(file.getvalue()).hexdigest(), tuple(classes))
    try:
        write_atomically(folder / INDEX, file.getvalue())
        write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(complete), indent=1))
    except OSError as error:
        raise DataError(f"the manifest of {folder} cannot be written: {error}") from error
    return folder


def _write_split(listing: Listing, folder: Path, part: str, most: int) -> None:
    import torch

    order = torch.randperm(len(listing.labels), generator=generator(0, "shards", part)).tolist()
    number, begin = 0, 0
    sizes = np.array([Path(listing.path(row)).stat().st_size for row in order])
    while begin < len(order):
        end = begin + max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), most, side="right")))
        with (
            replace_on_success(folder / f"{part}-{number:06}.tar") as temporary,
            tarfile.open(temporary, "w") as archive,
        ):
            for place in range(begin, end):
                path = Path(listing.path(order[place]))
                _add_member(archive, f"{place:08}{path.suffix.lower()}", path.read_bytes())
                _add_member(archive, f"{place:08}.cls", str(int(listing.labels[order[place]])).encode())
        number, begin = number + 1, end


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
