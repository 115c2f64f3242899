"""Paired comparisons: a ticket against another network, trained from the same seeds.

Each seed gives one difference, ticket minus other, turned so that higher is better. The differences are taken as
independent and roughly normal (Student's one-sample t); with a least spread, as verdicts have it, less is assumed
(`judging.guarded_tests`). What is said holds for the networks that other seeds would give on *this* test split; how
much another test split would change is not part of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from math import isfinite, sqrt
from typing import Any

from msgspec.structs import replace

from ticketry.errors import UsageError
from ticketry.evidence.judging.diagnosis import Diagnosis, diagnose
from ticketry.evidence.judging.distributions import special
from ticketry.evidence.judging.guarded_tests import LEAST_SEEDS, ROUNDING, collapse_edge, guarded
from ticketry.evidence.judging.pooled_tests import PooledSD, pooled_p_values
from ticketry.evidence.judging.power import SIMULATED, guarded_power
from ticketry.evidence.judging.ranges import check_settings
from ticketry.records.network import DENSE
from ticketry.records.verdict import MeanDifference

MOST_SEEDS = 1000
"""Beyond this many seeds, the estimate of how many are needed gives up."""


class Comparison(MeanDifference, frozen=True, kw_only=True, dict=True):
    """What the differences to one other network show. Every p-value is one-sided; 1 where nothing can be said.

    p-values are those of Student's t or, where there is a least spread, of `guarded_tests.guarded`.
    """

    n: int
    """Seeds."""
    spread: float | None = None
    """The standard deviation of the interval: `sd`, but not below the resolution; 0 for equal differences without one,
    which have no interval; None where nothing was tested."""
    margin: float
    confidence: float
    p_noninferior: float = 1.0
    """Of H0: mean <= -margin. Small: worse by less than the margin."""
    p_superior: float = 1.0
    """Of H0: mean <= 0. Small: better."""
    p_inferior: float = 1.0
    """Of H0: mean >= -margin. Small: worse by more than the margin."""
    p_worse: float = 1.0
    """Of H0: mean >= 0. Small: worse."""
    note: str = ""
    """What is unusual about the spread of these differences, in words."""
    least_spread: float | None = None
    """The spread below which none was believed in the tests; None for plain t tests."""
    differences: tuple[float, ...] = ()
    """By seed."""
    name: str = ""
    """Of the other network, in words."""
    pooled: PooledSD | None = None
    """The SD over the levels of the search; None for a comparison that was tested alone."""

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """What the differences tell against the tests' assumptions; None for too few, and for plain t tests."""
        return None if self.least_spread is None else diagnose(self.differences, self.least_spread, self.name)

    def p_of(self, network: str) -> float:
        """Of what is to be shown: as good as the dense network, or better than a control."""
        return self.p_noninferior if network == DENSE else self.p_superior


def compare(
    ticket: Sequence[float],
    other: Sequence[float],
    *,
    margin: float = 0.5,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    resolution: float | None = None,
    least_spread: float | None = None,
    name: str = "the other network",
) -> Comparison:
    """Compare two networks over paired seeds: `ticket[i]` and `other[i]` are from the same seed.

    Args:
        ticket: the metric of the ticket, one value a seed.
        other: the same of the other network, in the same order.
        margin: how much worse still counts as equally good, in the metric's unit; above 0.
        confidence: of the two-sided interval; above 0.5.
        higher_is_better: False for a loss or an error.
        resolution: the metric's smallest step: 100 / number of test examples for an accuracy in %. The spread is
            never taken to be below it, so that equal differences do not pass for perfect certainty.
        least_spread: in the metric's unit, for the tests of `guarded_tests`; plain t tests without one, by which equal
            differences without a resolution show nothing. The interval is the t interval of the spread that was seen in
            any case.
        name: what the other network is called in messages.

    Raises:
        UsageError: if the numbers of values differ, one is not finite, or a setting is out of its range.

    Examples:
        >>> found = tk.evidence.compare([97.9, 98.1, 98.0], [97.0, 97.2, 96.9], margin=0.5)
        >>> round(found.mean, 2), found.n, found.p_superior < 0.05
        (0.97, 3, True)
    """
    check_settings(margin, confidence, resolution, least_spread)
    differences = _differences(ticket, other, higher_is_better, name)
    n, mean, sd = len(differences), *_moments(differences)
    scale = max(abs(value) for value in (*ticket, *other))
    spread, note = _spread(sd, scale, resolution, least_spread, name)
    found = Comparison(
        n=n,
        mean=mean,
        sd=sd,
        margin=margin,
        confidence=confidence,
        note=note,
        least_spread=least_spread,
        differences=differences,
        name=name,
    )
    if spread is None:
        return found

    def p_values(null: float) -> tuple[Any, Any]:
        if least_spread is None:
            return one_sided(mean, spread, n, null)
        return guarded(differences, null, max(least_spread, resolution or 0.0))

    p_noninferior, p_inferior = p_values(-margin)
    p_superior, p_worse = p_values(0.0)
    half = _half_width(spread, n, confidence) if spread else None
    return replace(
        found,
        spread=spread,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        p_noninferior=float(p_noninferior),
        p_superior=float(p_superior),
        p_inferior=float(p_inferior),
        p_worse=float(p_worse),
    )


