"""One verdict: the answers, what they rest on, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ticketry.evidence.judging.answers import Answer, Claim, Outcome, decided
from ticketry.evidence.paired_comparisons import Comparison
from ticketry.records.display import verdict_table


@dataclass(frozen=True)
class Verdict:
    """What was shown, and by what. p-values are corrected for interim analyses already: compare them with alpha."""

    outcome: Outcome
    """The strongest that is shown: see `answers.outcome`."""
    as_good_as_dense: Answer
    better_than_controls: Answer
    """Than every one of them; "undecided" where there are none."""
    not_beaten: tuple[str, ...]
    """Controls that the ticket is not shown to be better than."""
    claim: Claim
    margin: float
    confidence: float
    n: int
    """Seeds."""
    groups: int
    """Of seeds that share nothing: as many as seeds, or as parents."""
    dense: Comparison
    controls: Mapping[str, Comparison]
    p: float
    """Of the claim: small if it is shown."""
    p_as_good: float
    p_loses: float
    """Of "not as good as dense"."""
    p_better: float
    """Of "better than every control"."""
    p_not_better: float
    more_seeds: int | None
    """About how many more would decide with a probability of 80 %, if the means and spreads stay what they are; 0 if it
    is decided, None if more than `paired_comparisons.MOST_SEEDS` would be needed in all."""
    next_analysis: int | None
    """The number of seeds of the next interim analysis, where any are planned and needed."""
    reasons: tuple[str, ...]
    """Why, in words, with what the differences tell against the assumptions."""
    assumptions: tuple[str, ...]
    """What all of it rests on, in words."""

    @property
    def shown(self) -> bool:
        """Whether the claim is shown."""
        return self.outcome == self.claim

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed."""
        return decided(self.claim, self.as_good_as_dense, self.better_than_controls)

    def _repr_html_(self) -> str:
        compared = {"dense": self.dense, **self.controls}
        return verdict_table(
            self.outcome,
            claim=self.claim,
            margin=self.margin,
            confidence=self.confidence,
            n=self.n,
            rows=[
                (name, one.mean, one.low, one.high, one.p_noninferior if name == "dense" else one.p_superior)
                for name, one in compared.items()
            ],
            reasons=self.reasons,
        )
