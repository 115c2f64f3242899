"""Small HTML tables by which objects show themselves in notebooks. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MOST_ROWS = 30
"""Of a table; how many more there are is told below."""


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain text with a title; numbers are aligned to the right.

    Args:
        head: names of the columns; none for a table without a head.
        rows: cells. Whole numbers get thousands separators, other numbers four digits.
    """
    every = list(rows)
    shown = [f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in every[:MOST_ROWS]]
    if len(every) > MOST_ROWS:
        width = max(len(row) for row in every)
        shown.append(f'<tr><td colspan="{width}">… and {len(every) - MOST_ROWS:,} more</td></tr>')
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    caption = f'<caption style="text-align: left; font-weight: bold">{escape(title)}</caption>'
    return f"<table>{caption}{top}<tbody>{''.join(shown)}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td style="text-align: right">{text}</td>'
    return f'<td style="text-align: left">{escape(str(value))}</td>'
