"""How many more seeds an undecided verdict is likely to need."""

from __future__ import annotations

from math import inf

from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.evidence.judging.one_verdict import Verdict
from ticketry.evidence.judging.paired_comparisons import Comparison, seeds_needed
from ticketry.evidence.judging.pooled_tests import replicates_needed

ASSUMED_SPREAD = 0.8
"""Standard deviation of paired differences, in margins, where no spread is known: 0.4 points at a margin of 0.5, as
seen with LeNet-300-100 on Fashion-MNIST (research)."""


def more_seeds(made: Verdict, alpha: float, interim: InterimAnalyses | None) -> int | None:
    """Seeds that are likely to be still missing for what is not answered.

    Args:
        alpha: of all analyses together.
        interim: those that are planned, each with its share of alpha. Up to the plan's end seeds are counted to an
            analysis, for between two of them nothing is decided; beyond it to one test with the last one's share.
    """
    dense, rivals = made.dense, list(made.controls.values()) if made.claim == "wins" else []
    each, ahead = made.n / made.groups, _ahead(made.n, interim)

    def needed(one: Comparison, distance: float, spread: float | None = None, part: float = 1.0) -> float:
        spread = (one.spread or 0.0) if spread is None else spread
        seeds = inf
        for at, share in ahead.items():
            found = _needed(one, distance, spread, alpha * part * share)
            seeds = inf if found is None else round(found * each)
            if seeds <= at:
                return at
        return seeds

    if dense.spread is None or any(one.spread is None for one in rivals):
        enough = needed(dense, dense.margin, ASSUMED_SPREAD * dense.margin)
    else:
        open_still, worse = made.as_good_as_dense == "undecided", needed(dense, -dense.mean - dense.margin)
        parts = [min(needed(dense, dense.mean + dense.margin), worse)] if open_still else []
        if rivals and made.better_than_controls == "undecided":
            refuted = min(needed(one, -one.mean, part=1 / len(rivals)) for one in rivals)
            parts.append(min(max(needed(one, one.mean) for one in rivals), refuted))
        enough = min(max(parts), worse if open_still else inf)
    return None if enough == inf else max(1, int(enough) - made.n)


def _needed(one: Comparison, distance: float, spread: float, alpha: float) -> int | None:
    """Seeds that a test at `alpha` needs; None if more than `MOST_SEEDS`."""
    if one.pooled is None:
        return seeds_needed(distance, spread, alpha, least_spread=one.least_spread)
    return replicates_needed(distance, max(spread, one.pooled.floor), alpha, one.pooled)


def _ahead(n: int, interim: InterimAnalyses | None) -> dict[int, float]:
    """The analyses after n seeds with their shares of alpha; the last one's where there is none, all without a plan."""
    shares = {0: 1.0} if interim is None else interim.alphas(1.0)
    last = max(shares)
    return {at: share for at, share in shares.items() if at > n or at == last}
