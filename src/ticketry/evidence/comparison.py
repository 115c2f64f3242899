"""Paired comparisons of a ticket with another network from the same seeds, and plans of interim analyses.

Each seed gives one difference, ticket minus other network; its sign is chosen so that positive is better. Differences
are assumed to be independent and roughly normal (Student's one-sample t). Verdicts use an SD floor, with which less is
assumed (`evidence.significance`). Results hold for networks from other seeds on *this* test split; they do not cover
the variation between test splits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import isfinite, sqrt
from numbers import Real
from typing import Any

from msgspec.structs import replace

from ticketry.errors import UsageError
from ticketry.evidence.significance import (
    LEAST_SEEDS,
    MOST_SEEDS,
    POWER,
    ROUNDING,
    SIMULATED,
    UNSEEN_FALL,
    Diagnosis,
    PooledSD,
    collapse_test_threshold,
    diagnose,
    guarded_p_values,
    guarded_power,
    import_scipy_special,
    pooled_p_values,
)
from ticketry.records.network import DENSE
from ticketry.records.verdict import MeanDifference


def check_comparison_settings(
    margin: float, confidence: float, resolution: float | None, least_spread: float | None = None
) -> None:
    """Raise `UsageError` if a setting of a comparison is not a number, or is out of range."""
    given = {"margin": margin, "confidence": confidence, "resolution": resolution, "least_spread": least_spread}
    for name, value in given.items():
        if not isinstance(value, Real) and not (value is None and name in ("resolution", "least_spread")):
            raise UsageError(f"{name}= must be a number, such as 0.5, not {value!r:.60}")
    if not (isfinite(margin) and margin > 0):
        raise UsageError(f"a margin of {margin}: it must be above 0, in the metric's unit (0.5 points of accuracy)")
    if not 0.5 < confidence < 1:
        raise UsageError(f"a confidence of {confidence}: it must lie between 0.5 and 1 (0.95 means 95 %)")
    if resolution is not None and not (isfinite(resolution) and resolution > 0):
        raise UsageError(f"a resolution of {resolution}: it must be above 0 (100 / test examples for % of accuracy)")
    if least_spread is not None and not (isfinite(least_spread) and least_spread > 0):
        raise UsageError(f"a least spread of {least_spread}: it must be above 0, in the metric's unit, as the margin")


INTERIM = (3, 5, 7, 10)
"""Default numbers of seeds after which an interim analysis is made."""


@dataclass(frozen=True)
class InterimAnalyses:
    """Plan of interim analyses: the numbers of seeds after which a decision may be made.

    Testing repeatedly without such a plan finds false wins. With a plan, analysis k has its own error rate alpha_k, and
    all alpha_k add up to alpha (union bound). The sum of alpha_k up to n seeds is alpha * (n / last)^3 (the spending
    function of Kim & DeMets, Biometrika 74, 1987). By default the last analysis gets two thirds of alpha, and three
    seeds can decide clear cases.
    """

    at: tuple[int, ...] = INTERIM
    """Numbers of seeds after which an analysis is made, ascending; no seeds are added after the last one."""

    def __post_init__(self) -> None:
        rising = all(one < two for one, two in zip(self.at, self.at[1:], strict=False))
        if not self.at or self.at[0] < 2 or not rising:
            raise UsageError(
                f"interim analyses at {self.at} seeds: give ascending numbers from 2 on, such as (3, 5, 7, 10)"
            )

    @property
    def last(self) -> int:
        return self.at[-1]

    def alphas(self, alpha: float) -> dict[int, float]:
        """Split alpha among the analyses; return number of seeds -> the error rate of the analysis after them."""
        spent = [0.0, *(alpha * (n / self.last) ** 3 for n in self.at)]
        return {n: spent[k + 1] - spent[k] for k, n in enumerate(self.at)}


class Comparison(MeanDifference, frozen=True, kw_only=True, dict=True):
    """Result of comparing a ticket with one other network over paired seeds.

    p-values are one-sided, and 1 if there were too few seeds. They come from Student's t test, or with an SD floor from
    `significance.guarded_p_values`.
    """

    n: int
    """Number of seeds."""
    spread: float | None = None
    """SD from which the interval is computed: `sd`, but at least the resolution. 0 for equal differences without a
    resolution, which have no interval; None if nothing was tested."""
    margin: float
    confidence: float
    p_noninferior: float = 1.0
    """p-value of H0: mean <= -margin. A small value shows that the ticket is not worse by the margin or more."""
    p_superior: float = 1.0
    """p-value of H0: mean <= 0. A small value shows that the ticket is better."""
    p_inferior: float = 1.0
    """p-value of H0: mean >= -margin. A small value shows that the ticket is worse by more than the margin."""
    p_worse: float = 1.0
    """p-value of H0: mean >= 0. A small value shows that the ticket is worse."""
    note: str = ""
    """Remark on an unusual SD, for the verdict's reasons; empty if the SD is usual."""
    least_spread: float | None = None
    """SD floor of the tests; None for plain t tests."""
    differences: tuple[float, ...] = ()
    """Difference ticket minus other network of each seed; positive if the ticket is better."""
    name: str = ""
    """Name of the other network."""
    pooled: PooledSD | None = None
    """Pooled SD over the levels of the search; None for a comparison that is tested alone."""

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """Checks of the tests' assumptions; None if there are too few differences or no SD floor."""
        return None if self.least_spread is None else diagnose(self.differences, self.least_spread, self.name)

    def p_value_for(self, network: str) -> float:
        """Return the p-value of the claim about `network`: as good as the dense network, or better than a control."""
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
    pooled: PooledSD | None = None,
    name: str = "the other network",
) -> Comparison:
    """Compare two networks over paired seeds: `ticket[i]` and `other[i]` are from the same seed.

    Args:
        ticket, other: the metric of both networks, one value for each seed.
        margin: how much worse still counts as equally good, in the metric's unit; above 0.
        confidence: confidence of the two-sided interval; above 0.5.
        higher_is_better: False for a loss or an error.
        resolution: the metric's smallest possible change, 100 / number of test examples for an accuracy in %. The SD is
            taken to be at least this large, so that equal differences do not pass for perfect certainty.
        least_spread: SD floor in the metric's unit, for the tests of `significance`. If None, plain t tests are used,
            by which equal differences without a resolution show nothing. The interval is always the t interval of the
            observed SD.
        pooled: pooled SD over the levels of one search; if given, tests and interval are those of
            `significance.pooled_p_values`.
        name: name of the other network in messages.

    Raises:
        UsageError: if the numbers of values differ, one is not finite, or a setting is out of its range.

    Examples:
        >>> found = tk.evidence.compare([97.9, 98.1, 98.0], [97.0, 97.2, 96.9], margin=0.5)
        >>> round(found.mean, 2), found.n, found.p_superior < 0.05
        (0.97, 3, True)
    """
    import numpy as np

    check_comparison_settings(margin, confidence, resolution, least_spread)
    differences = _paired_differences(ticket, other, higher_is_better, name)
    n, values = len(differences), np.asarray(differences, dtype=np.float64)
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if n > 1 else None
    scale = max(abs(value) for value in (*ticket, *other))
    spread, note = _choose_sd_for_tests(sd, scale, resolution, least_spread, name)
    if pooled is not None and sd is not None:
        spread = max(sd, pooled.sd, pooled.sd_floor, resolution or 0.0)
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
        pooled=pooled,
    )
    if spread is None:
        return found

    def p_values(null: float) -> tuple[Any, Any]:
        if pooled is not None:
            return pooled_p_values(mean - null, spread, n, pooled)
        if least_spread is None:
            return one_sided_p_values(mean, spread, n, null)
        return guarded_p_values(differences, null, max(least_spread, resolution or 0.0))

    p_noninferior, p_inferior = p_values(-margin)
    p_superior, p_worse = p_values(0.0)
    half = None  # half of the interval's width
    if spread:
        freedom = n - 1 if pooled is None else pooled.degrees_of_freedom(n)
        half = -float(import_scipy_special().stdtrit(freedom, (1 - confidence) / 2)) * spread / sqrt(n)
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


