"""Settings of searches that train gates. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, Literal

from typing_extensions import Self

from ticketry.choices import format_value
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import UsageError
from ticketry.lab.search_result import Retrain, retrain_after
from ticketry.search.common.aims import Aimed
from ticketry.search.common.budget import Budgeted
from ticketry.search.common.densities import Shares, requested_densities
from ticketry.search.common.scope import Patterned, Sparing
from ticketry.tasks.recipe import Optimizer

Anneal = Literal["step", "epoch"]
LearningRates = Literal["recipe", "constant"]
Objective = Literal["loss", "reverse_kl", "forward_kl"]
Reset = Literal["paper", "code"]
_MOST_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class CutGates:
    """Gates of which the best are kept, down to a density."""

    collapse: Literal["raise", "keep"] = "raise"
    """What to do where no gate of a layer is among the best: raise (an error), or keep its best weight in place of the
    worst one kept of the largest layer."""


@dataclass(frozen=True, kw_only=True)
class GateSettings(Aimed, Patterned, Sparing, Budgeted):
    """What searches by gates have in common."""

    rewind: str = "2ep"
    """Where tickets start: a step of the first round's training such as 2ep, 500it, 3%; 0 is the initialisation."""
    rounds: int = 5
    """How many times the whole recipe is trained with gates; a ticket is taken after each."""
    init: tuple[float, ...] = (0.0,)
    """s0, what gates begin with: the larger, the denser the tickets. Several are searched side by side, each with its
    own rounds and tickets (-0.2 -0.1 0 0.1)."""
    density: Shares = None
    """Fraction of weights kept by the last ticket, to within 10 %: s0 is then found round by round, beginning with
    init. Of several (0.2,0.1) each is searched for on its own."""
    sparsity: Shares = None
    """Fraction removed by the last ticket, instead of density."""
    penalty: tuple[float, ...] = (1e-8,)
    """lambda, times the sum of all gates in the loss. Several are searched side by side, each with every init."""
    reset: Reset = "paper"
    """Of gates between rounds: paper (s = min(beta_T s, s0)) or code (s = min(s, s0), as the official code does)."""
    weights_between: Literal["continue", "rewind"] = "continue"
    """Of weights between rounds: continue (as the round before left them) or rewind (those of the rewind step)."""
    gate_lr: float = 0.1
    """Learning rate of the gates."""
    gate_lr_schedule: LearningRates = "recipe"
    """Of the gates' learning rate: recipe (rises and falls with that of the weights) or constant."""
    gate_optimizer: Optimizer = "sgd"
    """Of the gates: sgd, adam or adamw."""
    gate_momentum: float = 0.9
    """Of the gates' SGD; for Adam and AdamW it is beta1."""
    gate_nesterov: bool = False
    """Nesterov's form of the gates' momentum."""
    gate_weight_decay: float = 0.0
    """Of the gates; the papers have none."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again, as the official code does); or, to prune while training, weights of the round with hard gates:
    rewind_lr, finetune (the default with rewind end) or none (as they are)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget()
        self.check_aim()
        if len(self.shares) > 1:
            raise UsageError(f"gates find their s0 for one budget: give one {self.aim}, and search for each by itself")
        Pattern.parse(self.pattern).check_blocks("gates")
        if self.budget and self.requested:
            raise UsageError(
                f"with {self.aim or 'density'} the number of rounds is not known beforehand: give init for a budget of"
                " steps"
            )
        retrain_after(self.rewind, self.retrain)
        if not 0 < self.rounds <= _MOST_ROUNDS:
            raise UsageError(f"rounds must lie in 1 … {_MOST_ROUNDS}, not {format_value(self.rounds)}")
        if not self.init or len(set(self.init)) < len(self.init):
            raise UsageError("init names the values of s0 to search with: at least one, and each once")
        if not self.penalty or len(set(self.penalty)) < len(self.penalty):
            raise UsageError("penalty names the values of lambda to search with: at least one, and each once")
        if self.requested and len(self.members) > 1:
            what = self.aim or "density"
            raise UsageError(f"{what} finds s0 itself: give one init at most, where it begins, and one penalty")

    @property
    def members(self) -> tuple[tuple[float, float], ...]:
        """(s0, penalty) of each search that runs side by side: the densest first."""
        return tuple(product(sorted(self.init, reverse=True), sorted(self.penalty)))

    @property
    def target(self) -> float | None:
        """The one density, or share of a budget of tickets, that is requested; None of several."""
        return self.requested[0] if len(self.requested) == 1 else None

    @property
    def requested(self) -> tuple[float, ...]:
        """The densities, or the share of a budget of tickets, that are requested, the densest first."""
        return self.shares[:1] if self.aim else requested_densities(self.density, self.sparsity)

    def each_alone(self) -> tuple[Self, ...]:
        """The settings that search for each of several densities; these settings if there is one, or none."""
        if len(self.requested) < 2:
            return (self,)
        return tuple(replace(self, density=density, sparsity=None) for density in self.requested)

    def only(self, level: int) -> tuple[Self, int | None]:
        """Return the settings that find the ticket of this level, and its level there (None for the last)."""
        return (self.each_alone()[(level - 1) // self.rounds], None) if self.requested else (self, level)

    def gating(self) -> dict[str, Any]:
        """Of `search.gating.gating.Gating`, what does not change from round to round."""
        of_gates = [each.name for each in fields(self) if each.name.startswith("gate_")]
        return {name.removeprefix("gate_"): getattr(self, name) for name in of_gates} | {"pattern": self.pattern}
