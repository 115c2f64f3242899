"""The metric by which networks are compared, and functions that show its values as text and HTML tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from typing import Annotated, Literal, get_args

from msgspec import Meta

from ticketry.choices import check_choice

SCALES = ("linear", "log")
Summary = Annotated[Literal["mean", "iqm"], Meta(extra={"problem": "neither mean nor iqm"})]


@dataclass(frozen=True, init=False)
class Metric:
    """The metric by which networks are compared; by default accuracy in %.

    Raises:
        UsageError: if `scale` or `summary` is unknown.

    Examples:
        >>> metric = tk.Metric("perplexity", unit="", higher_is_better=False)
        >>> metric.sign
        -1
        >>> tk.Metric("bits_per_character").words
        'bits per character'
    """

    name: str
    """Key of the metric in a task's results; underscores stand for spaces."""
    unit: str
    """Unit written after the value in tables: % or empty."""
    higher_is_better: bool
    """Whether higher values are better; False for a loss or an error."""
    scale: str = "linear"
    """Scale of the axis in figures: linear, or log for metrics that are compared by ratios."""
    summary: Summary = "mean"
    """Summary over replicates: mean, or iqm (interquartile mean with a bootstrap interval) for metrics with outliers
    among seeds."""

    def __init__(
        self,
        name: str = "accuracy",
        unit: str = "%",
        higher_is_better: bool = True,
        scale: str = "linear",
        summary: Summary = "mean",
    ) -> None:
        check_choice("metric: scale", scale, SCALES)
        check_choice("metric: summary", summary, get_args(get_args(Summary)[0]))
        for field, value in zip(self.__dataclass_fields__, (name, unit, higher_is_better, scale, summary), strict=True):
            object.__setattr__(self, field, value)

    @property
    def words(self) -> str:
        """The name with spaces instead of underscores: bits per character."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """Factor that makes higher values better: 1 if higher is better, else -1."""
        return 1 if self.higher_is_better else -1


Cell = str | int | float | None

_MOST_DECIMALS, _SMALL = 6, 1e-4
"""If more than `_MOST_DECIMALS` decimals are asked for, numbers closer to 0 than `_SMALL` get an exponent."""


def format_number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Format a number with `decimals` decimals; very small numbers get an exponent, such as 8.3e-8."""
    plus = "+" if sign else ""
    if decimals <= _MOST_DECIMALS or not 0 < abs(value) < _SMALL:
        return f"{value:{plus}.{decimals}f}"
    digits_after = max(decimals + floor(log10(abs(value))), 1)
    digits, _, exponent = f"{value:{plus}.{digits_after}e}".partition("e")
    return f"{digits}e{int(exponent)}"


def build_html_table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], lines: Iterable[str] = ()
) -> str:
    """Return an HTML table with a caption above and lines of text below; all texts are escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_format_cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    after = "".join(f"<p>{escape(line)}</p>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p><b>{escape(caption)}</b></p>{table}{after}</div>"


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
