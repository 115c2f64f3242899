"""Continuous Sparsification: soft masks that harden while the network trains.

Every weight is multiplied by a gate sigmoid(beta s), trained together with the weights under a penalty on the sum of
all gates while beta grows, so that gates end at 0 or 1; what is above is the mask. The ticket has the mask and the
weights of an early step of the first round. Savarese, Silva & Maire, "Winning the Lottery with Continuous
Sparsification" (NeurIPS 2020, arXiv 1912.04427), sections 4 and 5: rounds with one s0 (sequential), or several s0 side
by side (parallel), each a ticket of another density. Gates are divided by sigmoid(s0), as in the official code; the
ticket has the bare mask. The dense network is trained to compare with, and is no part of the search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.lab.found import Found, Seeds
from ticketry.search import _gates
from ticketry.search._about import About

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="Savarese et al. 2020",
    prunes="by soft masks",
    costs="rounds + 1 a ticket",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_gates.GateSettings):
    """Settings of Continuous Sparsification."""

    final_temperature: float = 200.0
    """beta_T, the inverse temperature at the end of each round; it is 1 at the start."""
    temperature: str = "step"
    """beta grows with every step (the paper) or with every epoch (the official code)."""

    def gating(self) -> dict[str, Any]:
        return {**super().gating(), "final": self.final_temperature, "anneal": self.temperature}


levels = _gates.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then for each s0, the densest first, a ticket a round."""
    return _gates.search(lab, task, recipe, settings, seeds)
