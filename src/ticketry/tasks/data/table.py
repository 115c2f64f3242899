"""Tables of numbers as text: values between commas, semicolons, tabs or blanks, one row a line."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ticketry.choices import did_you_mean
from ticketry.errors import DataError
from ticketry.tasks.data.locate import DAMAGED, unpack

_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?", "-"))
_SEPARATORS = (",", ";", "\t")
_LARGEST = 1e30
"""Beyond it squares are no float32 numbers."""


@dataclass(frozen=True)
class Table:
    """Named columns of numbers, all of them finite."""

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    """[rows, columns]"""
    digest: str
    """SHA-256 of the file, unpacked."""


@dataclass(frozen=True)
class _Line:
    number: int
    """In the file, from 1."""
    cells: list[str]


def read_table(path: Path, drop: Sequence[str] = ()) -> Table:
    """Read a file; packed if its name ends in .gz or .xz.

    The first row names the columns, unless it is all numbers: then they are called 1, 2, 3 …

    Args:
        path: of the file, UTF-8.
        drop: columns that are left out, and may hold anything.

    Raises:
        DataError: if it cannot be read, has no rows, rows of several lengths, or anything but finite numbers; names the
            first such line and column.
    """
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8 (byte {error.start:,} is {content[error.start]:#04x}): is it a table of"
            " numbers with commas between them?"
        ) from None
    lines = _lines(text, path)
    if not lines:
        raise DataError(f"{path} is empty: a table has a row of names and rows of numbers")
    header = not all(_is_number(cell) for cell in lines[0].cells)
    columns = tuple(lines.pop(0).cells) if header else tuple(str(1 + i) for i in range(len(lines[0].cells)))
    _check_columns(columns, path)
    if not lines:
        raise DataError(f"{path} has a row of names ({', '.join(columns[:5])} …) and no rows of numbers")
    kept = [index for index, name in enumerate(columns) if index not in {index_of(columns, one, path) for one in drop}]
    names = tuple(columns[index] for index in kept)
    values = np.empty((len(lines), len(kept)))
    for row, line in zip(values, lines, strict=True):
        if len(line.cells) != len(columns):
            raise DataError(f"{path}, line {line.number} has {len(line.cells)} values, not {len(columns)} as the first")
        for place, index in enumerate(kept):
            row[place] = _number(line.cells[index], path, line.number, columns[index])
    return Table(names, values, hashlib.sha256(content).hexdigest())


def index_of(columns: Sequence[str], name: str, path: Path) -> int:
    """The place of a column.

    Raises:
        DataError: if there is none of that name.
    """
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}: {did_you_mean(name, columns)}it has {', '.join(columns)}")
    return list(columns).index(name)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the table {path} cannot be read: {error.strerror}") from None
    try:
        return unpack(path, content)
    except DAMAGED as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None


def _lines(text: str, path: Path) -> list[_Line]:
    """The cells of all lines that are not blank."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    if separator not in first:
        separator, rows = " ", None
    else:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    if rows is None:  # blanks, any number of them
        return [_Line(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    found: list[_Line] = []
    try:
        for cells in rows:
            if any(cell.strip() for cell in cells):
                found.append(_Line(rows.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None
    return found


def _check_columns(columns: Sequence[str], path: Path) -> None:
    doubled = [name for name, count in Counter(columns).items() if count > 1]
    if doubled:
        raise DataError(f"{path}: several columns are called {doubled[0]!r}: give each a name of its own")
    if "" in columns:
        raise DataError(f"{path}: column {list(columns).index('') + 1} has no name: give it one")


def _number(cell: str, path: Path, line: int, column: str) -> float:
    where = f"{path}, line {line}, column {column!r}"
    if cell.lower() in _MISSING:
        raise DataError(
            f"{where}: the value is missing ({cell!r}): fill it in, take the row out, or leave the column out"
            f" (--option 'drop={column}')"
        )
    if not _is_number(cell):
        raise DataError(
            f"{where}: {cell!r} is no number: write categories as numbers (a column of 0 and 1 for each), or leave the"
            f" column out (--option 'drop={column}')"
        )
    value = float(cell)
    if not abs(value) <= _LARGEST:
        raise DataError(f"{where}: {cell} is too large: values lie between -{_LARGEST:g} and {_LARGEST:g}")
    return value


def _is_number(cell: str) -> bool:
    try:
        value = float(cell)
    except ValueError:
        return False
    return value == value  # nan is a missing value
