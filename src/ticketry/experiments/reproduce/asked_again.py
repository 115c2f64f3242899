"""Claims that ask others again: on fresh replicates, which no claim before them was judged by.

To go on where a limit ended would move that limit once its replicates have been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.errors import UsageError
from ticketry.experiments.reproduce.hypothesis import Hypothesis


def check_fresh(claim: Hypothesis, claims: Sequence[Hypothesis], replicates: Mapping[str, range]) -> None:
    """Raise `UsageError` if a claim is judged by replicates of one that it leads back to, or leads back to itself.

    Args:
        claims: all of the file.
        replicates: of each run, those it may train.
    """
    named = {one.name: one for one in claims}
    own, earlier, seen = _of(claim, replicates), claim, {claim.name}
    while earlier.again:
        earlier = named[earlier.again]
        if earlier.name in seen:
            raise UsageError(f"it leads back to itself, by {earlier.name!r}")
        seen.add(earlier.name)
        judged = _of(earlier, replicates)
        if max(own.start, judged.start) < min(own.stop, judged.stop):
            raise UsageError(
                f"it asks {earlier.name!r} again, and is judged by replicates {_told(own)} as that is by"
                f" {_told(judged)}: give the base of its runs after = {judged.stop} or more"
            )


def _of(claim: Hypothesis, replicates: Mapping[str, range]) -> range:
    return replicates[claim.runs[0]]  # those of a claim's two runs are the same


def _told(replicates: range) -> str:
    return f"{replicates.start + 1} to {replicates.stop}"
