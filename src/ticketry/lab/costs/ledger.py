"""Count a lab's work and the costs of masks, and divide the trainings that led to a network into phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ticketry.errors import UsageError
from ticketry.lab.search_result import FROM_REWOUND, Found
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix_seeds

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


@dataclass(frozen=True)
class Sample:
    """Describes the random training batches on which a pruning score is computed; the batches are not augmented."""

    count: int = 5
    """Number of batches."""
    size: int = 128
    """Number of examples in a batch."""
    seed: int = 0
    """Seed of the choice of examples."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UsageError(f"a score needs at least one batch of one example, got {self.count} of {self.size}")

    def limit_batch_size_to_task(self, task: Task) -> Sample:
        """Return a copy with a smaller batch size if a batch of this size needs too much memory for `task`."""
        return replace(self, size=task.scored(self.size))

    def draw(self, course: Course, model: nn.Module) -> list[Any]:
        """Draw the batches from the training data of `course` (the loaded task) and move them to the model's device."""
        return course.sample(model, self.count, self.size, mix_seeds(self.seed, "score"))


@dataclass
class Ledger:
    """Counts the segments (ranges of steps of a training) and steps that a lab was asked for, and those it trained."""

    segments_asked: int = 0
    segments_trained: int = 0
    steps_asked: int = 0
    steps_trained: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    """Seconds of workers outside training steps: evaluation, reading and writing, waiting for locks."""
    processor_seconds: float = 0.0
    """CPU time of the workers in `train_seconds` and `other_seconds`; the time of GPUs is not included."""

    keys: list[str] = field(default_factory=list, repr=False)
    """The keys of all requested segments; a segment that was requested twice is listed twice."""

    @property
    def segments_distinct(self) -> int:
        """Number of different segments (ranges of training steps) that were requested, stored already or not."""
        return len(set(self.keys))

    def copy(self) -> Ledger:
        """Return a copy, which later work of the lab does not change."""
        return replace(self, keys=list(self.keys))

    def since(self, before: Ledger) -> Ledger:
        """Return a ledger that counts only the work after the copy `before` of this ledger was made."""
        counts = {name: value - getattr(before, name) for name, value in vars(self).items() if name != "keys"}
        return Ledger(**counts, keys=self.keys[len(before.keys) :])

    def counts(self) -> dict[str, int]:
        """Return the numbers of segments and steps in a dict, as entries of a stored record."""
        names = ("segments_asked", "segments_distinct", "segments_trained", "steps_asked", "steps_trained")
        return {name: getattr(self, name) for name in names}


# -- masks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenExamples:
    """Holds the numbers of training examples that a pruning score uses, to compute the score's FLOPs."""

    score: str
    """Name of the score; empty for a function without a name."""
    first: int
    """Number of examples in the first batch, which is the only batch that some scores use."""
    others: int
    """Number of examples in all other batches."""
    cuts: int
    """Number of pruning steps; each step uses the examples again."""

    @classmethod
    def from_settings(cls, sample: Sample, available: int, settings: Mapping[str, Any]) -> SeenExamples:
        """Return the numbers of examples that a call of `Lab.prune` uses.

        `sample` describes the batches, `available` is the number of training examples, and `settings` are the further
        arguments of `Lab.prune`.
        """
        score = settings.get("score", "magnitude")
        first, examples = min(sample.size, available), min(sample.count * sample.size, available)
        name = score if isinstance(score, str) else ""
        return cls(name, first, examples - first, int(settings.get("iterations", 1)))


@dataclass(frozen=True)
class MaskCost:
    """Holds the cost of computing one mask."""

    seconds: float = 0.0
    """Seconds for scoring and choosing weights; 0 if an old store did not record them."""
    seen: SeenExamples | None = None
    """Examples that the score used; None if it used none, or if the search counts them in `Found.gradients`."""

    def sort_key(self) -> tuple[float, float]:
        """Return the number of examples that were scored and the seconds, by which costs are compared."""
        seen = self.seen
        return ((seen.first + seen.others) * seen.cuts if seen else 0, self.seconds)


