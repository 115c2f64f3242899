"""The claims of a campaign: what was found of each difference, beside the bound that it is claimed to be above."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ticketry.records.campaign import Claim
from ticketry.report.figures.forest import named_rows
from ticketry.report.figures.style import COLOURS
from ticketry.report.tables.claims import style_of
from ticketry.report.wording import shortened

_COLOURS = {"confirmed": "good", "refuted": "bad", "undecided": "muted"}


def claims_figure(claims: Sequence[Claim], narrow: bool = False) -> Figure:
    """A row a claim, in units of its margin: its difference with the interval, and a line at its bound.

    Claims of other metrics are thus on one axis: 0 is the bound, and to the right the claim holds.
    """
    labels = [(shortened(claim.name, 40), _numbers(claim)) for claim in claims]
    figure, axes, middles = named_rows(labels, narrow, "difference beyond the bound, in margins")
    for middle, claim in zip(middles, claims, strict=True):
        colour = COLOURS[_COLOURS[claim.found]]
        if claim.interval is not None:
            ends = [_margins(claim, end) for end in claim.interval]
            axes.plot(ends, [middle, middle], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
        if claim.difference is not None:
            axes.plot([_margins(claim, claim.difference)], [middle], color=colour, marker="o", markersize=7.5, zorder=4)
    low, high = axes.get_xlim()
    room = 0.06 * (high - low)
    axes.set_xlim(min(low, 0) - room, max(high, 0) + room)
    axes.axvline(0, color=COLOURS["muted"], lw=1.2, zorder=1)
    return figure


def _margins(claim: Claim, difference: float) -> float:
    return (difference - claim.above) / claim.margin


def _numbers(claim: Claim) -> str:
    style = style_of(claim)
    told = "" if claim.difference is None else f"{style.number(claim.difference, sign=True)}  "
    return f"{told}{claim.found}"
