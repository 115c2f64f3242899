"""How many more seeds an undecided verdict is likely to need."""

from __future__ import annotations

from math import inf

from ticketry.evidence.judging.one_verdict import Verdict
from ticketry.evidence.paired_comparisons import Comparison, seeds_needed

ASSUMED_SPREAD = 0.8
"""Standard deviation of paired differences, in margins, where no spread is known: 0.4 points at a margin of 0.5, as
seen with LeNet-300-100 on Fashion-MNIST (docs/results)."""


def more_seeds(made: Verdict, alpha: float) -> int | None:
    """Seeds that are likely to be still missing for what is not answered, by a test at `alpha` at the end."""
    dense, rivals = made.dense, list(made.controls.values()) if made.claim == "wins" else []
    if dense.spread is None or any(one.spread is None for one in rivals):
        planned = seeds_needed(dense.margin, ASSUMED_SPREAD * dense.margin, alpha, least_spread=dense.least_spread)
        return None if planned is None else max(1, planned - made.n)

    def needed(one: Comparison, distance: float, share: float = 1.0) -> float:
        found = seeds_needed(distance, one.spread or 0.0, alpha * share, least_spread=one.least_spread)
        return inf if found is None else found

    open_still, worse = made.as_good_as_dense == "undecided", needed(dense, -dense.mean - dense.margin)
    parts = [min(needed(dense, dense.mean + dense.margin), worse)] if open_still else []
    if rivals and made.better_than_controls == "undecided":
        refuted = min(needed(one, -one.mean, 1 / len(rivals)) for one in rivals)
        parts.append(min(max(needed(one, one.mean) for one in rivals), refuted))
    enough = min(max(parts), worse if open_still else inf)
    return None if enough == inf else max(1, round(enough * made.n / made.groups) - made.n)
