"""Densities and distributions as words and numbers. Needs no torch."""

from __future__ import annotations

from fractions import Fraction

from ticketry.errors import UsageError

DISTRIBUTIONS = ("global", "layerwise", "uniform", "erk")


def check_density(density: float | None = None, sparsity: float | None = None) -> float:
    """The density asked for by either word; exactly one must be given, with 0 < density <= 1.

    Raises:
        UsageError: otherwise.
    """
    if (density is None) == (sparsity is None):
        raise UsageError("give either density= (share kept) or sparsity= (share removed), and only one of them")
    if density is None:
        assert sparsity is not None
        if not 0 <= sparsity < 1:
            raise UsageError(f"a sparsity is a share removed, 0 <= sparsity < 1, not {sparsity}")
        return float(1 - Fraction(str(sparsity)))  # exact in decimal digits: 1 - 0.9 as floats is not 0.1
    if not 0 < density <= 1:
        raise UsageError(f"a density is a share kept, 0 < density <= 1, not {density}")
    return density


def kept_elements(density: float, total: int) -> int:
    """Elements that `density` keeps of `total`: rounded half up, exact in the density's decimal digits."""
    return int(Fraction(str(density)) * total + Fraction(1, 2))


def check_at_least(count: int) -> int:
    """The number of weights that every layer keeps; `UsageError` if it is below 0."""
    if count < 0:
        raise UsageError(f"keep_at_least is a number of weights, 0 or more, not {count}")
    return count


def check_distribution(distribution: str) -> str:
    """The word itself; `UsageError` if it is not known."""
    if distribution not in DISTRIBUTIONS:
        raise UsageError(f"distribution {distribution!r} is not known: {', '.join(DISTRIBUTIONS)}")
    return distribution
