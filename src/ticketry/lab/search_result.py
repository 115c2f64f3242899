"""Inputs and results of searches: ways of retraining, seeds, networks found. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ticketry.choices import MAX_INTEGER, MIN_INTEGER, SEED, check_bounds, check_choice
from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.core.structure.structuring import Structuring
from ticketry.errors import UsageError
from ticketry.records.network import Moment
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


REWINDING = ("continue", "restart")
"""Ways of retraining that start from the weights of the rewind step."""
Retrain = Literal["", "continue", "restart", "rewind_lr", "finetune", "none"]
"""Ways of retraining; an empty text leaves it to the rewind step, see `retrain_after`."""
RETRAINS = tuple(word for word in get_args(Retrain) if word)
GRADUAL = "gradual"
"""How networks of gradual pruning are trained: their training continues, see `lab.retrain`."""
DYNAMIC = "dynamic"
"""How networks with changing masks are trained: once, sparse from step 0 on, see `lab.retrain`."""
FROM_REWOUND = (*REWINDING, GRADUAL, DYNAMIC)
"""Ways that start from the weights of the rewind step, as do their controls; the others start from final weights."""
HOW_TRAINED = (*RETRAINS, GRADUAL, DYNAMIC)
"""All values of `Found.retrain`."""
Growth = Literal["gradient", "random"]
"""Criterion for growing weights if the mask changes, see `search.dynamic`."""


def check_retrain(retrain: str) -> str:
    """Return `retrain`; `UsageError` if it is unknown."""
    check_choice("retrain", retrain, RETRAINS)
    return retrain


def retrain_after(rewind: str, retrain: str) -> str:
    """Return how tickets of a rewind step are trained; by default finetune after the end, and otherwise continue.

    Raises:
        UsageError: if `retrain` is unknown, or leaves nothing to train.
    """
    at_end = Step.parse(rewind) == Step.parse("end")
    if at_end and retrain in ("continue", "rewind_lr"):
        raise UsageError(f"with rewind end nothing is left to {retrain}: use finetune, restart or none")
    return check_retrain(retrain or ("finetune" if at_end else "continue"))


def check_rates(retrain: str, schedule: str) -> None:
    """Raise `UsageError` for fine-tuning at the last learning rate of a schedule that ends at 0."""
    if retrain == "finetune" and schedule in TO_ZERO:
        raise UsageError(
            f"the schedule {schedule} ends at a learning rate of 0, at which fine-tuning changes nothing: use --retrain"
            " rewind_lr or restart, or --recipe.schedule multistep or constant"
        )


@dataclass(frozen=True)
class Seeds:
    """The three sources of randomness in an experiment.

    Examples:
        >>> tk.search.Seeds.of(3)
        Seeds(initialisation=3, order=3, mask=3)
        >>> tk.search.Seeds(initialisation=1).replicate(2)
        Seeds(initialisation=3, order=2, mask=2)
    """

    initialisation: int = 0
    """Seed of the initial weights."""
    order: int = 0
    """Seed of the order of the data, of augmentation and of dropout."""
    mask: int = 0
    """Seed of random choices in a mask."""

    def __post_init__(self) -> None:
        for name in ("initialisation", "order", "mask"):
            check_bounds(f"seed of {name}", getattr(self, name), SEED)

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """Return all three seeds from one number; their random streams are independent.

        Args:
            seed: used for all three.
        """
        return cls(seed, seed, seed)

    def replicate(self, number: int) -> Seeds:
        """Return the seeds of a further replicate; after the largest seed comes the smallest.

        Args:
            number: number of the replicate: the first is 0.
        """
        seeds = (self.initialisation, self.order, self.mask)
        return Seeds(*((seed + number - MIN_INTEGER) % (MAX_INTEGER - MIN_INTEGER + 1) + MIN_INTEGER for seed in seeds))


@dataclass(frozen=True)
class Structured:
    """How a structured mask was derived from an unstructured one."""

    of: str
    """Digest of the mask without structure."""
    weights: str
    """Digest of the weights that chose both masks."""
    by: Structuring


@dataclass(frozen=True)
class Found:
    """A network that a search trained: the dense one (level 0), or a ticket.

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
    """The state at the rewind step, from which rewound weights are taken: of the dense network, or of the training that
    found the mask. For gradual pruning, the dense network at the last pruning step; for changing masks, the
    initialisation. Controls start from it."""
    dense: Result
    """The trained dense network."""
    retrain: str
    """How it was trained, see `lab.retrain`."""
    result: Result
    """The result of its training."""
    searched: tuple[Result, ...] = ()
    """All trainings that were needed to find the mask, in order; the last one gave the mask. Empty if the mask comes
    from the networks found before it."""
    behind: int | None = None
    """Number of training steps, since initialisation, of the weights from which its training started; None if `level`
    and `retrain` determine it, see `budget`."""
    gradients: int = 0
    """Batches whose gradient was computed for the mask without training; each costs as much as a step."""
    moment: Moment | None = None
    """When a detector decided to prune; None without a detector."""
    structured: Structured | None = None
    """How the mask was given a structure after it was found; None if it was not."""
    pattern: str = UNSTRUCTURED
    """The pattern of its mask, see `core.structure.pattern`."""
    aim: str = ""
    """The quantity and costs of its budget, see `Budget.terms`; empty if it was pruned to a density."""
    cut_to: float | None = None
    """Density to which a mask of gates was pruned by the gates' values, if the gates' settings could not reach it; else
    None.
    """

    @property
    def search_steps(self) -> int:
        """Training steps of `searched`, plus `gradients`."""
        return sum(result.segment.steps for result in self.searched) + self.gradients


def search_cost(found: Found) -> int:
    """Return the training steps of the whole search that ends with this network, including its own training.

    A ticket without `searched` costs the dense network's steps, and one ticket's steps for each level.
    """
    own = found.result.segment.steps
    if found.mask is None:
        return own
    return found.search_steps + own if found.searched else found.dense.segment.steps + found.level * own


def budget(found: Found) -> int:
    """Return the training steps since initialisation of a network's weights, including shared dense steps.

    The weights of a ticket that was rewound to step k had the k dense steps and the ticket's own. A ticket with final
    weights (rewind_lr, finetune, none) had the steps of the dense network and of every level before it.
    """
    steps = found.result.segment.steps
    if found.mask is None:
        return steps
    if found.behind is not None:
        return found.behind + steps
    if found.retrain in REWINDING:
        return found.rewound.segment.last + steps
    return found.dense.segment.steps + found.level * steps
