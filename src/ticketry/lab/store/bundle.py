r"""Write and read bundles, which are files with a format line, a digest, a list of parts, and the parts themselves.

    ticketry.bundle.2\n                      the format
    SHA-256 of all that follows, in hex, \n  so that a flipped bit is noticed
    8 bytes                                  length of the list
    list                                     JSON: `Contents`, with size and digest of each part
    parts                                    see `Coding`

A part is a file of a store. The same parts give the same bytes (with the same version of zlib). A bundle contains no
code and no paths, see `Part`. In bundles of version 1, which can be read too, records are compressed, and tensors are
stored unchanged.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ticketry.errors import StoreError
from ticketry.files import open_regular_file, replace_on_success
from ticketry.lab.store.files import Digest, explain_os_errors

MAGIC = b"ticketry.bundle.2\n"
_FORMATS = {b"ticketry.bundle.1\n": 1, MAGIC: 2}
_SEAL = 65
"""Bytes of the digest, with its newline."""
_START = len(MAGIC) + _SEAL
_LEVEL = 6
"""Compression level of zlib; with the highest level, masks take five times as long and become 2 % smaller."""
_CHUNK = 1 << 20
_LARGEST_LIST = 256 << 20
_LARGEST_RECORD = 64 << 20
_MOST_SWOLLEN, _PLAIN_RECORD = 30, 4 << 20
"""Limits of the size of an unpacked record: this many times its compressed size, or this many bytes if that is more.
Larger records are rejected, because parsed JSON needs twenty times its bytes of memory. The factor for records of real
stores is at most 18."""
_MOST_INFLATED, _AT_LEAST = 100, 64 << 20
"""Limits of the size of all unpacked records and masks: this many times the size of the bundle, or this many bytes if
that is more."""

Kind = Literal["blob", "result", "memo", "run", "evidence", "campaign"]
Coding = Literal["whole", "zlib", "difference"]
"""How a part is stored: unchanged (whole), compressed by zlib, or (difference) compressed after XOR with the previous
part of the same size. Without differences the bundles in research/bundles would be 16 % larger, and their masks 36 %;
claims-lenet would be 34 % larger, and its masks 74 %."""
_Size = Annotated[int, Meta(ge=0, le=1 << 50)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describes one file in a bundle, which is an archive of files of a store."""

    kind: Kind
    name: tuple[str, ...]
    """The file's name in the store, never a path. Depending on `kind` it is a digest; a trajectory and a step; the kind
    and the key of a stored value; or the name of a run, of evidence or of a campaign."""
    size: _Size
    """Bytes of the file in a store."""
    packed: _Size
    """Bytes of the part in the bundle."""
    sha256: Digest
    """SHA-256 of the file in a store."""
    coding: Coding | Literal[""] = ""
    """How the file is compressed; empty in bundles of version 1."""

    @property
    def compressed(self) -> bool:
        return self.kind != "blob" if not self.coding else self.coding != "whole"


class Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lists the parts of a bundle; the list is stored at the bundle's beginning."""

    store: int
    """Format version of the store."""
    numerics: int
    """Version of the code that computed the results, see `store.NUMERICS`."""
    weights: bool
    """Whether the bundle includes weights."""
    runs: tuple[str, ...]
    parts: tuple[Part, ...]
    format: Literal[1, 2] = 2
    kind: Literal["ticketry.bundle"] = "ticketry.bundle"


class Source(NamedTuple):
    """Describes a part that is to be written into a bundle; `read` returns the bytes of its file."""

    kind: Kind
    name: tuple[str, ...]
    read: Callable[[], bytes]
    whole: bool = False
    """Whether the part is stored without compression; this is best for weights, which do not become smaller."""


# -- writing -----------------------------------------------------------------------------------------------------------


def write_bundle(
    target: Path, sources: Sequence[Source], *, store: int, numerics: int, weights: bool, runs: Sequence[str]
) -> Contents:
    """Write the files `sources` into a bundle (archive) at `target`, and return its list of parts.

    Each source is read twice.
    """
    parts = tuple(part for part, _ in _encode_parts(sources))
    contents = Contents(store=store, numerics=numerics, weights=weights, runs=tuple(runs), parts=parts)
    encoded = msgspec.json.encode(contents)
    seal = hashlib.sha256()
    with (
        explain_os_errors(target, "write"),
        replace_on_success(target, durable=True) as temporary,
        temporary.open("wb") as file,
    ):

        def write_and_digest(data: bytes) -> None:
            seal.update(data)
            file.write(data)

        file.write(MAGIC + b" " * _SEAL)
        write_and_digest(len(encoded).to_bytes(8, "little"))
        write_and_digest(encoded)
        for part, (now, packed) in zip(parts, _encode_parts(sources), strict=True):
            if now != part:
                changed = " ".join(part.name)
                raise StoreError(f"{changed} changed while it was packed: pack again when nothing writes to it")
            write_and_digest(packed)
        file.seek(len(MAGIC))
        file.write(seal.hexdigest().encode() + b"\n")
    return contents


def _encode_parts(sources: Sequence[Source]) -> Iterator[tuple[Part, bytes]]:
    """Yield the description and the bytes of each part, in the coding that makes the part smallest."""
    before = b""
    for kind, name, read, whole in sources:
        data = read()
        coding, packed = ("whole", data) if whole else ("zlib", zlib.compress(data, _LEVEL))
        if not whole and len(before) == len(data):
            other = zlib.compress(_xor_bytes(data, before), _LEVEL)
            coding, packed = ("difference", other) if len(other) < len(packed) else (coding, packed)
        swollen = kind != "blob" and len(data) > _max_record_bytes(len(packed))
        if swollen or len(data) > _MOST_INFLATED * len(packed):
            coding, packed = "whole", data
        before = b"" if coding == "whole" else data  # a reader does the same
        facts = {"kind": kind, "name": name, "size": len(data), "packed": len(packed), "coding": coding}
        yield msgspec.convert({**facts, "sha256": hashlib.sha256(data).hexdigest()}, Part), packed


