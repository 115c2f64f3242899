"""Tables of masks and other objects, as text and as HTML for notebooks; this module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Annotated

from msgspec import Meta, Struct

from ticketry_engine.support.files import one_line as one_line

_LARGEST_COUNT = 10**18


class LayerDensity(Struct, frozen=True):
    """Contains the number of elements of a tensor (`total`), and how many of them a mask retains (`kept`)."""

    name: str
    kept: Annotated[int, Meta(ge=0, le=_LARGEST_COUNT)]
    total: Annotated[int, Meta(ge=1, le=_LARGEST_COUNT)]
    shape: tuple[Annotated[int, Meta(ge=0, le=_LARGEST_COUNT)], ...] = ()

    def __post_init__(self) -> None:
        if self.kept > self.total:
            raise ValueError(f"kept is more than the layer's total ({self.total})")

    @property
    def density(self) -> float:
        """Fraction of the elements that the mask retains; 0 for a tensor without elements."""
        return self.kept / self.total if self.total else 0.0


class LayerTable(tuple[LayerDensity, ...]):
    """Contains a `LayerDensity` for each tensor of a mask; prints as a table that begins with the total."""

    __slots__ = ()

    def __str__(self) -> str:
        together = LayerDensity("all layers", sum(row.kept for row in self), sum(row.total for row in self))
        return "\n".join(format_layer_lines([together, *self]))


def format_layer_lines(rows: Iterable[LayerDensity]) -> list[str]:
    """Return the lines of a text table with aligned columns: a header, then a line for each row."""
    named = [(one_line(row.name), row) for row in rows]
    width = max(len(name) for name in ("layer", *(name for name, _ in named)))
    return [
        f"{'layer':<{width}} {'shape':>14} {'kept':>11} {'of':>11} {'density':>8}",
        *(
            f"{name:<{width}} {'x'.join(map(str, row.shape)):>14} {row.kept:>11,} {row.total:>11,} {row.density:>8.4f}"
            for name, row in named
        ),
    ]


MOST_ROWS = 30
"""Largest number of rows of an HTML table; a last line states how many rows are left out."""


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with a title; numbers are aligned to the right, and text is escaped for HTML.

    Args:
        head: names of the columns; empty for a table without a header.
        rows: the cells of each row. Whole numbers get thousands separators, other numbers four digits.
    """
    every = list(rows)
    shown = [f"<tr>{''.join(_format_cell(value) for value in row)}</tr>" for row in every[:MOST_ROWS]]
    if len(every) > MOST_ROWS:
        width = max(len(row) for row in every)
        shown.append(f'<tr><td colspan="{width}">… and {len(every) - MOST_ROWS:,} more</td></tr>')
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    caption = f'<caption style="text-align: left; font-weight: bold">{escape(title)}</caption>'
    return f"<table>{caption}{top}<tbody>{''.join(shown)}</tbody></table>"


def _format_cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td style="text-align: right">{text}</td>'
    return f'<td style="text-align: left">{escape(str(value))}</td>'
