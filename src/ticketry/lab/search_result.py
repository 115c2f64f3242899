"""What searches are asked for and hand on: ways of retraining, seeds, networks found. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ticketry.choices import LEAST, MOST, SEED, check_bounds, check_choice
from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.structuring import Structuring
from ticketry.errors import UsageError
from ticketry.records.network import Moment
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


REWINDING = ("continue", "restart")
"""Ways of retraining that begin with the weights of the rewind step."""
Retrain = Literal["", "continue", "restart", "rewind_lr", "finetune", "none"]
"""Ways of retraining; an empty word leaves it to the rewind step, see `retrain_after`."""
RETRAINS = tuple(word for word in get_args(Retrain) if word)
GRADUAL = "gradual"
"""How networks of gradual pruning are trained, by whoever prunes: not again, but on, see `lab.retrain`."""
DYNAMIC = "dynamic"
"""How networks are trained whose masks move all the while: once, sparse from step 0 on, see `lab.retrain`."""
FROM_REWOUND = (*REWINDING, GRADUAL, DYNAMIC)
"""Of these, those that begin with the weights of the rewind step, as their controls do; the others have final ones."""
HOW_TRAINED = (*RETRAINS, GRADUAL, DYNAMIC)
"""All that `Found.retrain` may be."""
Growth = Literal["gradient", "random"]
"""What weights are grown by where masks move, see `search.common.moved_mask`."""


def check_retrain(retrain: str) -> str:
    """The word itself; `UsageError` if it is not known."""
    check_choice("retrain", retrain, RETRAINS)
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
    """The three sources of chance in an experiment, kept apart.

    Examples:
        >>> tk.search.Seeds.of(3)
        Seeds(initialisation=3, order=3, mask=3)
        >>> tk.search.Seeds(initialisation=1).replicate(2)
        Seeds(initialisation=3, order=2, mask=2)
    """

    initialisation: int = 0
    """Of the weights."""
    order: int = 0
    """Of the data, with augmentation and dropout."""
    mask: int = 0
    """Of whatever is random in a mask."""

    def __post_init__(self) -> None:
        for name in ("initialisation", "order", "mask"):
            check_bounds(f"seed of {name}", getattr(self, name), SEED)

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """All three from one number (their streams are independent all the same).

        Args:
            seed: for all three.
        """
        return cls(seed, seed, seed)

    def replicate(self, number: int) -> Seeds:
        """Return the seeds of a further replicate; after the largest seed comes the smallest.

        Args:
            number: of the replicate: the first is 0.
        """
        seeds = (self.initialisation, self.order, self.mask)
        return Seeds(*((seed + number - LEAST) % (MOST - LEAST + 1) + LEAST for seed in seeds))


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
    """A trained network on the way of a search: the dense one (level 0), or a ticket.

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> settings = tk.search.oneshot.Settings(density=(0.2,))
        >>> with tk.Lab() as lab:
        ...     dense, ticket = tk.search.oneshot(lab, task, settings, recipe=recipe)[0]
        >>> dense.level, ticket.level, ticket.retrain, ticket.search_steps
        (0, 1, 'finetune', 20)
    """

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
    """Where the mask does not come from the networks found before it (but from trainings of its own, or from the dense
    network beside others): all trainings that were needed until it was known, in the order they were made; the last is
    the one that it is from."""
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
    aim: str = ""
    """What its mask has a budget of, and by which costs, see `Aimed.terms`; empty where it was pruned to a density."""
    cut_to: float | None = None
    """Density that a mask of gates was cut to by their values, where no setting of the gates led to it; else None."""

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
    finetune, none) has those of the dense network and of every level before it.
    """
    steps = found.result.segment.steps
    if found.mask is None:
        return steps
    if found.behind is not None:
        return found.behind + steps
    if found.retrain in REWINDING:
        return found.rewound.segment.last + steps
    return found.dense.segment.steps + found.level * steps
