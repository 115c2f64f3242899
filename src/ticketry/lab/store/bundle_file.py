"""A bundle's file: parts of a store one after another, behind a list of them and a digest of all.

    ticketry.bundle.2\\n                      what it is
    SHA-256 of all that follows, in hex, \\n  so that no flipped bit goes unnoticed
    8 bytes                                  length of the list
    list                                     JSON: what the parts are, their sizes and digests
    parts                                    see `Coding`

The same parts give the same bytes (of the same zlib). Nothing in it is code, and no part names a path: see `Part`.
Files of version 1 are read too: their records are compressed, all their tensors as they are stored.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.files import regular, replacing
from ticketry.lab.store.files import explained
from ticketry.lab.store.shapes import Digest
from ticketry.lab.store.similar import difference

MAGIC = b"ticketry.bundle.2\n"
_FORMATS = {b"ticketry.bundle.1\n": 1, MAGIC: 2}
_SEAL = 65
"""Bytes of the digest with its newline."""
_START = len(MAGIC) + _SEAL
_LEVEL = 6
"""Of zlib: the highest takes five times as long for masks, and gains a fiftieth."""
_CHUNK = 1 << 20
_LARGEST_LIST = 256 << 20
_LARGEST_RECORD = 64 << 20
_MOST_SWOLLEN, _PLAIN_RECORD = 30, 4 << 20
"""A record may be so many times as large as its part of the file, or so many bytes if that is more: what is read of
JSON takes twenty times its bytes. The records of a store are up to 18 times as large."""
_MOST_INFLATED, _AT_LEAST = 100, 64 << 20
"""Records and masks together may be so many times as large as the file, or so many bytes if that is more."""

Kind = Literal["blob", "result", "memo", "run", "evidence", "campaign"]
Coding = Literal["whole", "zlib", "difference"]
"""How a part lies in the file: as it is; compressed by zlib; compressed after XOR with the part before it, which is of
the same size and not whole."""
_Size = Annotated[int, Meta(ge=0, le=1 << 50)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a store."""

    kind: Kind
    name: tuple[str, ...]
    """What its store calls it: digest; trajectory and step; kind and key; name. Never a path."""
    size: _Size
    """Bytes in a store."""
    packed: _Size
    """Bytes in the bundle."""
    sha256: Digest
    """Of what is in a store."""
    coding: Coding | Literal[""] = ""
    """Empty in version 1."""

    @property
    def compressed(self) -> bool:
        return self.kind != "blob" if not self.coding else self.coding != "whole"


class Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle says of itself."""

    store: int
    """The format of the store."""
    numerics: int
    """Of the library that trained, see `store.NUMERICS`."""
    weights: bool
    """Whether the weights are in it, too."""
    runs: tuple[str, ...]
    parts: tuple[Part, ...]
    format: Literal[1, 2] = 2
    kind: Literal["ticketry.bundle"] = "ticketry.bundle"


class Source(NamedTuple):
    """A part that is to be written."""

    kind: Kind
    name: tuple[str, ...]
    read: Callable[[], bytes]
    whole: bool = False
    """Written as it is: weights, which no compression makes smaller."""


def write_bundle(
    target: Path, parts: Sequence[Source], *, store: int, numerics: int, weights: bool, runs: Sequence[str]
) -> Contents:
    """Write the parts, each read twice and two in memory at a time; the list is of `Contents`.

    Raises:
        StoreError: if the file cannot be written, or a part changes meanwhile.
    """
    listed = tuple(part for part, _ in _coded(parts))
    contents = Contents(store=store, numerics=numerics, weights=weights, runs=tuple(runs), parts=listed)
    told = msgspec.json.encode(contents)
    seal = hashlib.sha256()
    with explained(target, "write"), replacing(target, durable=True) as temporary, temporary.open("wb") as file:

        def put(data: bytes) -> None:
            seal.update(data)
            file.write(data)

        file.write(MAGIC + b" " * _SEAL)
        put(len(told).to_bytes(8, "little"))
        put(told)
        for part, (now, packed) in zip(listed, _coded(parts), strict=True):
            if now != part:
                changed = " ".join(part.name)
                raise StoreError(f"{changed} changed while it was packed: pack again when nothing writes to it")
            put(packed)
        file.seek(len(MAGIC))
        file.write(seal.hexdigest().encode() + b"\n")
    return contents


def _coded(parts: Sequence[Source]) -> Iterator[tuple[Part, bytes]]:
    """The parts, and what lies in the file."""
    before = b""
    for kind, name, read, whole in parts:
        data = read()
        coding, packed = ("whole", data) if whole else _shortest(data, before)
        if kind != "blob" and len(data) > _largest_record(len(packed)):
            coding, packed = "whole", data
        before = b"" if coding == "whole" else data  # as who reads it knows it
        told = {"kind": kind, "name": name, "size": len(data), "packed": len(packed), "coding": coding}
        yield msgspec.convert({**told, "sha256": hashlib.sha256(data).hexdigest()}, Part), packed


def _shortest(data: bytes, before: bytes) -> tuple[Coding, bytes]:
    """The part as it gets shortest."""
    found: tuple[Coding, bytes] = "zlib", zlib.compress(data, _LEVEL)
    if len(before) == len(data):
        other = zlib.compress(difference(data, before), _LEVEL)
        found = ("difference", other) if len(other) < len(found[1]) else found
    return found if len(data) <= _MOST_INFLATED * len(found[1]) else ("whole", data)


def _largest_record(packed: int) -> int:
    """Bytes that a record may have which takes so many in the file."""
    return min(_LARGEST_RECORD, max(_PLAIN_RECORD, _MOST_SWOLLEN * packed))


class Bundle:
    """A bundle that was opened to be read: its digest is right, and its list is one. Use it as a context manager.

    Raises:
        StoreError: if it is no bundle, damaged, of another version, or claims what cannot be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path, "read"):
            self._file: BinaryIO = regular(path)
        try:
            self.contents = self._checked()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def parts(self) -> Iterator[tuple[Part, bytes]]:
        """Each part with its content, whose digest is right; in the order of the file.

        Raises:
            StoreError: for a part that is not what the list says.
        """
        with explained(self.path, "read"):
            self._file.seek(self._first)
            before = b""
            for part in self.contents.parts:
                data = self._content(part, self._file.read(part.packed), before)
                before = data if part.compressed else b""
                yield part, data

    def _checked(self) -> Contents:
        with explained(self.path, "read"):
            size = os.fstat(self._file.fileno()).st_size
            head = self._file.read(_START)
            version = _FORMATS.get(head[: len(MAGIC)])
            if version is None:
                raise StoreError(
                    f"{self.path} is no bundle of this ticketry: those begin with {MAGIC.decode().strip()}"
                )
            seal = hashlib.sha256()
            while chunk := self._file.read(_CHUNK):
                seal.update(chunk)
            if head[len(MAGIC) :] != seal.hexdigest().encode() + b"\n":
                raise self._wrong("its contents do not match its digest")
            self._file.seek(_START)
            length = int.from_bytes(self._file.read(8), "little")
            if length > min(_LARGEST_LIST, size - _START - 8):
                raise self._wrong("its list of parts is longer than it can be")
            told = self._file.read(length)
        try:
            contents = msgspec.json.decode(told, type=Contents)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._wrong(f"its list of parts is none ({error})") from None
        if contents.format != version or any((part.coding != "") != (version == 2) for part in contents.parts):
            raise self._wrong(f"its list of parts is not one of version {version}")
        self._first = _START + 8 + length
        self._check_sizes(contents.parts, size)
        return contents

    def _check_sizes(self, parts: Sequence[Part], size: int) -> None:
        if self._first + sum(part.packed for part in parts) != size:
            raise self._wrong("its parts have not the size that its list tells")
        if len({(part.kind, part.name) for part in parts}) < len(parts):
            raise self._wrong("it has a part twice")
        compressed = [part for part in parts if part.compressed]
        if any(part.size != part.packed for part in parts if not part.compressed):
            raise self._wrong("its list tells two sizes of a file of tensors")
        most = max(_AT_LEAST, _MOST_INFLATED * size)
        if sum(part.size for part in compressed) > most:
            raise self._wrong(f"its records and masks would take more than {most >> 20} MB once unpacked")
        for part in compressed:
            if part.kind != "blob" and part.size > (limit := _largest_record(part.packed)):
                raise self._wrong(f"{' '.join(part.name):.80} would take more than {limit >> 20} MB once unpacked")

    def _content(self, part: Part, data: bytes, before: bytes) -> bytes:
        if part.compressed:
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, part.size + 1)
            except zlib.error as error:
                raise self._wrong(f"{' '.join(part.name)} cannot be unpacked: {error}") from None
            if not inflate.eof or inflate.unused_data:
                raise self._wrong(f"{' '.join(part.name)} has not the size that is told")
            if part.coding == "difference" and len(before) != len(data):
                raise self._wrong(f"{' '.join(part.name)} is told as a difference from a part of another size")
            data = difference(data, before) if part.coding == "difference" else data
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._wrong(f"{' '.join(part.name)} does not match its digest")
        return data

    def _wrong(self, why: str) -> StoreError:
        return StoreError(f"{self.path} is damaged or forged: {why}. Fetch it again, or pack it anew")
