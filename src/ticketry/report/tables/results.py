"""Means and spreads over replicates: the numbers behind every table, figure and sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Literal

from ticketry.records.metric import Metric
from ticketry.records.network import DENSE, TICKET, LayerDensity, Point
from ticketry.records.run import RunRecord, RunValues, read_run

Split = Literal["test", "validation"]
CONTROLS = ("random_reinit", "shuffled", "random_prune")
LONGER = ("cyclic", "cyclic_random")
"""Controls with more training steps than the tickets: shown, but no rivals."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof = 1) of n numbers."""

    mean: float
    """Or the interquartile mean, see `bounds`."""
    sd: float | None
    """None where n is 1: one number has no spread."""
    n: int
    bounds: tuple[float, float] | None = None
    """Where `mean` is the interquartile mean of several numbers: its 95 % interval, see `interquartile`."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two-sided 95 % interval: Student's of the mean, or `bounds`; None where n is 1."""
        if self.sd is None or self.bounds is not None:
            return self.bounds
        half = _t_quantile(self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


CONFIDENCE = 0.95


@cache
def _t_quantile(freedom: int) -> float:
    """Half the width of an interval in standard errors."""
    from scipy.special import stdtrit  # a fraction of the time that scipy.stats takes to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Group:
    """All replicates of one role at one level."""

    level: int
    role: str
    points: Mapping[int, Point] = field(repr=False)
    """By replicate; never empty."""
    compared: Metric
    """What networks are compared by."""

    @property
    def density(self) -> float:
        """Mean over replicates, a fraction of the prunable parameters."""
        return statistics.fmean(point.density for point in self.points.values())

    def metric(self, split: Split = "test") -> Summary:
        values = tuple(self.values(split).values())
        return interquartile(values) if self.compared.summary == "iqm" else mean_of(values)

    def values(self, split: Split = "test") -> dict[int, float]:
        """The metric by replicate."""
        return {replicate: point.metric(self.compared.name, split) for replicate, point in self.points.items()}

    def minus(self, other: Group, split: Split = "test") -> Summary | None:
        """The mean difference, replicate by replicate, over those that both groups have; None if there are none."""
        shared = sorted(self.points.keys() & other.points.keys())
        if not shared:
            return None
        own, others = self.values(split), other.values(split)
        return summarise(own[r] - others[r] for r in shared)


class Results:
    """The points of a run, grouped by level and role."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        members: dict[tuple[int, str], dict[int, Point]] = {}
        for point in sorted(run.points, key=lambda point: point.replicate):
            members.setdefault((point.level, point.role), {})[point.replicate] = point
        self._groups = {key: Group(*key, points, run.task.metric) for key, points in sorted(members.items())}

    def pairs_with(self, other: Results) -> bool:
        """Whether replicates of a number are from the same seeds by the same recipe in both."""
        return (self.run.seeds, self.run.recipe) == (other.run.seeds, other.run.recipe)

    @property
    def replicates(self) -> int:
        return len({point.replicate for point in self.run.points})

    @property
    def levels(self) -> list[int]:
        """All levels that have anything but the dense network, densest first."""
        return sorted({level for level, role in self._groups if role != DENSE})

    @property
    def controls(self) -> list[str]:
        """The controls there are: the usual ones in their usual order, then any others by name."""
        found = {role for _, role in self._groups} - {DENSE, TICKET}
        return [role for role in CONTROLS if role in found] + sorted(found - set(CONTROLS))

    @property
    def rivals(self) -> list[str]:
        """The controls that a ticket should beat: those with its budget."""
        return [role for role in self.controls if role not in LONGER]

    @property
    def roles(self) -> list[str]:
        """Every role there is, in the order of columns: dense, tickets, controls."""
        found = {role for _, role in self._groups}
        return [role for role in (DENSE, TICKET, *self.controls) if role in found]

    @property
    def dense(self) -> Group | None:
        return next((group for group in self._groups.values() if group.role == DENSE), None)

    def group(self, level: int, role: str) -> Group | None:
        return self._groups.get((level, role))

    def of_role(self, role: str) -> list[Group]:
        """One group a level, in the order of levels."""
        return [group for group in self._groups.values() if group.role == role]

    def any_at(self, level: int) -> Group:
        """The tickets of a level, or where there are none yet, the first control: for the level's density."""
        return next(group for role in (TICKET, *self.controls) if (group := self.group(level, role)))


def results_of(record: RunValues) -> Results:
    """Read a run record for display, with verdicts by the rule of this version (`with_current_verdicts`).

    Raises:
        StoreError: if the record is malformed.
    """
    from ticketry.evidence.judging.level_verdicts import with_current_verdicts

    return Results(with_current_verdicts(read_run(record)))


def summarise(values: Iterable[float]) -> Summary:
    """Mean, standard deviation with ddof = 1 and count of at least one number."""
    numbers = list(values)
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Summary(statistics.fmean(numbers), spread, len(numbers))


@lru_cache(maxsize=4096)  # the same groups are asked for again and again
def mean_of(values: tuple[float, ...]) -> Summary:
    """`summarise`, remembered."""
    return summarise(values)


@lru_cache(maxsize=4096)
def interquartile(values: tuple[float, ...]) -> Summary:
    """Interquartile mean with its interval, standard deviation and count of at least one number.

    The interval is the bootstrap's. Of two or three values nothing is left out, so that it is Student's of their mean:
    whatever is drawn of them lies between the least and the most, and the truth only half or three quarters of the
    time.
    """
    found = summarise(values)
    few = len(values) < _FIRST_CUT
    bounds = found.interval if few else bootstrap_interval(values, CONFIDENCE)
    return replace(found, mean=interquartile_mean(values), bounds=bounds)


@dataclass(frozen=True)
class LayerProfile:
    """The mean density of each layer at one level of the tickets."""

    level: int
    density: float
    """Of the whole scope."""
    layers: Mapping[str, float]
    """By layer, in the order of the model."""


def layer_profiles(results: Results) -> list[LayerProfile]:
    """Density by layer for every level whose tickets tell it, averaged over replicates."""
    profiles = []
    for group in results.of_role(TICKET):
        by_layer: dict[str, list[LayerDensity]] = {}
        for point in group.points.values():
            for layer in point.layers:
                by_layer.setdefault(layer.name, []).append(layer)
        if by_layer:
            means = {name: statistics.fmean(layer.density for layer in found) for name, found in by_layer.items()}
            profiles.append(LayerProfile(group.level, group.density, means))
    return profiles


RESAMPLED = 10_000
"""How often: then the ends of an interval move by about a hundredth of its width from one set of draws to another."""
_SEED = 0
_FIRST_CUT = 4
"""Values of which a quarter is one: fewer have an interquartile mean that is their mean."""


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter of the values, each rounded down to whole values.

    For values that differ widely between seeds, as returns do: less swayed by a lucky or a failed seed than the mean,
    and known more exactly than the median. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice" (2021), section 4.
    """
    kept = sorted(values)[len(values) // 4 : len(values) - len(values) // 4]
    return sum(kept) / len(kept)


def bootstrap_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The percentile bootstrap interval of the interquartile mean. The same for the same values at any time."""
    import numpy as np

    drawn = np.random.Generator(np.random.PCG64(_SEED)).choice(np.asarray(values), (RESAMPLED, len(values)))
    drawn.sort(axis=1)
    cut = len(values) // 4
    means = drawn[:, cut : len(values) - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
