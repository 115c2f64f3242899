"""How many fresh seeds a verification needs for what the replicates of a search have left undecided."""

from __future__ import annotations

from ticketry.evidence.judging.guarded_tests import LEAST_SPREAD
from ticketry.evidence.judging.interim_analyses import INTERIM, InterimAnalyses
from ticketry.evidence.judging.more_seeds import ASSUMED_SPREAD
from ticketry.evidence.judging.paired_comparisons import seeds_needed
from ticketry.records.network import DENSE
from ticketry.records.verdict import Difference, LevelVerdict


def seeds_of_verification(level: LevelVerdict) -> int | None:
    """Return the seeds with which a verification is likely (80 %) to decide; None if more than 1,000 would be needed.

    The true differences and standard deviations are taken to be those observed. A verification judges one level alone,
    with the tests of `guarded_tests` and a share of alpha for its last analysis.
    """
    last = InterimAnalyses(INTERIM).alphas(1.0)[INTERIM[-1]]
    alpha, margin = (1 - level.confidence) * last, level.margin

    def needed(one: Difference, *distances: float) -> int | None:
        spread = ASSUMED_SPREAD * margin if one.sd is None else one.sd
        found = [seeds_needed(distance, spread, alpha, least_spread=LEAST_SPREAD * margin) for distance in distances]
        return min((count for count in found if count is not None), default=None)

    to_dense = next(one for one in level.comparisons if one.role == DENSE)
    open_questions = []
    if level.as_good_as_dense == "undecided":
        mean = 0.0 if to_dense.sd is None else to_dense.mean
        open_questions.append(needed(to_dense, mean + margin, -mean - margin))
    if level.claim == "wins" and level.better_than_controls == "undecided":
        rivals = [one for one in level.comparisons if one.role in level.not_beaten]
        open_questions += [needed(one, one.mean, -one.mean) for one in rivals]
    counts = [count for count in open_questions if count is not None]
    if not counts or len(counts) < len(open_questions):
        return None
    enough = max(counts)
    return next((planned for planned in INTERIM if planned >= enough), enough)  # nothing is decided in between