def with_pooled_sd(one: Comparison, pooled: PooledSD, resolution: float | None) -> Comparison:
    """Return the comparison with interval and p-values by the tests for the levels of a search (`pooled_tests`).

    Args:
        one: made by `compare`.
        pooled: the SD over the levels of the search.
        resolution: the metric's smallest step, see `compare`.
    """
    if one.sd is None:
        return replace(one, pooled=pooled)
    spread = max(one.sd, pooled.sd, pooled.floor, resolution or 0.0)
    p_noninferior, p_inferior = pooled_p_values(one.mean + one.margin, spread, one.n, pooled)
    p_superior, p_worse = pooled_p_values(one.mean, spread, one.n, pooled)
    half = _half_width(spread, one.n, one.confidence, pooled.freedom(one.n))
    return replace(
        one,
        pooled=pooled,
        spread=spread,
        low=one.mean - half,
        high=one.mean + half,
        p_noninferior=p_noninferior,
        p_superior=p_superior,
        p_inferior=p_inferior,
        p_worse=p_worse,
    )


def one_sided(mean: Any, spread: Any, n: Any, null: Any) -> tuple[Any, Any]:
    """p-values of H0: mean <= null and of H0: mean >= null, by Student's t with n - 1 degrees of freedom.

    Numbers or NumPy arrays that broadcast; n >= 2 and spread > 0.
    """
    statistic, stdtr = (mean - null) / (spread / n**0.5), special().stdtr
    return stdtr(n - 1, -statistic), stdtr(n - 1, statistic)


@cache
def seeds_needed(
    distance: float, spread: float, alpha: float, power: float = 0.8, least_spread: float | None = None
) -> int | None:
    """The fewest seeds with which a one-sided test at `alpha` rejects normal differences with probability `power`.

    Args:
        distance: how far beyond the null hypothesis the true mean is taken to be.
        spread: the standard deviation of the differences, above 0; with a least spread also 0.
        alpha: the level of the test.
        power: by the noncentral t distribution; with a least spread by simulation too, up to `SIMULATED` seeds.
        least_spread: of the tests of `guarded_tests`. A plain t test without one.

    Returns:
        None if the distance is not positive or more than `MOST_SEEDS` would be needed.
    """
    ndtri, stdtrit, nctdtr = special().ndtri, special().stdtrit, special().nctdtr
    if distance <= 0:
        return None

    def by_parts(n: int) -> bool:
        """Whether each of the test's parts alone has that power."""
        error = spread / sqrt(n)
        lift = float(ndtri(power)) * error
        if least_spread is not None and distance - collapse_edge(n, alpha, least_spread) < lift:
            return False
        enough = float(stdtrit(n - 1, 1 - alpha))
        if least_spread is None or spread >= least_spread:
            return bool(1 - nctdtr(n - 1, distance / error, enough) >= power)
        return distance - enough * least_spread / sqrt(n) >= lift

    def reached(n: int) -> bool:
        if not by_parts(n):  # then all together lack it too
            return False
        return least_spread is None or n > SIMULATED or guarded_power(n, distance, spread, alpha, least_spread) >= power

    fewest = 2 if least_spread is None else LEAST_SEEDS
    enough = fewest  # doubled until it is enough: a large noncentrality, where SciPy's series fails, is never asked for
    while enough < MOST_SEEDS and not reached(enough):
        enough = min(2 * enough, MOST_SEEDS)
    found = bisect_left(range(enough), True, lo=fewest, key=reached)
    return found if found < enough or reached(enough) else None


def check_budgets(steps: Mapping[str, Sequence[int]]) -> None:
    """Raises `UsageError` unless all networks were trained for equally many steps with every seed.

    Args:
        steps: training steps, one number a seed, by the network's name.
    """
    budgets = {name: sorted(set(counts)) for name, counts in steps.items()}
    if len({count for counts in budgets.values() for count in counts}) > 1:
        told = "; ".join(f"{name}: {', '.join(map(str, counts))} steps" for name, counts in budgets.items())
        raise UsageError(f"unequal budgets ({told}): train all of them for the same number of steps, with every seed")


def _differences(
    ticket: Sequence[float], other: Sequence[float], higher_is_better: bool, name: str
) -> tuple[float, ...]:
    if not len(ticket):
        raise UsageError("the ticket has no values: train it with at least one seed")
    if len(ticket) != len(other):
        raise UsageError(
            f"{len(ticket)} values of the ticket and {len(other)} of {name}: seeds are compared in pairs,"
            " so train both with the same ones"
        )
    for who, values in (("the ticket", ticket), (name, other)):
        for index, value in enumerate(values):
            if not isfinite(value):
                raise UsageError(
                    f"the metric of {who} is {value} at seed number {index + 1}: its training has failed;"
                    " find out why, leaving the seed out would bias the verdict"
                )
    sign = 1.0 if higher_is_better else -1.0
    return tuple(sign * (float(one) - float(two)) for one, two in zip(ticket, other, strict=True))


def _moments(differences: Sequence[float]) -> tuple[float, float | None]:
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def _spread(
    sd: float | None, scale: float, resolution: float | None, least_spread: float | None, name: str
) -> tuple[float | None, str]:
    """The spread to reckon with, and what to say about it."""
    if sd is None:
        return None, f"{name}: one seed has no spread, so nothing can be decided"
    flat = sd <= ROUNDING * scale
    if resolution is not None and sd < resolution:
        seen = "all differences are equal" if flat else f"their spread of {sd:.2g} is below the metric's resolution"
        return resolution, f"{name}: {seen}; a spread of {resolution:.2g}, the resolution, is taken instead"
    if not flat:
        return sd, ""
    equal = f"{name}: all differences are equal, which is no proof of certainty"
    if least_spread is None:
        return None, (
            f"{equal}: nothing is decided"
            " (do the seeds take effect? the metric's resolution, if given, is taken as the spread)"
        )
    return 0.0, f"{equal} (do the seeds take effect?): no interval; tested as if they spread by {least_spread:g}"


def _half_width(spread: float, n: int, confidence: float, freedom: int | None = None) -> float:
    quantile = float(special().stdtrit(n - 1 if freedom is None else freedom, (1 - confidence) / 2))
    return -quantile * spread / sqrt(n)
