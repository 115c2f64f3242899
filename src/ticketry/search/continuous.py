"""Continuous Sparsification: soft masks that harden while the network trains.

Every weight is multiplied by a gate sigmoid(beta s), trained together with the weights under a penalty on the sum of
all gates while beta grows, so that gates end at 0 or 1; those above 0 are the mask. The ticket has the mask and the
weights of an early step of the first round. Savarese, Silva & Maire, "Winning the Lottery with Continuous
Sparsification" (NeurIPS 2020, arXiv 1912.04427), sections 4 and 5: rounds with one s0 (sequential), or independent
searches with several s0 (parallel), which give tickets of different densities. Gates are divided by sigmoid(s0), as in
the official code; the ticket has the bare mask. The dense network is trained only for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ticketry.search.common.method import About
from ticketry.search.gating import Anneal
from ticketry.search.gating.search import GateSettings, plan_by_gates, search_by_gates

ABOUT = About(paper="Savarese et al. 2020", prunes="by soft masks", costs="rounds + 1 a ticket")


@dataclass(frozen=True, kw_only=True)
class Settings(GateSettings):
    """Settings of Continuous Sparsification.

    Examples:
        >>> once = {"rounds": 1, "rewind": "0", "recipe": {"length": "20it"}}
        >>> run = tk.run("continuous", **once, replicates=1, controls=(), workers=0)
        >>> run.tickets[0].load().mask.density == run.tickets[0].density
        True
    """

    final_temperature: float = 200.0
    """beta_T: the inverse temperature at the end of each round; every round starts at 1."""
    temperature: Anneal = "step"
    """When beta grows: step (with every step, the paper) or epoch (with every epoch, the official code)."""
    kind: str = "continuous"
    """Kind of gate, see `ticketry list gates`, or your own as package.module:Kind. With several rounds, the kind must
    define how gates continue in the next round."""

    def shared_gating_arguments(self) -> dict[str, Any]:
        own = {"final": self.final_temperature, "anneal": self.temperature, "kind": self.kind}
        return {**super().shared_gating_arguments(), **own}


plan, search = plan_by_gates, search_by_gates
