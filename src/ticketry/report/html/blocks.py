"""What a page is made of: sections and blocks as plain data. Templates make HTML of them; nothing here is markup.

A block's template is the macro in ``templates/blocks.html`` that has its name.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote

from ticketry.report.figures import Drawing
from ticketry.report.figures.svg import inline
from ticketry.report.tables.rows import Rows, csv_text
from ticketry.report.wording import NONE, value


@dataclass(frozen=True)
class Part:
    """A link or a piece of code within a sentence."""

    text: str
    href: str = ""


Words: TypeAlias = "str | tuple[str | Part, ...]"


class Block:
    """Anything that a section may hold."""

    @property
    def macro(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; `kind` is its class: lead, remark, note or caption."""

    words: Words
    kind: str = ""
    chip: str = ""
    """A verdict that stands before it."""


@dataclass(frozen=True)
class Facts(Block):
    """Numbers that stand out: (name above, number, remark below)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Byline(Block):
    """Facts on one line, and a name in code."""

    items: Sequence[str]
    code: str


@dataclass(frozen=True)
class Items(Block):
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Notes(Block):
    """Terms with what they mean, and a verdict before that where there is one."""

    items: Sequence[tuple[str, str, str]]
    title: str = ""


@dataclass(frozen=True)
class Code(Block):
    """Lines of code; `kind` is ``command`` for those to be typed."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Pairs(Block):
    """Tables of names and values, side by side: (caption, {name: value})."""

    tables: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Filters(Block):
    """Tools of the table of networks, which the script shows."""

    roles: Sequence[str]


@dataclass(frozen=True)
class Figure(Block):
    """A drawing in two widths with number, caption and its data as a link."""

    id: str
    number: int
    wide: str
    narrow: str
    caption: Words
    data: str


@dataclass(frozen=True)
class Cell:
    """Of a table. What is empty or False is not there."""

    text: str
    kind: str = ""
    """Its class."""
    quiet: str = ""
    """What follows the text, less prominent."""
    below: str = ""
    """What stands beneath it."""
    run: str = ""
    """The colour of a run, as a spot before the text."""
    href: str = ""
    chip: bool = False
    code: bool = False
    sort: str = ""
    """Of a column's head: ``number`` or ``text``, as which the script sorts it."""
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Row:
    """Of a table: a head and cells; without a head all are alike."""

    head: Cell | str | None
    cells: Sequence[Cell | str]
    kind: str = ""


@dataclass(frozen=True)
class Table(Block):
    """A table that scrolls by itself on a narrow screen, by keyboard too, so that the page and the caption never do."""

    id: str
    """Of the caption."""
    caption: str
    head: Sequence[Cell | str]
    rows: Sequence[Row]
    kind: str = ""
    """Classes beside ``results``."""
    bodies: Sequence[Sequence[Row]] = ()
    """Instead of `rows`, where they stand in groups."""
    bold: bool = False
    tall: bool = False


@dataclass(frozen=True)
class Folded(Block):
    """Blocks behind a summary."""

    summary: Words
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section(Block):
    """Part of the page with a heading; blocks that are None are left out."""

    id: str
    title: str
    blocks: Sequence[Block | None]
    name: str = ""
    """In the list of contents; empty for the title."""


@dataclass(frozen=True)
class Run(Block):
    """What the page of a single run shows, folded away."""

    id: str
    colour: str
    label: str
    name: str
    blocks: Sequence[Block | None]


@dataclass(frozen=True)
class PackedRun(Block):
    """A `Run` whose blocks are compressed markup, which the script unpacks when it is opened."""

    id: str
    colour: str
    label: str
    name: str
    data: str
    """See `packed`."""


@dataclass(frozen=True)
class PackedRows(Block):
    """The rows of a long table, compressed; the script shows a part of them at a time, once it is opened."""

    summary: str
    data: str
    """See `packed`; of JSON: ``heads``, ``kinds`` (how each column sorts) and ``columns``, with a line a row."""


def packed(text: str) -> str:
    """Compressed (raw deflate) and in base64, as a browser's DecompressionStream reads it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(deflate.compress(text.encode()) + deflate.flush()).decode()


@dataclass(frozen=True)
class Place:
    """Where on the page a section stands: what its ids begin with, and the number of the next figure."""

    prefix: str = ""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def within(self, prefix: str) -> Place:
        """A part of the page with ids of its own; figures are numbered on."""
        return Place(f"{self.prefix}{prefix}-", self._numbers)

    def id(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def figure(
        self, drawings: Mapping[str, Drawing], name: str, caption: Words, rows: Rows | None = None
    ) -> Figure | None:
        """A figure with its data; None where it was not drawn. The style sheet shows the width that suits."""
        if name not in drawings:
            return None
        one, drawing = self.id(name), drawings[name]
        wide, narrow = (
            inline(svg, f"{one}-{width}", f"{one}-caption")
            for svg, width in ((drawing.wide, "wide"), (drawing.narrow, "narrow"))
        )
        data = quote(csv_text(rows or []), safe=" ,;:/?@-_.!~*'()+=")
        link = f"data:text/csv;charset=utf-8,{data}" if data else ""
        return Figure(one, next(self._numbers), wide, narrow, caption, link)


def pairs(*tables: tuple[str, Mapping[str, Any] | Iterable[tuple[str, Any]]]) -> Pairs:
    """Tables of names and values; those that are empty are left out."""
    found = [(caption, [(name, in_words(item)) for name, item in dict(items).items()]) for caption, items in tables]
    return Pairs([(caption, items) for caption, items in found if items])


def in_words(item: Any) -> str:
    """A value of a record as people read it: ``torch 2.13.0, openvino 2026.4.1`` rather than JSON."""
    if isinstance(item, Mapping) and not any(isinstance(part, Mapping | list | tuple) for part in item.values()):
        return ", ".join(f"{name} {value(part)}" for name, part in item.items()) or NONE
    return value(item)


def made_by(command: str, cost: Mapping[str, Any], environment: Mapping[str, Any]) -> Folded | None:
    """How evidence was made, folded away; None where the record does not tell."""
    if not (command or cost or environment):
        return None
    tables = pairs(("Cost", cost), ("Environment", environment))
    return Folded("How this was made", [*([Code(command, "command")] if command else []), tables])
