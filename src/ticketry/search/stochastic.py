"""Iterative Stochastic Sparsification: masks drawn from trained probabilities.

Every weight is retained with probability sigmoid(s), drawn anew at each step; the gradient passes straight through the
draw. After a round the mask is s > 0, and the ticket has the weights of an early step of the first round. This is the
baseline "ISS" of Savarese, Silva & Maire, "Winning the Lottery with Continuous Sparsification" (NeurIPS 2020, arXiv
1912.04427), with the rounds of Continuous Sparsification and without a temperature. The dense network is trained only
for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ticketry.search.common.method import About
from ticketry.search.gating.search import GateSettings, plan_by_gates, search_by_gates

ABOUT = About(paper="Savarese et al. 2020, their baseline", prunes="by soft masks", costs="rounds + 1 a ticket")


@dataclass(frozen=True, kw_only=True)
class Settings(GateSettings):
    """Settings of Iterative Stochastic Sparsification.

    Examples:
        >>> once = {"rounds": 1, "rewind": "0", "recipe": {"length": "20it"}}
        >>> run = tk.run("stochastic", **once, replicates=1, controls=(), workers=0)
        >>> 0 < run.tickets[0].density <= 1
        True
    """

    def shared_gating_arguments(self) -> dict[str, Any]:
        return {**super().shared_gating_arguments(), "kind": "stochastic"}


plan, search = plan_by_gates, search_by_gates
