"""What gates did: how the density fell while they were trained, and how far they are open at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Results
from ticketry.report.figures import canvas
from ticketry.report.figures.svg import COLOURS
from ticketry.report.rounds import GateRound
from ticketry.report.wording import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 6
"""Searches side by side that are drawn: as many as there are shades."""


@dataclass(frozen=True)
class Chain:
    """The rounds that led to the last ticket of one search among those side by side, in one replicate."""

    name: str
    rounds: tuple[GateRound, ...]

    @property
    def density(self) -> float:
        return self.rounds[-1].density


def chains(results: Results) -> list[Chain]:
    """Of the first replicate, the densest first; at most six, evenly spread."""
    first = min((one.replicate for one in results.run.rounds), default=0)
    used = sorted((one for one in results.run.rounds if one.used and one.replicate == first), key=lambda one: one.level)
    groups: list[list[GateRound]] = []
    for one in used:
        if one.number == 1 or not groups:
            groups.append([])
        groups[-1].append(one)
    penalties = len({one.penalty for one in used}) > 1
    found = [Chain(_name(group, penalties), tuple(group)) for group in groups]
    found.sort(key=lambda chain: -chain.density)
    if len(found) <= _MOST:
        return found
    return [found[round(index * (len(found) - 1) / (_MOST - 1))] for index in range(_MOST)]


def density_over_training(shown: Sequence[Chain], narrow: bool = False) -> Figure:
    """The share of gates that are on against the steps of the search, round after round; a line a search."""
    width, left, tall = (360, 44, 220) if narrow else (860, 48, 280)
    names = [chain.name for chain in shown]
    columns = canvas.legend_columns(names, width)
    top = 34 + 20 * -(-len(shown) // columns)
    figure = canvas.figure_of(width, top + tall + 52)
    axes = canvas.place(figure, left, top, width - left - 16, tall)
    axes.set_yscale("log")
    handles = []
    lows = []
    for index, chain in enumerate(shown):
        steps, shares = _line(chain)
        lows.append(min((share for share in shares if share > 0), default=1.0))
        colour = COLOURS[f"step-{_shade(index, len(shown))}"]
        handles += axes.plot(steps, [100 * max(share, 1e-9) for share in shares], color=colour, lw=1.8)
    axes.set_ylim(100 * min(lows) / 1.25, 112)
    _share_ticks(axes, 100 * min(lows) / 1.25)
    ends = [sum(one.steps for one in chain.rounds) for chain in shown]
    axes.set_xlim(0, max(*ends, 1))
    longest = max(shown, key=lambda chain: len(chain.rounds)).rounds
    boundary = 0
    for one in longest[:-1]:
        boundary += one.steps
        axes.axvline(boundary, color=COLOURS["rule"], lw=1, zorder=0)
    _step_ticks(axes, max(*ends, 1))
    canvas.write(figure, 2, 14, "s0 (density at the end):")
    canvas.legend(
        figure, handles, names, columns, bbox_to_anchor=(0, 1 - 18 / (top + tall + 52)), fontsize=11, handlelength=1.4
    )
    canvas.write(figure, 2, top - 8, "gates that are on, % (log scale)")
    canvas.write_at_foot(figure, width - 16, "training steps of the search; vertical lines: a new round")
    return figure


def gate_histograms(shown: Sequence[Chain], narrow: bool = False) -> Figure:
    """Gates by how far they are open when the last round ends, a small panel for each search."""
    width, left, tall, gap = (360, 44, 84, 30) if narrow else (860, 48, 130, 24)
    columns = 1 if narrow else min(3, len(shown))
    rows = -(-len(shown) // columns)
    block = tall + 52
    figure = canvas.figure_of(width, rows * block + 34)
    wide = (width - left - 12 - gap * (columns - 1)) / columns
    most = max(max(chain.rounds[-1].histogram) for chain in shown)
    for index, chain in enumerate(shown):
        x, y = left + (index % columns) * (wide + gap), 24 + (index // columns) * block
        axes = canvas.place(figure, x, y, wide, tall)
        counts = chain.rounds[-1].histogram
        size = 1 / len(counts)
        axes.bar(
            [(bin_ + 0.5) * size for bin_ in range(len(counts))],
            [max(count, 0.1) for count in counts],
            width=0.9 * size,
            color=COLOURS[f"step-{_shade(index, len(shown))}"],
        )
        axes.set_yscale("log")
        axes.set_ylim(0.5, 2 * max(most, 1))
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        _count_ticks(axes, most, labels=index % columns == 0)
        canvas.write(figure, x, y - 8, chain.name, colour="ink")
    canvas.write_at_foot(figure, width - 12, "gate, from 0 (off) to 1; heights: number of gates (log scale)")
    return figure


def _name(rounds: Sequence[GateRound], penalties: bool) -> str:
    inits = list(dict.fromkeys(f"{one.init:.3g}" for one in rounds))
    inside = inits[0] if len(inits) == 1 else f"{inits[0]} … {inits[-1]}"
    extra = f", λ {rounds[0].penalty:.2g}" if penalties else ""
    return f"{inside.replace('-', '−')}{extra} ({100 * rounds[-1].density:.3g} %)"


def _line(chain: Chain) -> tuple[list[float], list[float]]:
    """Steps since the search began, and shares, from the first look on: with s0 below 0 no gate is on before that."""
    steps: list[float] = []
    shares: list[float] = []
    before = 0
    for one in chain.rounds:
        for step, share in one.path:
            steps.append(before + step)
            shares.append(share)
        before += one.steps
        steps.append(before)
        shares.append(one.density)
    return steps, shares


def _shade(index: int, count: int) -> int:
    return 1 + (index * (_MOST - 1) // (count - 1) if count > 1 else _MOST - 1)


def _share_ticks(axes: Axes, low: float) -> None:
    from matplotlib.ticker import NullLocator

    low = max(low, 1e-6)
    powers = range(2, math.floor(math.log10(low)) - 1, -1)
    digits = (5, 2, 1) if len(powers) <= 3 else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    inside = [tick for tick in ticks if low <= tick <= 100]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(inside, [f"{tick:g}" for tick in inside])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)


def _step_ticks(axes: Axes, most: float) -> None:
    axes.locator_params(axis="x", nbins=6)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= most]
    axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
    axes.tick_params(axis="x", length=4, color=COLOURS["muted"])


def _count_ticks(axes: Axes, most: float, labels: bool) -> None:
    from matplotlib.ticker import NullLocator

    powers = range(0, math.ceil(math.log10(max(most, 1))) + 1, 2)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks([10.0**power for power in powers], [short_count(10.0**power) if labels else "" for power in powers])
    axes.grid(axis="y", color=COLOURS["rule"], lw=1)
