"""One verdict: the answers, what they rest on, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from ticketry.evidence.judging.paired_comparisons import Comparison
from ticketry.records.network import DENSE
from ticketry.records.verdict import Outcome, VerdictAnswers


class Verdict(VerdictAnswers[NoReturn], frozen=True, kw_only=True):
    """What was shown, and by what. p-values are corrected for interim analyses already: compare them with alpha."""

    outcome: Outcome
    """The strongest that is shown: see `answers.outcome`."""
    dense: Comparison
    controls: Mapping[str, Comparison]
    next_analysis: int | None
    """The number of seeds of the next interim analysis, where any are planned and needed."""

    @property
    def shown(self) -> bool:
        """Whether the claim is shown."""
        return self.outcome == self.claim

    def _repr_html_(self) -> str:
        compared = {DENSE: self.dense, **self.controls}
        return self.to_html(
            self.outcome, [(name, one.mean, one.low, one.high, one.p_of(name)) for name, one in compared.items()]
        )
