"""A bundle's file: parts of a store one after another, behind a list of them and a digest of all.

    ticketry.bundle.1\\n                      what it is
    SHA-256 of all that follows, in hex, \\n  so that no flipped bit goes unnoticed
    8 bytes                                  length of the list
    list                                     JSON: what the parts are, their sizes and digests
    parts                                    tensors as they are stored; records compressed by zlib

The same parts give the same bytes (of the same zlib). Nothing in it is code, and no part names a path: see `Part`.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta

from ticketry.errors import StoreError
from ticketry.files import regular, replacing
from ticketry.lab.store.files import explained
from ticketry.lab.store.shapes import Digest

MAGIC = b"ticketry.bundle.1\n"
_SEAL = 65
"""Bytes of the digest with its newline."""
_START = len(MAGIC) + _SEAL
_CHUNK = 1 << 20
_LARGEST_LIST = 256 << 20
_LARGEST_RECORD = 64 << 20
_MOST_INFLATED, _AT_LEAST = 100, 64 << 20
"""Records may be so many times as large as the file, or so many bytes if that is more."""

Kind = Literal["blob", "result", "memo", "run", "evidence", "campaign"]
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
    format: Literal[1] = 1
    kind: Literal["ticketry.bundle"] = "ticketry.bundle"


Source = tuple[Kind, tuple[str, ...], Callable[[], bytes]]
"""Kind and name of a part, and what reads it."""


def write_bundle(
    target: Path, parts: Sequence[Source], *, store: int, numerics: int, weights: bool, runs: Sequence[str]
) -> Contents:
    """Write the parts, each read twice and one in memory at a time; the list is of `Contents`.

    Raises:
        StoreError: if the file cannot be written, or a part changes meanwhile.
    """
    listed = tuple(_part(kind, name, read()) for kind, name, read in parts)
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
        for part, (kind, name, read) in zip(listed, parts, strict=True):
            data = read()
            if _part(kind, name, data) != part:
                raise StoreError(f"{' '.join(name)} changed while it was packed: pack again when nothing writes to it")
            put(_packed(kind, data))
        file.seek(len(MAGIC))
        file.write(seal.hexdigest().encode() + b"\n")
    return contents


def _part(kind: str, name: tuple[str, ...], data: bytes) -> Part:
    digest = hashlib.sha256(data).hexdigest()
    return msgspec.convert(
        {"kind": kind, "name": name, "size": len(data), "packed": len(_packed(kind, data)), "sha256": digest}, Part
    )


def _packed(kind: str, data: bytes) -> bytes:
    return data if kind == "blob" else zlib.compress(data, 9)


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
            for part in self.contents.parts:
                yield part, self._content(part, self._file.read(part.packed))

    def _checked(self) -> Contents:
        with explained(self.path, "read"):
            size = os.fstat(self._file.fileno()).st_size
            head = self._file.read(_START)
            if not head.startswith(MAGIC):
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
        self._first = _START + 8 + length
        self._check_sizes(contents.parts, size)
        return contents

    def _check_sizes(self, parts: Sequence[Part], size: int) -> None:
        if self._first + sum(part.packed for part in parts) != size:
            raise self._wrong("its parts have not the size that its list tells")
        if len({(part.kind, part.name) for part in parts}) < len(parts):
            raise self._wrong("it has a part twice")
        records = [part for part in parts if part.kind != "blob"]
        if any(part.size != part.packed for part in parts if part.kind == "blob"):
            raise self._wrong("its list tells two sizes of a file of tensors")
        most = max(_AT_LEAST, _MOST_INFLATED * size)
        if max((part.size for part in records), default=0) > _LARGEST_RECORD or sum(p.size for p in records) > most:
            raise self._wrong(f"its records would take more than {most >> 20} MB once unpacked")

    def _content(self, part: Part, data: bytes) -> bytes:
        if part.kind != "blob":
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, part.size + 1)
            except zlib.error as error:
                raise self._wrong(f"{' '.join(part.name)} cannot be unpacked: {error}") from None
            if not inflate.eof or inflate.unused_data:
                raise self._wrong(f"{' '.join(part.name)} has not the size that is told")
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._wrong(f"{' '.join(part.name)} does not match its digest")
        return data

    def _wrong(self, why: str) -> StoreError:
        return StoreError(f"{self.path} is damaged or forged: {why}. Fetch it again, or pack it anew")
