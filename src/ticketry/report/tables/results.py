"""Compute means and spreads over replicates, which every table, figure and sentence of a report uses."""

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
from ticketry.records.verdict import MARGIN_POINTS, MARGIN_SHARE, default_margin

Split = Literal["test", "validation"]
CONTROLS = ("random_reinit", "shuffled", "random_prune")
CONTROLS_WITH_MORE_STEPS = ("cyclic", "cyclic_random")
"""Controls with more training steps than the tickets; they are shown, but tickets need not beat them."""


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof = 1) and count `n` of some numbers."""

    mean: float
    """The mean, or the interquartile mean if there are `bounds`."""
    sd: float | None
    """The standard deviation; None if n is 1."""
    n: int
    bounds: tuple[float, float] | None = None
    """The 95 % interval of an interquartile mean, see `interquartile_summary`."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two-sided 95 % interval: `bounds` if given, else Student's t interval of the mean; None if n is 1."""
        if self.sd is None or self.bounds is not None:
            return self.bounds
        half = _t_quantile(self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


CONFIDENCE = 0.95


@cache
def _t_quantile(degrees_of_freedom: int) -> float:
    """Return the quantile of Student's t for a 95 % interval: half the interval's width in standard errors."""
    from scipy.special import stdtrit  # imports much faster than scipy.stats

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Group:
    """The networks of all replicates that have the same role and level."""

    level: int
    role: str
    points: Mapping[int, Point] = field(repr=False)
    """The record's row of each network, by replicate; never empty."""
    compared: Metric

    @property
    def density(self) -> float:
        """Mean density over replicates: the retained share of the prunable weights."""
        return statistics.fmean(point.density for point in self.points.values())

    def metric(self, split: Split = "test") -> Summary:
        values = tuple(self.values(split).values())
        return interquartile_summary(values) if self.compared.summary == "iqm" else _cached_summary(values)

    def values(self, split: Split = "test") -> dict[int, float]:
        """Return the metric on a split, by replicate."""
        return {replicate: point.metric(self.compared.name, split) for replicate, point in self.points.items()}

    def paired_difference(self, other: Group, split: Split = "test") -> Summary | None:
        """Summarise paired differences of the metric, this group minus `other`; None without common replicates."""
        shared = sorted(self.points.keys() & other.points.keys())
        if not shared:
            return None
        own, others = self.values(split), other.values(split)
        return summarise(own[r] - others[r] for r in shared)


class Results:
    """The networks of a run, grouped by level and role."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        members: dict[tuple[int, str], dict[int, Point]] = {}
        for point in sorted(run.points, key=lambda point: point.replicate):
            members.setdefault((point.level, point.role), {})[point.replicate] = point
        self._groups = {key: Group(*key, points, run.task.metric) for key, points in sorted(members.items())}

    def can_be_paired_with(self, other: Results) -> bool:
        """Return whether both runs used the same seeds and the same recipe, so that replicates can be paired."""
        return (self.run.seeds, self.run.recipe) == (other.run.seeds, other.run.recipe)

    @property
    def replicates(self) -> int:
        return len({point.replicate for point in self.run.points})

    @property
    def levels(self) -> list[int]:
        """All levels except the dense network's, densest first."""
        return sorted({level for level, role in self._groups if role != DENSE})

    @property
    def controls(self) -> list[str]:
        """Roles of the run's controls: usual controls in their usual order, then other controls by name."""
        found = {role for _, role in self._groups} - {DENSE, TICKET}
        return [role for role in CONTROLS if role in found] + sorted(found - set(CONTROLS))

    @property
    def equal_budget_controls(self) -> list[str]:
        """Controls that were trained for as many steps as the tickets; tickets should beat these controls."""
        return [role for role in self.controls if role not in CONTROLS_WITH_MORE_STEPS]

    @property
    def roles(self) -> list[str]:
        """All roles of the run in the order of columns: dense network, tickets, controls."""
        found = {role for _, role in self._groups}
        return [role for role in (DENSE, TICKET, *self.controls) if role in found]

    @property
    def dense(self) -> Group | None:
        return next((group for group in self._groups.values() if group.role == DENSE), None)

    def group(self, level: int, role: str) -> Group | None:
        return self._groups.get((level, role))

    def groups_of_role(self, role: str) -> list[Group]:
        """Return the groups of a role, one for each level, in the order of levels."""
        return [group for group in self._groups.values() if group.role == role]

    def tickets_or_control_at(self, level: int) -> Group:
        """Return the tickets of a level; if none is trained yet, its first control, which has the same density."""
        return next(group for role in (TICKET, *self.controls) if (group := self.group(level, role)))

    def replicate_count_if_equal(self, role: str) -> int | None:
        """Return the number of replicates of a role; None if the number differs between levels."""
        counts = {len(group.points) for group in self.groups_of_role(role)}
        return counts.pop() if len(counts) == 1 else None

    @property
    def has_missing_networks(self) -> bool:
        """Whether a network of some replicate, level and role is missing."""
        return any(len(group.points) < self.replicates for group in self._groups.values())

    @property
    def has_estimated_energy(self) -> bool:
        """Whether the run's energy was estimated instead of measured."""
        return "estimate" in self.run.cost.energy_by


def results_of(record: RunValues) -> Results:
    """Read a run record for display, and recompute its verdicts by the rule of this version."""
    from ticketry.evidence.level_verdicts import recompute_verdicts

    return Results(recompute_verdicts(read_run(record)))


def summarise(values: Iterable[float]) -> Summary:
    """Return mean, standard deviation (ddof = 1) and count of at least one number."""
    numbers = list(values)
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Summary(statistics.fmean(numbers), spread, len(numbers))


def margin_and_text(results: Results, dense: Group) -> tuple[float, str]:
    """Return the default margin, as a number and as text: tickets that are worse than dense by less count as good."""
    unit = results.run.task.metric.unit
    text = f"{MARGIN_POINTS:g} points" if unit == "%" else f"{100 * MARGIN_SHARE:g} %"
    return default_margin(unit, [dense.metric().mean]), text


def metric_band_caption(runs: Sequence[Results]) -> str:
    """Return a caption that explains points and bands in a figure of these runs."""
    if all(results.replicates <= 1 for results in runs):
        return "one replicate, so there is no band"
    counts = sorted(
        {len(group.points) for results in runs for role in results.roles for group in results.groups_of_role(role)}
    )
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if any(results.run.task.metric.summary == "iqm" for results in runs):
        return f"interquartile mean over replicates ({n}); bands: its 95 % interval"
    return f"mean over replicates ({n}); bands: 95 % Student t interval of that mean"


_cached_summary = lru_cache(maxsize=4096)(summarise)  # a page needs the same groups many times


@lru_cache(maxsize=4096)
def interquartile_summary(values: tuple[float, ...]) -> Summary:
    """Return the interquartile mean with its bootstrap interval, standard deviation and count.

    For two or three values, the interquartile mean is the mean, and the interval is Student's t interval: a bootstrap
    interval would stay between the smallest and the largest value, and would cover the true mean too rarely.
    """
    found = summarise(values)
    few = len(values) < _FEWEST_TRIMMED
    bounds = found.interval if few else bootstrap_interval(values, CONFIDENCE)
    return replace(found, mean=interquartile_mean(values), bounds=bounds)


@dataclass(frozen=True)
class LayerProfile:
    """The mean density of each layer at one level of the tickets."""

    level: int
    density: float
    layers: Mapping[str, float]
    """Mean density by name of the layer, in the order of the model."""


def mean_layer_densities(results: Results) -> list[LayerProfile]:
    """Return the mean density of each layer over replicates, for every level whose tickets have recorded it."""
    profiles = []
    for group in results.groups_of_role(TICKET):
        by_layer: dict[str, list[LayerDensity]] = {}
        for point in group.points.values():
            for layer in point.layers:
                by_layer.setdefault(layer.name, []).append(layer)
        if by_layer:
            means = {name: statistics.fmean(layer.density for layer in found) for name, found in by_layer.items()}
            profiles.append(LayerProfile(group.level, group.density, means))
    return profiles


RESAMPLED = 10_000
"""Number of bootstrap draws; with so many, another seed changes interval ends by about 1 % of the width."""
_SEED = 0
_FEWEST_TRIMMED = 4
"""Smallest number of values that are trimmed: a quarter of fewer values is less than one value."""


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean without the lowest and the highest quarter of the values (rounded down to whole values).

    It suits values that differ widely between seeds, such as returns of reinforcement learning. A lucky or failed seed
    changes it less than the mean, and it is more precise than the median. See Agarwal et al., "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice" (2021), section 4.
    """
    kept = sorted(values)[len(values) // 4 : len(values) - len(values) // 4]
    return sum(kept) / len(kept)


def bootstrap_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the interquartile mean, with draws from a fixed seed."""
    import numpy as np

    drawn = np.random.Generator(np.random.PCG64(_SEED)).choice(np.asarray(values), (RESAMPLED, len(values)))
    drawn.sort(axis=1)
    cut = len(values) // 4
    means = drawn[:, cut : len(values) - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
