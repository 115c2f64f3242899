"""Iterative Stochastic Sparsification: masks drawn from trained probabilities.

Every weight is kept or not by a draw with probability sigmoid(s), anew at each step; the gradient goes straight through
the draw. After a round the mask is s > 0, and the ticket has the weights of an early step of the first round. The
baseline "ISS" of Savarese, Silva & Maire, "Winning the Lottery with Continuous Sparsification" (NeurIPS 2020, arXiv
1912.04427), with the rounds of Continuous Sparsification and no temperature. The dense network is trained to compare
with, and is no part of the search.
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
    paper="Savarese et al. 2020, their baseline",
    prunes="by soft masks",
    costs="rounds + 1 a ticket",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_gates.GateSettings):
    """Settings of Iterative Stochastic Sparsification."""

    def gating(self) -> dict[str, Any]:
        return {**super().gating(), "kind": "stochastic"}


levels = _gates.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then for each s0, the densest first, a ticket a round."""
    return _gates.search(lab, task, recipe, settings, seeds)
