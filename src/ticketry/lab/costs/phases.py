"""The trainings that a network needed, in three phases: dense, search, and its own sparse training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.lab.search_result import FROM_REWOUND, Found

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


@dataclass(frozen=True)
class Phases:
    """Everything that a network needed; each training is counted once and completely, even if networks share it."""

    dense: tuple[Result, ...] = ()
    """Trainings without any variant, as without pruning."""
    search: tuple[Result, ...] = ()
    """Other trainings until its mask was known: with earlier masks, or with soft masks."""
    sparse: tuple[Result, ...] = ()
    """Trainings with its own mask; more than one if it is trained in cycles."""
    gradients: int = 0
    """Batches whose gradient was computed for its mask without training, see `Found.gradients`."""
    masks: tuple[str, ...] = ()
    """Digests of all masks computed until its own was known, including its own."""
    looking: float = 0.0
    """Seconds that a detector took, see `Moment.seconds`."""

    @property
    def trainings(self) -> tuple[Result, ...]:
        """Trainings of all three phases."""
        return (*self.dense, *self.search, *self.sparse)

    @property
    def steps(self) -> int:
        """Steps of all three phases, including batches whose gradient trained nothing."""
        return sum(each.segment.steps for each in self.trainings) + self.gradients


def phases_of(found: Found, before: Iterable[Found] = ()) -> Phases:
    """Return the phases of a network that a search found.

    Args:
        found: the dense network, or a ticket.
        before: networks that the same replicate found before it. They are its search if it has no `Found.searched`: in
            iterative pruning each level's mask comes from the level before.
    """
    if found.mask is None:
        return Phases(dense=(found.result,))
    earlier = [each.result for each in before if each.mask is not None and not each.searched]
    return _split(found.searched or (found.dense, *earlier), found)


def phases_before(trainings: Sequence[Result], mask: str) -> Phases:
    """Return the phases of finding a mask, without its own training: `trainings` in order, and the mask itself."""
    before = _split(trainings, None)
    return replace(before, masks=tuple(dict.fromkeys([*before.masks, mask])))


def control_phases(
    searched: bool, found: Found, ticket: Phases, trained: Sequence[Result], fresh: Result | None
) -> Phases:
    """Return the phases of a ticket's control.

    Controls with the ticket's mask, or a shuffled one, needed everything that the ticket did. Others needed the
    trainings that gave their first weights.

    Args:
        searched: whether the control uses anything that the search found.
        found: the ticket.
        ticket: phases of the ticket.
        trained: the control's own trainings.
        fresh: the dense training that gave its first weights, if it is not part of the search.
    """
    from_final = found.retrain not in FROM_REWOUND
    start = found.dense if from_final else found.rewound
    if not searched:
        start = fresh or start
        needed = [start] if start.segment.start.seed is not None else list(found.searched)
        own = _split(needed, None)
        return Phases(own.dense, own.search, tuple(trained), masks=own.masks)
    begun = fresh or start  # may be later than the ticket's dense training, as in gradual pruning
    dense = _longest_parts([*ticket.dense, *([begun] if not begun.segment.variants else [])])
    return Phases(dense, ticket.search, tuple(trained), ticket.gradients, ticket.masks, ticket.looking)


def _split(needed: Sequence[Result], found: Found | None) -> Phases:
    parts = _longest_parts(needed)
    dense = tuple(each for each in parts if not each.segment.variants)
    search = tuple(each for each in parts if each not in dense)
    masks = [each.segment.mask for each in search]
    if found is not None:  # the mask without structure too, with which perhaps nothing is trained
        masks += [found.structured.of if found.structured else None, found.mask]
    return Phases(
        dense,
        search,
        (found.result,) if found else (),
        found.gradients if found else 0,
        tuple(dict.fromkeys(mask for mask in masks if mask is not None)),
        found.moment.seconds if found and found.moment else 0.0,
    )


def _longest_parts(trainings: Iterable[Result]) -> tuple[Result, ...]:
    """Return the longest part of each trajectory, in the given order."""
    longest: dict[str, Result] = {}
    for each in trainings:
        known = longest.get(each.segment.trajectory)
        if known is None or known.segment.last < each.segment.last:
            longest[each.segment.trajectory] = each
    return tuple(longest.values())
