"""The axis of a metric: linear, or logarithmic for metrics that are compared by ratios, such as perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.report.aggregate import Summary
from ticketry.report.record import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIGITS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
"""First digits of the ticks, the fewer the longer the axis."""
_FEWEST = 3
_LOWEST = 0.5
"""Of a mean: as far down as a band goes on a logarithmic axis, where its end would be 0 or less."""


@dataclass(frozen=True)
class Scale:
    """How values of a metric lie on its axis."""

    log: bool = False

    @classmethod
    def of(cls, metric: Metric, values: Iterable[float]) -> Scale:
        """That of a metric; linear too where it has values that no logarithm has."""
        return cls(metric.scale == "log" and all(value > 0 for value in values))

    @property
    def note(self) -> str:
        """What is added to an axis' name."""
        return " (log scale)" if self.log else ""

    def place(self, value: float) -> float:
        """Where a value lies; equal distances look equal."""
        return math.log10(value) if self.log else value

    def value(self, place: float) -> float:
        """The inverse of `place`."""
        return 10.0**place if self.log else place

    def spread(self, summary: Summary) -> float:
        """A standard deviation, as a distance of places; 0 for a single value."""
        if not summary.sd:
            return 0.0
        return self.place(summary.mean + summary.sd) - self.place(summary.mean) if self.log else summary.sd

    def shown(self, low: float, summary: Summary) -> float:
        """The lower end of a mean's band, as far as the axis goes."""
        return max(low, _LOWEST * summary.mean) if self.log else low

    def padded(self, low: float, high: float, share: float) -> tuple[float, float]:
        """Limits that leave a share of the range free at both ends."""
        if not self.log:
            room = share * (high - low) or 0.01 * abs(high) or 1.0
            return low - room, high + room
        room = (high / low) ** share if high > low else 1.01
        return low / room, high * room

    def set(self, axes: Axes, limits: tuple[float, float], most: int | None = None) -> None:
        """Give y axes the scale, its limits, and at most so many ticks (as they are on a linear axis without)."""
        if not self.log:
            axes.set_ylim(*limits)
            if most:
                axes.locator_params(axis="y", nbins=most)
            return
        from matplotlib.ticker import NullFormatter, NullLocator

        axes.set_yscale("log")
        axes.set_ylim(*limits)
        found = ticks(*limits, most or 8)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(found, [f"{tick:,.10g}" for tick in found])


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most so many, at least three where there is room for them."""
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def inside(digits: Iterable[float]) -> list[float]:
        return [tick for power in powers for d in digits if low <= (tick := d * 10.0**power) <= high]

    decades = _thinned(inside((1.0,)), most)
    for digits in _DIGITS:
        if _FEWEST <= len(found := inside(digits)) <= most:
            return found
    values = MaxNLocator(max(most - 1, 1), steps=[1, 2, 5, 10]).tick_values(low, high)
    even = _thinned([tick for tick in map(float, values) if low <= tick <= high], most)
    return max(decades, even, key=len)


def _thinned(found: list[float], most: int) -> list[float]:
    """At most so many of them, at equal distances."""
    return found[:: -(-len(found) // most)] if found else []
