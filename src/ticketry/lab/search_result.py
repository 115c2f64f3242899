"""Define inputs and results of searches: ways of retraining, seeds, and the networks found; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ticketry.choices import MAX_INTEGER, MIN_INTEGER, SEED, check_bounds, check_choice
from ticketry.core.structure.pattern import UNSTRUCTURED, Structuring
from ticketry.errors import UsageError
from ticketry.records.network import Moment
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


REWINDING = ("continue", "restart")
"""Ways of retraining that start from the weights of the rewind step."""
Retrain = Literal["", "continue", "restart", "rewind_lr", "finetune", "none"]
"""Ways of retraining a ticket; with an empty text, the rewind step decides, see `choose_retrain`."""
RETRAINS = tuple(word for word in get_args(Retrain) if word)
GRADUAL = "gradual"
"""How networks of gradual pruning are trained: their training continues, see `lab.retrain`."""
DYNAMIC = "dynamic"
"""How networks with changing masks are trained: once, sparse from step 0 on, see `lab.retrain`."""
FROM_REWOUND = (*REWINDING, GRADUAL, DYNAMIC)
"""Ways of retraining that start from the weights of the rewind step; all other ways start from the final weights."""
HOW_TRAINED = (*RETRAINS, GRADUAL, DYNAMIC)
"""All values of `Found.retrain`."""
Growth = Literal["gradient", "random"]
"""Criterion by which a changing mask chooses the weights that become active again, see `search.dynamic`."""


def choose_retrain(rewind: str, retrain: str) -> str:
    """Return `retrain`; if it is empty, return the default: finetune for ``rewind="end"``, otherwise continue."""
    at_end = Step.parse(rewind) == Step.parse("end")
    if at_end and retrain in ("continue", "rewind_lr"):
        raise UsageError(f"with rewind end nothing is left to {retrain}: use finetune, restart or none")
    chosen = retrain or ("finetune" if at_end else "continue")
    check_choice("retrain", chosen, RETRAINS)
    return chosen


def check_schedule_suits_retrain(retrain: str, schedule: str) -> None:
    """Raise `UsageError` if `retrain` is finetune and `schedule` ends with a learning rate of 0."""
    if retrain == "finetune" and schedule in TO_ZERO:
        raise UsageError(
            f"the schedule {schedule} ends at a learning rate of 0, at which fine-tuning changes nothing: use --retrain"
            " rewind_lr or restart, or --recipe.schedule multistep or constant"
        )


@dataclass(frozen=True)
class Seeds:
    """Holds the seeds of the three sources of randomness in an experiment.

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
        """Return seeds that are all equal to `seed`; the three random streams are still independent.

        Args:
            seed: value of all three seeds.
        """
        return cls(seed, seed, seed)

    def replicate(self, number: int) -> Seeds:
        """Return the seeds for repetition `number` of an experiment: each seed plus `number`.

        Args:
            number: number of the repetition, from 0. Beyond the largest valid seed, seeds continue from the smallest.
        """
        seeds = (self.initialisation, self.order, self.mask)
        return Seeds(*((seed + number - MIN_INTEGER) % (MAX_INTEGER - MIN_INTEGER + 1) + MIN_INTEGER for seed in seeds))


@dataclass(frozen=True)
class Structured:
    """Records how a structured mask was derived: from which unstructured mask and weights, and with which settings."""

    of: str
    """Digest of the unstructured mask."""
    weights: str
    """Digest of the weights from which both masks were computed."""
    by: Structuring
    """Settings that turned the unstructured mask into the structured one."""


@dataclass(frozen=True)
class Found:
    """Describes a network that a search trained: the dense network (level 0), or a ticket (level 1 and above).

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
    """The state at the rewind step of the dense training, or of the training that found the mask. For gradual pruning
    this is the dense network at the last pruning step, and for changing masks the initialisation. Controls with rewound
    weights start from this state."""
    dense: Result
    """The trained dense network."""
    retrain: str
    """How the network was trained after its mask was found, see `lab.retrain`."""
    result: Result
    """The result of training the network."""
    searched: tuple[Result, ...] = ()
    """All trainings that were needed to find the mask, in order; the last one gave the mask. Empty if the mask comes
    from the network of the level before."""
    behind: int | None = None
    """Number of steps, since initialisation, that the network's initial weights had been trained; None if `level` and
    `retrain` determine this number, see `trained_steps`."""
    gradients: int = 0
    """Number of batches whose gradient was computed for the mask without a training step; each counts as a step."""
    moment: Moment | None = None
    """When a detector decided to prune; None without a detector."""
    structured: Structured | None = None
    """How the mask was derived from an unstructured mask; None if the mask was not derived."""
    pattern: str = UNSTRUCTURED
    """The pattern of the mask, see `core.structure.pattern`."""
    aim: str = ""
    """The quantity that the search's budget limits, see `Budget.cache_key`; empty if the search had a density."""
    cut_to: float | None = None
    """Density to which a mask was pruned by the values of trained gates, because the gates alone did not reach this
    density; None if that was not needed."""

    @property
    def search_steps(self) -> int:
        """Number of training steps of the search: the steps of all trainings in `searched`, plus `gradients`."""
        return sum(result.segment.steps for result in self.searched) + self.gradients


def search_cost(found: Found) -> int:
    """Return the number of training steps of the whole search for `found`, including the training of `found` itself."""
    own = found.result.segment.steps
    if found.mask is None:
        return own
    return found.search_steps + own if found.searched else found.dense.segment.steps + found.level * own


def trained_steps(found: Found) -> int:
    """Return the number of steps for which the weights of `found` were trained since their initialisation.

    For a ticket rewound to step k, these are k dense steps and the ticket's own steps. For a ticket that starts from
    final weights (rewind_lr, finetune, none), these are the steps of the dense network and of the tickets of all levels
    up to its own.
    """
    steps = found.result.segment.steps
    if found.mask is None:
        return steps
    if found.behind is not None:
        return found.behind + steps
    if found.retrain in REWINDING:
        return found.rewound.segment.last + steps
    return found.dense.segment.steps + found.level * steps
