"""Text and small HTML tables that show results in notebooks; all content is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10

Cell = str | int | float | None

_MOST_DECIMALS, _SMALL = 6, 1e-4
"""If more than `_MOST_DECIMALS` decimals are asked for, numbers closer to 0 than `_SMALL` get an exponent."""


def format_number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Format a number with `decimals` decimals; very small numbers get an exponent and at least two digits: 8.3e-8.

    Args:
        value: number to format.
        decimals: digits after the point.
        sign: whether positive numbers get a plus sign.
    """
    plus = "+" if sign else ""
    if decimals <= _MOST_DECIMALS or not 0 < abs(value) < _SMALL:
        return f"{value:{plus}.{decimals}f}"
    digits_after = max(decimals + floor(log10(abs(value))), 1)
    digits, _, exponent = f"{value:{plus}.{digits_after}e}".partition("e")
    return f"{digits}e{int(exponent)}"


def build_html_table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], lines: Iterable[str] = ()
) -> str:
    """Return an HTML table with a caption above and lines of text below; all texts are escaped.

    Numbers are written with four digits, and None as a dash.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_format_cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    after = "".join(f"<p>{escape(line)}</p>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p><b>{escape(caption)}</b></p>{table}{after}</div>"


def describe_answers(as_good: str | None, better: str | None, not_beaten: Sequence[str], controls: bool = True) -> str:
    """Return a sentence with both answers of a verdict; empty if the record has no answers.

    Args:
        as_good: answer to "as good as dense": yes, no or undecided.
        better: answer to "better than every control".
        not_beaten: names, for display, of the controls that the ticket was not shown to beat.
        controls: whether the verdict has controls.
    """
    if as_good is None:
        return ""
    if not controls or better is None:
        return f"as good as dense: {as_good}"
    text = f"as good as dense: {as_good}; better than every control: {better}"
    return f"{text} (not shown to beat {', '.join(not_beaten)})" if not_beaten and better != "yes" else text


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
