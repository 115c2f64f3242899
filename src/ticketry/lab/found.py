"""What searches are asked for and hand on: ways of retraining, seeds, networks found. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.structuring import Structuring
from ticketry.errors import UsageError
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO

if TYPE_CHECKING:  # torch comes late: the command line's help needs no more than the settings
    from ticketry.lab.lab import Result


REWINDING = ("continue", "restart")
"""Ways of retraining that begin with the weights of the rewind step."""
RETRAINS = (*REWINDING, "rewind_lr", "finetune", "none")
GRADUAL = "gradual"
"""How networks of gradual pruning are trained, by whoever prunes: not again, but on, see `lab.retrain`."""
DYNAMIC = "dynamic"
"""How networks are trained whose masks move all the while: once, sparse from step 0 on, see `lab.retrain`."""
GROWTHS = ("gradient", "random")
"""What weights are grown by where masks move, see `lab.growth`."""


def check_retrain(retrain: str) -> str:
    """The word itself; `UsageError` if it is not known."""
    if retrain not in RETRAINS:
        raise UsageError(f"retrain {retrain!r} is not known: {', '.join(RETRAINS)}")
    return retrain


def retrain_after(rewind: str, retrain: str) -> str:
    """The word that holds for tickets of a rewind step; an empty `retrain` leaves it open.

    Raises:
        UsageError: if the word is not known, or nothing is left to train in its way.
    """
    at_end = Step.parse(rewind) == Step.parse("end")
    if at_end and retrain in ("continue", "rewind_lr"):
        raise UsageError(f"with rewind end nothing is left to {retrain}: use finetune, restart or none")
    return check_retrain(retrain or ("finetune" if at_end else "continue"))


def check_rates(retrain: str, schedule: str) -> None:
    """Raises `UsageError` for fine-tuning at the last learning rate of a schedule that ends at 0."""
    if retrain == "finetune" and schedule in TO_ZERO:
        raise UsageError(
            f"the schedule {schedule} ends at a learning rate of 0, at which fine-tuning changes nothing: use --retrain"
            " rewind_lr or restart, or --recipe.schedule multistep or constant"
        )


@dataclass(frozen=True)
class Seeds:
    """The three sources of chance in an experiment, kept apart."""

    initialisation: int = 0
    order: int = 0
    """Of the data, with augmentation and dropout."""
    mask: int = 0
    """Of whatever is random in a mask."""

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """All three from one number (their streams are independent all the same)."""
        return cls(seed, seed, seed)

    def replicate(self, number: int) -> Seeds:
        """The seeds of a further replicate."""
        return Seeds(self.initialisation + number, self.order + number, self.mask + number)


@dataclass(frozen=True)
class Moment:
    """When a detector let a network be pruned."""

    step: int
    detected: bool
    """False: nothing was detected up to the latest step allowed, which this is."""
    detector: str
    """distance or masks, see `core.detect`."""
    threshold: float
    """Of distance the share of the first change; of masks the share in which any two of the last may differ."""
    looks: tuple[tuple[int, float], ...]
    """(step, value) of every look: the relative distance from the initialisation, or the share in which the mask
    differs from that of the look before (from the second look on)."""
    seconds: float = 0.0
    """Of the looks, when they were taken; the training up to them is not in it."""


@dataclass(frozen=True)
class Structured:
    """How a ticket's mask was made of one without structure."""

    of: str
    """Digest of that mask."""
    weights: str
    """Digest of the weights that both were chosen by."""
    by: Structuring


@dataclass(frozen=True)
class Found:
    """A trained network on the way of a search: the dense one (level 0), or a ticket."""

    level: int
    mask: str | None
    """Digest of the stored mask; None for the dense network."""
    rewound: Result
    """The state at the rewind step: what a ticket's weights are taken from when they are rewound. Of the dense network,
    or of the training that the mask was found by, if that is another. Of gradual pruning, the dense network at the step
    of the last cut; where masks move, the initialisation: what controls begin with."""
    dense: Result
    """The trained dense network."""
    retrain: str
    """How it was trained, see `lab.retrain`."""
    result: Result
    """What it was trained to."""
    searched: tuple[Result, ...] = ()
    """Where the mask does not come from the networks found before it (but from gates, or from the dense network beside
    others): all trainings that were needed until it was known, in the order they were made; the last is the one that
    it is from."""
    behind: int | None = None
    """Training steps since initialisation that are in the weights that its training started from, where `level` and
    `retrain` do not tell, see `budget`."""
    gradients: int = 0
    """Batches whose gradient was needed for the mask and trained nothing; each costs as much as a step."""
    moment: Moment | None = None
    """Of a network that was pruned when a detector said so."""
    structured: Structured | None = None
    """Of a network whose mask was given a structure after it was found."""
    pattern: str = UNSTRUCTURED
    """That its mask was chosen in, see `core.pattern`."""

    @property
    def search_steps(self) -> int:
        """Training steps of `searched`, and `gradients`."""
        return sum(result.segment.steps for result in self.searched) + self.gradients


def spent(found: Found) -> int:
    """Training steps of the whole search that ends with this network, its own training included.

    Of a ticket without `searched`, the dense network's and those of as many tickets as its level tells.
    """
    own = found.result.segment.steps
    if found.mask is None:
        return own
    return found.search_steps + own if found.searched else found.dense.segment.steps + found.level * own


def budget(found: Found) -> int:
    """Training steps since initialisation that are in a found network's weights, shared dense steps included.

    A ticket that was rewound to step k has the k dense steps and its own. One that keeps final weights (rewind_lr,
    finetune, none) has those of the dense network and of every level before it; of a mask from gates, those of its
    rounds.
    """
    steps = found.result.segment.steps
    if found.mask is None:
        return steps
    if found.behind is not None:
        return found.behind + steps
    if found.retrain in REWINDING:
        return found.rewound.segment.last + steps
    if found.searched:
        last = found.searched[-1].segment
        if last.start.state == found.rewound.model:  # weights were rewound between rounds
            return found.rewound.segment.last + last.steps + steps
        return int(found.searched[-1].record["gating"]["round"]) * last.steps + steps
    return found.dense.segment.steps + found.level * steps