def one_sided_p_values(mean: Any, spread: Any, n: Any, null: Any) -> tuple[Any, Any]:
    """Return the p-values of H0: true mean <= null and H0: true mean >= null, by Student's t.

    Args:
        mean: observed mean. All arguments may be numbers or NumPy arrays, which are broadcast.
        spread: standard deviation, above 0.
        n: number of differences, at least 2.
    """
    statistic, stdtr = (mean - null) / (spread / n**0.5), import_scipy_special().stdtr
    return stdtr(n - 1, -statistic), stdtr(n - 1, statistic)


@cache
def seeds_needed(distance: float, spread: float, alpha: float, least_spread: float | None = None) -> int | None:
    """Return the smallest number of seeds with which a one-sided test at level `alpha` has the power `POWER`.

    Differences are assumed to be normal. The power is computed by the noncentral t distribution; with an SD floor and
    up to `SIMULATED` seeds also by simulation.

    Args:
        distance: assumed distance of the true mean from the null hypothesis, in the direction of the claim.
        spread: SD of the differences, above 0; it may be 0 if there is an SD floor.
        least_spread: SD floor of the guarded tests; None for a plain t test.

    Returns:
        The number of seeds; None if the distance is not positive or more than `MOST_SEEDS` would be needed.
    """
    ndtri, stdtrit, nctdtr = import_scipy_special().ndtri, import_scipy_special().stdtrit, import_scipy_special().nctdtr
    if distance <= 0:
        return None

    def each_test_has_power(n: int) -> bool:
        """Return whether each test of the combined test, taken alone, has the power `POWER` with n seeds."""
        error = spread / sqrt(n)
        lift = float(ndtri(POWER)) * error
        if (
            least_spread is not None
            and distance - collapse_test_threshold(n, alpha, UNSEEN_FALL * least_spread, least_spread) < lift
        ):
            return False
        enough = float(stdtrit(n - 1, 1 - alpha))
        if least_spread is None or spread >= least_spread:
            return bool(1 - nctdtr(n - 1, distance / error, enough) >= POWER)
        return distance - enough * least_spread / sqrt(n) >= lift

    def has_power(n: int) -> bool:
        if not each_test_has_power(n):  # then the whole test lacks it too
            return False
        return least_spread is None or n > SIMULATED or guarded_power(n, distance, spread, alpha, least_spread) >= POWER

    fewest = 2 if least_spread is None else LEAST_SEEDS
    enough = fewest  # doubled until sufficient: SciPy's series fails for a large noncentrality
    while enough < MOST_SEEDS and not has_power(enough):
        enough = min(2 * enough, MOST_SEEDS)
    found = bisect_left(range(enough), True, lo=fewest, key=has_power)
    return found if found < enough or has_power(enough) else None


def check_budgets(steps: Mapping[str, Sequence[int]]) -> None:
    """Raise `UsageError` unless, for every seed, all networks were trained for the same number of steps."""
    budgets = {name: sorted(set(counts)) for name, counts in steps.items()}
    if len({count for counts in budgets.values() for count in counts}) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, counts))} steps" for name, counts in budgets.items())
        raise UsageError(f"unequal budgets ({listed}): train all of them for the same number of steps, with every seed")


def _paired_differences(
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


def _choose_sd_for_tests(
    sd: float | None, scale: float, resolution: float | None, least_spread: float | None, name: str
) -> tuple[float | None, str]:
    """Return (SD to test with, note for the verdict if it is not the observed SD)."""
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