def _max_record_bytes(packed: int) -> int:
    """Return the maximum bytes that a record may have if its compressed form has `packed` bytes."""
    return min(_LARGEST_RECORD, max(_PLAIN_RECORD, _MOST_SWOLLEN * packed))


def _xor_bytes(data: bytes, other: bytes) -> bytes:
    return (np.frombuffer(data, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes()


_SAMPLED = 2048
"""Number of bytes of a mask, at even distances, by which masks are compared."""
_TOGETHER = 1000
"""Maximum number of masks that are sorted together; the time grows with the square of the number."""


def sort_by_similarity(digests: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Sort the digests of masks so that neighbours are similar, which makes their differences compress well.

    Masks of equal size form a group. A group begins with the mask that has the most bits set; the next mask is always
    the remaining mask that is most similar to the mask before. Only one mask is in memory at a time.
    """
    sizes: dict[int, list[tuple[str, NDArray[np.uint8]]]] = {}
    for digest in sorted(digests):
        data = np.frombuffer(read(digest), np.uint8)
        sampled = data[:: max(1, len(data) // _SAMPLED)][:_SAMPLED].copy()
        sizes.setdefault(len(data), []).append((digest, sampled))
    found: list[str] = []
    for _, group in sorted(sizes.items()):
        group.sort(key=lambda one: -_count_bits(one[1][None])[0])
        for start in range(0, len(group), _TOGETHER):
            found += _order_by_similarity(group[start : start + _TOGETHER])
    return found


def _order_by_similarity(group: Sequence[tuple[str, NDArray[np.uint8]]]) -> Iterator[str]:
    sampled = np.stack([one for _, one in group])
    left, now = np.ones(len(group), bool), 0
    for _ in group:
        left[now] = False
        yield group[now][0]
        now = int(np.where(left, _count_bits(sampled ^ sampled[now]), np.iinfo(np.int64).max).argmin())


def _count_bits(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts: NDArray[np.uint8] = np.bitwise_count(rows) if hasattr(np, "bitwise_count") else _BITS[rows]
    total: NDArray[np.int64] = counts.sum(-1, dtype=np.int64)
    return total


_BITS = np.array([byte.bit_count() for byte in range(256)], np.uint8)


# -- reading -----------------------------------------------------------------------------------------------------------


class Bundle:
    """Opens a bundle (archive) for reading and verifies its digest and list of parts; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_os_errors(path, "read"):
            self._file: BinaryIO = open_regular_file(path)
        try:
            self.contents = self._read_contents()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def parts(self) -> Iterator[tuple[Part, bytes]]:
        """Yield the description and the unpacked content of each part, in the order of the file."""
        with explain_os_errors(self.path, "read"):
            self._file.seek(self._first)
            before = b""
            for part in self.contents.parts:
                data = self._decompress_part(part, self._file.read(part.packed), before)
                before = data if part.compressed else b""
                yield part, data

    def _read_contents(self) -> Contents:
        with explain_os_errors(self.path, "read"):
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
                raise self._build_error("its contents do not match its digest")
            self._file.seek(_START)
            length = int.from_bytes(self._file.read(8), "little")
            if length > min(_LARGEST_LIST, size - _START - 8):
                raise self._build_error("its list of parts is longer than it can be")
            encoded = self._file.read(length)
        try:
            contents = msgspec.json.decode(encoded, type=Contents)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._build_error(f"its list of parts is not valid ({error})") from None
        if contents.format != version or any((part.coding != "") != (version == 2) for part in contents.parts):
            raise self._build_error(f"its list of parts is not one of version {version}")
        self._first = _START + 8 + length
        self._check_part_sizes(contents.parts, size)
        return contents

    def _check_part_sizes(self, parts: Sequence[Part], size: int) -> None:
        if self._first + sum(part.packed for part in parts) != size:
            raise self._build_error("its parts have other sizes than its list says")
        if len({(part.kind, part.name) for part in parts}) < len(parts):
            raise self._build_error("it has a part twice")
        compressed = [part for part in parts if part.compressed]
        if any(part.size != part.packed for part in parts if not part.compressed):
            raise self._build_error("its list has two sizes of a file of tensors")
        most = max(_AT_LEAST, _MOST_INFLATED * size)
        if sum(part.size for part in compressed) > most:
            raise self._build_error(f"its records and masks would take more than {most >> 20} MB once unpacked")
        for part in compressed:
            if part.kind != "blob" and part.size > (limit := _max_record_bytes(part.packed)):
                raise self._build_error(
                    f"{' '.join(part.name):.80} would take more than {limit >> 20} MB once unpacked"
                )

    def _decompress_part(self, part: Part, data: bytes, before: bytes) -> bytes:
        name = " ".join(part.name)
        if part.compressed:
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, part.size + 1)
            except zlib.error as error:
                raise self._build_error(f"{name} cannot be unpacked: {error}") from None
            if not inflate.eof or inflate.unused_data:
                raise self._build_error(f"{name} has another size than the list says")
            if part.coding == "difference":
                if len(before) != len(data):
                    raise self._build_error(f"{name} is stored as a difference from a part of another size")
                data = _xor_bytes(data, before)
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._build_error(f"{name} does not match its digest")
        return data

    def _build_error(self, why: str) -> StoreError:
        return StoreError(f"{self.path} is damaged or forged: {why}. Fetch it again, or pack it again")