# -- phases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phases:
    """Lists the work that led to a network, in three phases: dense training, search, and training with the final mask.

    A training that several networks share counts in full for each of them.
    """

    dense: tuple[Result, ...] = ()
    """Trainings of the unchanged dense network."""
    search: tuple[Result, ...] = ()
    """Further trainings before the network's mask was found, with earlier masks or with soft masks."""
    sparse: tuple[Result, ...] = ()
    """Trainings with the network's own mask; in cyclic schedules there are several."""
    gradients: int = 0
    """Number of batches whose gradient was computed for the mask without a training step, see `Found.gradients`."""
    masks: tuple[str, ...] = ()
    """Digests of all masks that were computed, up to and including the network's own mask."""
    detector_seconds: float = 0.0
    """Seconds that a detector took to choose the pruning step, see `Moment.seconds`."""

    @property
    def trainings(self) -> tuple[Result, ...]:
        return (*self.dense, *self.search, *self.sparse)

    @property
    def steps(self) -> int:
        """Number of training steps in all phases; a gradient that was computed without training counts as one step."""
        return sum(each.segment.steps for each in self.trainings) + self.gradients


def training_phases_of(found: Found, before: Iterable[Found] = ()) -> Phases:
    """Return the work that led to the network `found`, divided into dense training, search and sparse training.

    Args:
        before: networks that the same search with the same seeds found earlier. If `found.searched` is empty, as in
            iterative pruning, the trainings of `before` are the search phase.
    """
    if found.mask is None:
        return Phases(dense=(found.result,))
    earlier = [each.result for each in before if each.mask is not None and not each.searched]
    return _divide_trainings_into_phases(found.searched or (found.dense, *earlier), found)


def training_phases_before_sparse(trainings: Sequence[Result], mask: str) -> Phases:
    """Return the phases of the work that led to the mask with the digest `mask`, without training with the mask."""
    before = _divide_trainings_into_phases(trainings, None)
    return replace(before, masks=tuple(dict.fromkeys([*before.masks, mask])))


def control_phases(
    searched: bool, found: Found, ticket: Phases, trained: Sequence[Result], fresh: Result | None
) -> Phases:
    """Return the phases of the work for a control, which is a network that is trained to be compared with a ticket.

    A control with the ticket's mask, shuffled or not, needs all the work that led to the ticket. Any other control
    needs only the trainings that gave its initial weights.

    Args:
        searched: whether the control uses the result of the search, such as the ticket's mask.
        fresh: the dense training that gave the control's initial weights; None if the search did this training.
    """
    from_final = found.retrain not in FROM_REWOUND
    start = found.dense if from_final else found.rewound
    if not searched:
        start = fresh or start
        needed = [start] if start.segment.start.seed is not None else list(found.searched)
        own = _divide_trainings_into_phases(needed, None)
        return Phases(own.dense, own.search, tuple(trained), masks=own.masks)
    begun = fresh or start  # may end later than the ticket's dense training, as in gradual pruning
    dense = _longest_training_per_trajectory([*ticket.dense, *([begun] if not begun.segment.variants else [])])
    return Phases(dense, ticket.search, tuple(trained), ticket.gradients, ticket.masks, ticket.detector_seconds)


def _divide_trainings_into_phases(needed: Sequence[Result], found: Found | None) -> Phases:
    parts = _longest_training_per_trajectory(needed)
    dense = tuple(each for each in parts if not each.segment.variants)
    search = tuple(each for each in parts if each not in dense)
    masks = [each.segment.mask for each in search]
    if found is not None:  # also the unstructured mask, with which perhaps nothing was trained
        masks += [found.structured.of if found.structured else None, found.mask]
    return Phases(
        dense,
        search,
        (found.result,) if found else (),
        found.gradients if found else 0,
        tuple(dict.fromkeys(mask for mask in masks if mask is not None)),
        found.moment.seconds if found and found.moment else 0.0,
    )


def _longest_training_per_trajectory(trainings: Iterable[Result]) -> tuple[Result, ...]:
    """Return, from each group of `trainings` that differ only in their last step, the longest training."""
    longest: dict[str, Result] = {}
    for each in trainings:
        known = longest.get(each.segment.trajectory)
        if known is None or known.segment.last < each.segment.last:
            longest[each.segment.trajectory] = each
    return tuple(longest.values())
