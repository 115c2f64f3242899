"""Texts of one's own: a file, or a folder of files, as three pieces of bytes."""

from __future__ import annotations

import gzip
import lzma
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ticketry.errors import DataError

PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Split -> what a file of it may be called, before its suffixes."""
SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".md", ".text", "")


@dataclass(frozen=True)
class Content:
    """The bytes of a text, valid UTF-8, by split."""

    train: bytes
    validation: bytes
    test: bytes


def read(path: Path, *, validation: Fraction, test: Fraction) -> Content:
    """The text of a file, or of a folder.

    A folder that has a file for each split (train.txt, valid.txt, test.txt, also as .gz or .xz) is taken as it is. Of
    any other all files *.txt, *.md, *.text (and .gz, .xz of them) are read in the order of their paths, one after the
    other. Then, as of a single file, the last shares are the validation and the test split.

    Raises:
        DataError: if there is nothing to read, it cannot be read, or it is no text.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such text: name a file, or a folder of text files, as --task text:PATH")
    if path.is_dir() and (parts := _parts(path)):
        return Content(**{split: _content(file) for split, file in parts.items()})
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no text files (*.txt, *.md, *.text, also as .gz or .xz)")
    return _cut(b"".join(map(_content, files)), validation, test, path)


def _parts(folder: Path) -> dict[str, Path]:
    """The files of the three splits, if all are there."""
    found = {}
    for split, names in PARTS.items():
        choices = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        existing = next((choice for choice in choices if choice.is_file()), None)
        if existing is None:
            return {}
        found[split] = existing
    return found


def _files(folder: Path) -> list[Path]:
    kinds = tuple(suffix for suffix in (*SUFFIXES, ".md.gz", ".text.gz", ".md.xz", ".text.xz") if suffix)
    found = [path for path in folder.rglob("*") if path.is_file() and path.name.endswith(kinds)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".xz":
            content = lzma.decompress(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not content:
        raise DataError(f"{path} is empty: there is nothing to learn from")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text: byte {error.start} is not UTF-8. Convert it (iconv -t utf-8), or leave it out"
        ) from None
    if (place := content.find(b"\0")) >= 0:
        raise DataError(f"{path} is no text: byte {place} is 0. Leave it out")
    return content


def _cut(content: bytes, validation: Fraction, test: Fraction, path: Path) -> Content:
    """The three splits, each of whole characters."""
    first, second = (int(len(content) * share) for share in (1 - validation - test, 1 - test))
    while first < len(content) and content[first] & 0xC0 == 0x80:  # inside a character
        first += 1
    while second < len(content) and content[second] & 0xC0 == 0x80:
        second += 1
    parts = content[:first], content[first:second], content[second:]
    if not all(parts):
        raise DataError(
            f"{path} has {len(content)} bytes, too few for {float(validation):g} of them to validate and"
            f" {float(test):g} to test on: take more text, or give --option validation= and test="
        )
    return Content(*parts)
