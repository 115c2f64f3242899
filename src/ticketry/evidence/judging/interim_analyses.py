"""Interim analyses: at how many seeds a decision may be taken, and what each may cost of alpha."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.errors import UsageError

INTERIM = (3, 5, 7, 10)
"""Numbers of seeds at which an interim analysis is made, unless others are planned."""


@dataclass(frozen=True)
class InterimAnalyses:
    """At how many seeds a decision may be taken. Judging often without a plan finds wins that are not there.

    Analysis k may err with probability alpha_k, and the alpha_k add up to alpha: the errors of all together stay below
    it, however they depend on each other (union bound; conservative). They follow the spending function
    alpha * (n / last)^3 of Kim & DeMets (Biometrika 74, 1987), which keeps two thirds of alpha for the last of the
    default analyses and still lets three seeds decide what is blatant. The closer they are, the more the bound costs.
    """

    at: tuple[int, ...] = INTERIM
    """Numbers of seeds, rising; the last is the limit."""

    def __post_init__(self) -> None:
        rising = all(one < two for one, two in zip(self.at, self.at[1:], strict=False))
        if not self.at or self.at[0] < 2 or not rising:
            raise UsageError(
                f"interim analyses at {self.at} seeds: give rising numbers from 2 on, such as (3, 5, 7, 10)"
            )

    @property
    def last(self) -> int:
        return self.at[-1]

    def alphas(self, alpha: float) -> dict[int, float]:
        """The level of each analysis, by its number of seeds; together alpha."""
        spent = [0.0, *(alpha * (n / self.last) ** 3 for n in self.at)]
        return {n: spent[k + 1] - spent[k] for k, n in enumerate(self.at)}

    def after(self, n: int) -> int | None:
        """The next analysis after n seeds; None if there is none."""
        return next((at for at in self.at if at > n), None)
