"""How intervals, p-values and further seeds are written in tables."""

from __future__ import annotations

from ticketry.report.record import Judgement
from ticketry.report.wording import NONE, Style


def interval_text(style: Style, interval: tuple[float, float] | None) -> str:
    """``+0.05 to +0.57``."""
    if interval is None:
        return NONE
    return f"{style.number(interval[0], sign=True)} to {style.number(interval[1], sign=True)}"


def seeds_text(judged: Judgement) -> str:
    """How many more seeds would likely decide: none where it is decided."""
    if judged.verdict != "undecided":
        return "none"
    return "too many" if judged.more_seeds is None else f"about {judged.more_seeds:,}"
