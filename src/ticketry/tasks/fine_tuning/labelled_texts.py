"""Texts with labels: rows of a table, or objects, one a line; in one file or in three."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ticketry.choices import did_you_mean
from ticketry.errors import DataError
from ticketry.files import parse_json
from ticketry.tasks.data.locate import text_of
from ticketry.tasks.language.corpus import PARTS

SUFFIXES = (".csv", ".tsv", ".jsonl")
"""Values between commas or tabs under a row of names, or a JSON object a line."""


@dataclass(frozen=True)
class Labelled:
    """Texts and their labels."""

    texts: tuple[tuple[str, ...], ...]
    """[n]: one, or two that belong together."""
    labels: tuple[str, ...]
    """[n]"""

    def __len__(self) -> int:
        return len(self.labels)


def files(path: Path) -> dict[str, Path]:
    """The files of ``train``, ``validation`` and ``test`` in a folder; of a single file, which is all of them, ``all``.

    Raises:
        DataError: if they are not there, or of no known kind.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path} is none of {', '.join(SUFFIXES)}: its texts and labels cannot be told apart")
        return {"all": path}
    if not path.is_dir():
        raise DataError(f"{path}: there are no such texts: name a file or a folder as --option texts=PATH")
    found = {}
    for split, names in PARTS.items():
        choices = [path / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        existing = next((choice for choice in choices if choice.is_file()), None)
        if existing is None:
            raise DataError(
                f"{path} has no file of the {split} split: a folder of texts holds train, validation and test, each"
                f" {', '.join(SUFFIXES)}; name a single file to have it split at random"
            )
        found[split] = existing
    return found


def read(path: Path, columns: Sequence[str], target: str) -> Labelled:
    """The texts of a file.

    Args:
        columns: one that holds the text, or two.
        target: the one that holds the label; numbers and truth values are labels as they are written.

    Raises:
        DataError: if it cannot be read, or a row lacks what is asked for; names file, line and column.
    """
    texts, labels = [], []
    for line, row in _rows(path):
        for name in (*columns, target):
            if name not in row:
                hint = did_you_mean(name, list(row))
                raise DataError(f"{path}, line {line} has no column {name!r}: {hint}it has {', '.join(row) or 'none'}")
            if not row[name].strip():
                raise DataError(f"{path}, line {line}, column {name!r} is empty: fill it in, or take the row out")
        texts.append(tuple(row[name] for name in columns))
        labels.append(row[target])
    if not labels:
        raise DataError(f"{path} has no texts")
    return Labelled(tuple(texts), tuple(labels))


def digest(path: Path) -> str:
    """SHA-256 of the contents of the files."""
    each = [f"{split} {hashlib.sha256(text_of(file)).hexdigest()}" for split, file in files(path).items()]
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    text = text_of(path).decode("utf-8-sig")
    return _objects(path, text) if path.suffix == ".jsonl" else _table(path, text)


def _table(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    lines = io.StringIO(text, newline="")
    if path.suffix == ".tsv":  # tabs do not come up in texts, so that quotes need mean nothing there
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(lines, strict=True)
    names: list[str] = []
    try:
        for cells in rows:
            if not names:
                names = [name.strip() for name in cells]
            elif len(cells) == len(names):
                yield rows.line_num, dict(zip(names, cells, strict=True))
            elif cells:
                raise DataError(f"{path}, line {rows.line_num} has {len(cells)} values, not {len(names)} as the first")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None


def _objects(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = parse_json(written)
            json.dumps(row, ensure_ascii=False).encode()  # half of a letter can be written in JSON, and is no text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {line} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line} is no JSON object with a text and a label")
        yield line, {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
