"""Structure that masks have from the start: settings that several searches share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ticketry.core.pattern import UNSTRUCTURED, Pattern
from ticketry.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Patterned:
    """A pattern that masks are chosen in."""

    pattern: str = UNSTRUCTURED
    """What is kept or removed together, by the mean score of its weights: unstructured (single weights), 4x1, 16x1 (so
    many rows that are neighbours, at one column), channel (a whole row of one layer, not of all that are coupled), 2:4
    (at most 2 of every 4 inputs; the density is then 0.5 at most). A density is met as closely as whole blocks
    permit."""

    def check_pattern(
        self, *, structured: bool = False, structure: bool = False, half_rate: bool = False, densities: Iterable[float]
    ) -> None:
        """Raises `UsageError` for a pattern that is not known, or that does not go with the other settings.

        Args:
            structured, structure, half_rate: whether those settings are used.
            densities: of all masks on the way.
        """
        pattern = Pattern.parse(self.pattern)
        if pattern.unstructured:
            return
        if structured:
            raise UsageError(
                f"structured removes whole coupled channels, pattern {pattern} weights of one layer at a time: choose"
                " one of them"
            )
        if structure:
            raise UsageError(
                f"structure makes tickets of masks without structure, and those of pattern {pattern} have one: choose"
                " one of them"
            )
        if pattern.m and half_rate:
            raise UsageError(f"half_rate has no meaning with pattern {pattern}, by which all layers lose alike")
        for density in densities:
            pattern.check_density(density)


def pattern_in(settings: object) -> str:
    """What settings of any method ask for."""
    return settings.pattern if isinstance(settings, Patterned) else UNSTRUCTURED
