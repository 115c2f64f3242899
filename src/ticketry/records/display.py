"""How what was found shows itself in a notebook: small tables of HTML, in which everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10

Cell = str | int | float | None

_MOST_DECIMALS, _SMALL = 6, 1e-4
"""Where more decimals are asked for, what is nearer to 0 than that has an exponent."""


def format_number(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number with so many decimals; a small one up to the same place with an exponent, two digits at least: 8.3e-8.

    Args:
        sign: whether there is a plus too.
    """
    plus = "+" if sign else ""
    if decimals <= _MOST_DECIMALS or not 0 < abs(value) < _SMALL:
        return f"{value:{plus}.{decimals}f}"
    behind = max(decimals + floor(log10(abs(value))), 1)
    digits, _, exponent = f"{value:{plus}.{behind}e}".partition("e")
    return f"{digits}e{int(exponent)}"


def build_html_table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], lines: Iterable[str] = ()
) -> str:
    """A table with a line before it and some after it; nothing in them can become markup.

    Cells that are numbers are written with four digits; None is a dash.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_format_cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    after = "".join(f"<p>{escape(line)}</p>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p><b>{escape(caption)}</b></p>{table}{after}</div>"


def describe_answers(as_good: str | None, better: str | None, not_beaten: Sequence[str], controls: bool = True) -> str:
    """The two answers in words; empty for a record that does not have them.

    Args:
        not_beaten: controls, by whatever name they are shown.
        controls: whether there are any.
    """
    if as_good is None:
        return ""
    if not controls or better is None:
        return f"as good as dense: {as_good}"
    text = f"as good as dense: {as_good}; better than every control: {better}"
    return f"{text} (not shown to beat {', '.join(not_beaten)})" if not_beaten and better != "yes" else text


def build_verdict_table(
    outcome: str,
    *,
    claim: str,
    margin: float,
    confidence: float,
    n: int,
    rows: Iterable[Sequence[Cell]],
    reasons: Iterable[str],
) -> str:
    """A verdict with the differences that it rests on: ``(network, mean, low, high, p)``."""
    caption = f"{outcome} (claim: {claim}; margin {margin:g}, confidence {100 * confidence:g} %, n = {n})"
    return build_html_table(caption, ("ticket minus", "mean", "from", "to", "p"), rows, reasons)


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
