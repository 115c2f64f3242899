"""Shards written from a folder of images, and a manifest for those that are there already.

>>> write_shards("imagenet", "imagenet-shards")                                        # doctest: +SKIP
>>> describe("somebody-else's-shards")                                                 # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ticketry.errors import DataError
from ticketry.files import replacing, write_atomically
from ticketry.tasks.data.image_files import Listing, scan
from ticketry.tasks.data.shards import INDEX, MANIFEST, Index, Manifest, npz, walked
from ticketry_engine.support.seeds import generator

MEGABYTES = 128
"""Of images in a shard, about."""


def write_shards(images: str | Path, shards: str | Path, *, megabytes: float = MEGABYTES) -> Path:
    """Write train/<class>/* and val/<class>/* (or test/) as shards, with their manifest; `shards`, the new folder.

    Images are written as they are, in an order drawn once (seed 0), so that each shard holds many classes; the same
    images give the same bytes. WebDataset and others read them too.

    Args:
        images: a folder as the task imagefolder has it.
        shards: the folder to write; made if it is missing, and it must be empty.
        megabytes: of images in a shard; the last may have fewer.

    Raises:
        DataError: if `images` is no such folder, or `shards` has something in it or cannot be written.
    """
    found, target = scan(Path(images)), Path(shards)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise DataError(f"{target} has something in it: name a new folder for the shards")
        for name, listing in (("train", found.train), ("val", found.test)):
            _write(listing, target, name, round(megabytes * 1e6))
    except OSError as error:
        raise DataError(f"shards of {images} cannot be written to {target}: {error}") from error
    return describe(target, classes=found.train.classes)


def describe(shards: str | Path, *, classes: Sequence[str] = ()) -> Path:
    """Write the manifest and the index of the shards in a folder: ``shards.json`` and ``index.npz``; the folder.

    With them it can be read from a URL, and opens without being looked through. Reads all shards once.

    Args:
        classes: their names by number.

    Raises:
        DataError: if it holds none, or one is no WebDataset shard of images with classes.
    """
    folder = Path(shards)
    manifest, index = walked(folder, digests=True)
    _save(folder, manifest, index, tuple(classes))
    return folder


def _save(folder: Path, manifest: Manifest, index: Index, classes: tuple[str, ...]) -> None:
    content = npz(index)
    complete = Manifest(1, manifest.shards, hashlib.sha256(content).hexdigest(), classes)
    try:
        write_atomically(folder / INDEX, content)
        write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(complete), indent=1))
    except OSError as error:
        raise DataError(f"the manifest of {folder} cannot be written: {error}") from error


def _write(listing: Listing, folder: Path, part: str, most: int) -> None:
    import torch

    order = torch.randperm(len(listing.labels), generator=generator(0, "shards", part)).tolist()
    number, begin = 0, 0
    sizes = np.array([Path(listing.path(row)).stat().st_size for row in order])
    while begin < len(order):
        end = begin + max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), most, side="right")))
        with replacing(folder / f"{part}-{number:06}.tar") as temporary, tarfile.open(temporary, "w") as archive:
            for place in range(begin, end):
                path = Path(listing.path(order[place]))
                _add(archive, f"{place:08}{path.suffix.lower()}", path.read_bytes())
                _add(archive, f"{place:08}.cls", str(int(listing.labels[order[place]])).encode())
        number, begin = number + 1, end


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
