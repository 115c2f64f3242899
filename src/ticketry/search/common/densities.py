"""Several densities at once: what searches have in common whose networks do not come from one another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from typing_extensions import Self

from ticketry.core.structure.pattern import check_density
from ticketry.errors import UsageError
from ticketry.search.common.aims import Aimed, aim_of
from ticketry.search.common.budget import Budgeted
from ticketry.search.common.plan import Training
from ticketry.search.common.scope import Scored, ScoredParts, Sparing
from ticketry.step import Step

Shares = tuple[float, ...] | float | None
"""One share or several; one is stored as a number, so that records and names of runs stay as they were."""


def requested_densities(density: Shares, sparsity: Shares) -> tuple[float, ...]:
    """Return the densities that are requested by density or sparsity, the densest first; empty if none is.

    Raises:
        UsageError: for both, a density outside of (0, 1], or one that is named twice.
    """
    kept, removed = _each(density), _each(sparsity)
    if kept and removed:
        raise UsageError("give either density (fraction kept) or sparsity (fraction removed), and only one of them")
    found = [check_density(sparsity=share) for share in removed] or [check_density(share) for share in kept]
    if len(set(found)) < len(found):
        raise UsageError(f"density names each share once, not {', '.join(map(str, found))}")
    return tuple(sorted(found, reverse=True))


def _each(shares: Shares) -> tuple[float, ...]:
    return shares if isinstance(shares, tuple) else () if shares is None else (shares,)


@dataclass(frozen=True, kw_only=True)
class Targets(Sparing, Budgeted):
    """Densities to reach side by side, and layers that do not count."""

    density: tuple[float, ...] = ()
    """Fraction of weights kept at the end; of several (0.5,0.2,0.1) each is searched for on its own, from one dense
    training. 0.1 if neither density nor sparsity is given."""
    sparsity: tuple[float, ...] = ()
    """Fraction removed at the end, instead of density."""

    @property
    def targets(self) -> tuple[float, ...]:
        """The densities asked for, falling; or the shares of a budget, see `Aimed`."""
        if isinstance(self, Aimed) and self.aim:
            return self.shares
        return requested_densities(self.density, self.sparsity) or (0.1,)

    def plan_tickets(self, **how: Any) -> list[Training]:
        """Plan a ticket for each target, trained as `how` says; by keywords of `Training`."""
        known = not aim_of(self)
        return [
            Training(level=level, density=target if known else None, **how)
            for level, target in enumerate(self.targets, start=1)
        ]

    def only(self, level: int) -> tuple[Self, int]:
        """Return the settings that find the ticket of this level alone, and its level there."""
        own: Any = {aim_of(self) or "density": (self.targets[level - 1],)}
        return replace(self, **{"density": (), "sparsity": (), **own}), 1


@dataclass(frozen=True, kw_only=True)
class Densities(Targets):
    """The same in one training."""

    points: ClassVar[tuple[str, ...]] = ()
    """Settings that are steps of the schedule."""

    @property
    def one_training(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget()
        _ = self.targets
        for point in self.points:
            Step.parse(getattr(self, point))


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Aimed, Scored, Densities):
    """Densities to reach side by side, and how weights are chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_aim()
        self.check_score_settings()

    @property
    def sparsest(self) -> float:
        return self.targets[-1]


@dataclass(frozen=True, kw_only=True)
class DensitySettings(ScoredParts, WeightSettings):
    """The same where blocks of weights or whole channels can be chosen instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_masks(self.densities_on_the_way)

    @property
    def densities_on_the_way(self) -> tuple[float, ...]:
        """Those of all masks that lead to the targets."""
        return self.targets
