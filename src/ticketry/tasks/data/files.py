"""Files of data sets: written whole or not at all, read with their digest checked."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ticketry.errors import DataError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, which it becomes at the end of the block; gone if the block raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def unpacked(path: Path, md5: str) -> bytes:
    """The content of a file, unpacked if its name ends in .gz or .xz, whose digest is `md5`.

    Raises:
        DataError: if the file cannot be read or unpacked, or has another content.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".xz":
            content = lzma.decompress(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        raise DataError(
            f"{path} cannot be unpacked ({error}): md5 {md5} expected once unpacked, {found} found as it is. "
            "Delete it and get it again"
        ) from error
    check(content, md5, str(path))
    return content


def check(content: bytes, md5: str, what: str) -> None:
    """Raise DataError if the digest of `content` is not `md5`."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{what} is not the published file: md5 {md5} expected, {found} found (unpacked, {len(content):,} bytes). "
            "Delete it and get it again"
        )
