"""Axes of densities, counts and metrics: logarithmic where ratios matter, with as many labels as have room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from ticketry.records.metric import Metric
from ticketry.report.figures.panels import INCH
from ticketry.report.tables.results import Summary
from ticketry.report.wording import percent, short_count

_DIGIT = 7.4
"""Pixels that a digit takes at most at size 12."""


def fitting(positions: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Which centred labels to write, by index, so that none touch: the first, the last and what fits between.

    `positions` are pixels and rise; of a label of two lines the longer one counts.
    """
    last = len(positions) - 1
    letters = [max(map(len, label.split("\n"))) for label in labels]

    def apart(i: int, j: int) -> bool:
        return positions[j] - positions[i] >= _DIGIT * (letters[i] + letters[j]) / 2 + _DIGIT

    chosen = [0]
    for index in range(1, last):
        if apart(chosen[-1], index) and apart(index, last):
            chosen.append(index)
    return chosen if last == 0 or not apart(chosen[-1], last) else [*chosen, last]


class _FittingTicks(FixedLocator):
    """Of given places on an x axis, from left to right, as many as have room for their labels where it is drawn."""

    def __init__(self, axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
        super().__init__(places)
        self._axes, self._places, self._labels = axes, list(places), list(labels)

    def __call__(self) -> Any:
        pixels = self._axes.transData.transform([(place, 1) for place in self._places])[:, 0]
        pixels *= INCH / self._axes.figure.dpi  # a PNG has more than a figure's own
        return [self._places[index] for index in fitting(pixels.tolist(), self._labels)]


def label_places(axis: Axis, places: Sequence[float], labels: Sequence[str], fit: bool = False) -> None:
    """Labels at these places of an axis, all or (of an x axis, from left to right) as many as have room, and marks."""
    names = dict(zip(places, labels, strict=True))
    axis.set_major_locator(_FittingTicks(axis.axes, places, labels) if fit else FixedLocator(places))
    axis.set_major_formatter(lambda value, _: names.get(value, ""))
    axis.set_minor_locator(FixedLocator(places) if fit else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def density_axis(axes: Axes, densities: Iterable[float], name: str = "weights remaining, % (log scale)") -> None:
    """A logarithmic x axis in per cent, sparser to the right: a mark at each density, labels as have room."""
    shares = [100 * density for density in sorted(set(densities), reverse=True)]
    high, low = shares[0], shares[-1]
    room = (high / low) ** 0.025 if high > low else 1.5
    axes.set_xscale("log")
    axes.set_xlim(high * room, low / room)
    label_places(axes.xaxis, shares, [tick_label(share / 100) for share in shares], fit=True)
    axes.set_xlabel(name)


def tick_label(density: float) -> str:
    """100, 51.2, 41, 0.92: `percent` without a trailing .0."""
    return percent(density).removesuffix(".0")


def log_axis(
    axes: Axes, axis: Literal["x", "y"], low: float, high: float, text: Callable[[float], str] = short_count
) -> list[float]:
    """A logarithmic axis between two limits with ticks at 1, 2, 5, 10, …; over many decades at 1, 10, 100 … alone.

    Where fewer than two of them lie between the limits there are others: nothing can be read from one.

    Returns:
        the places of the ticks.
    """
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    lowest, highest = sorted((low, high))
    familiar = [digit * 10.0**power for power in range(-9, 16) for digit in (1, 2, 5)]
    inside = [tick for tick in familiar if lowest <= tick <= highest]
    if len(inside) < 2:
        inside = ticks(lowest, highest, 6)
    if len(inside) > 9:
        inside = [tick for tick in inside if f"{tick:.0e}".startswith("1")]
    if low > high:
        inside.reverse()
    label_places(getattr(axes, f"{axis}axis"), inside, [text(tick) for tick in inside], fit=axis == "x")
    return inside


def general(value: float) -> str:
    """0.05, 2, 500: as few digits as there are."""
    return f"{value:.6g}"


# -- metrics -----------------------------------------------------------------------------------------------------------

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
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        found = ticks(*limits, most or 8)
        label_places(axes.yaxis, found, [f"{tick:,.10g}" for tick in found])


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most so many, at least three where there is room for them."""
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
