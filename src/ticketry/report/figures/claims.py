"""The claims of a campaign: what was found of each difference, beside the bound that it is claimed to be above."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ticketry.records.campaign import Claim
from ticketry.report.figures.forest import named_rows
from ticketry.report.figures.style import COLOURS
from ticketry.report.tables.claims import style_of
from ticketry.report.wording import shortened

_LABEL = "difference beyond the bound, in margins"
_FAR, _NEAR = 20.0, 3.0
"""Margins. Costs may be hundreds away from their bound: where a claim is farther than the first, the axis is even up to
the second, and goes by powers of ten from there on."""
_TICKS = (-10_000, -1000, -100, -10, -3, -1, 0, 1, 3, 10, 100, 1000, 10_000)
_COLOURS = {"confirmed": "good", "refuted": "bad", "undecided": "muted"}


def claims_figure(claims: Sequence[Claim], narrow: bool = False) -> Figure:
    """A row a claim, in units of its margin: its difference with the interval, and a line at its bound.

    Claims of other metrics are thus on one axis: 0 is the bound, and to the right the claim holds.
    """
    labels = [(shortened(claim.name, 40), _numbers(claim)) for claim in claims]
    figure, axes, middles = named_rows(labels, narrow, _LABEL)
    drawn: list[float] = []
    for middle, claim in zip(middles, claims, strict=True):
        colour = COLOURS[_COLOURS[claim.found]]
        if claim.interval is not None:
            ends = [_margins(claim, end) for end in claim.interval]
            drawn += ends
            axes.plot(ends, [middle, middle], color=colour, lw=2.4, solid_capstyle="round", zorder=3)
        if claim.difference is not None:
            drawn.append(_margins(claim, claim.difference))
            axes.plot(drawn[-1:], [middle], color=colour, marker="o", markersize=7.5, zorder=4)
    low, high = min([0.0, *drawn]), max([0.0, *drawn])
    if max(-low, high) > _FAR:
        axes.set_xlabel(f"{_LABEL} (by powers of ten beyond {_NEAR:g})")
        axes.set_xscale("symlog", linthresh=_NEAR, linscale=2)
        axes.set_xticks([tick for tick in _TICKS if low <= tick <= high], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(-_beyond(-low), _beyond(high))
    else:
        room = 0.06 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=COLOURS["muted"], lw=1.2, zorder=1)
    return figure


def _beyond(distance: float) -> float:
    """That of an end of an axis from 0, with room, where it is in powers of ten from `_NEAR` on."""
    return 1.8 * distance if distance > _NEAR else distance + 1


def _margins(claim: Claim, difference: float) -> float:
    return (difference - claim.above) / claim.margin


def _numbers(claim: Claim) -> str:
    style = style_of(claim)
    told = "" if claim.difference is None else f"{style.number(claim.difference, sign=True)}  "
    return f"{told}{claim.found}"
