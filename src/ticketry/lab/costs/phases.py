"""Trainings behind a network, in three phases: dense training, search for the mask, and training with the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.lab.search_result import FROM_REWOUND, Found

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


@dataclass(frozen=True)
class Phases:
    """All work behind a network. Each training counts once and in full, even if several networks share it."""

    dense: tuple[Result, ...] = ()
    """Trainings without variants, that is without pruning."""
    search: tuple[Result, ...] = ()
    """Other trainings until the network's mask was found: with earlier masks or with soft masks."""
    sparse: tuple[Result, ...] = ()
    """Trainings with the network's own mask; more than one in cyclic schedules."""
    gradients: int = 0
    """Batches whose gradient was computed for the mask without a training step, see `Found.gradients`."""
    masks: tuple[str, ...] = ()
    """Digests of all masks computed until the network's own mask, included."""
    looking: float = 0.0
    """Seconds that the detector of the pruning step took, see `Moment.seconds`."""

    @property
    def trainings(self) -> tuple[Result, ...]:
        """Trainings of all three phases."""
        return (*self.dense, *self.search, *self.sparse)

    @property
    def steps(self) -> int:
        """Steps of all three phases, including gradients that were computed without a training step."""
        return sum(each.segment.steps for each in self.trainings) + self.gradients


def phases_of(found: Found, before: Iterable[Found] = ()) -> Phases:
    """Return the phases of a network that a search found.

    Args:
        found: the dense network, or a ticket.
        before: networks that the same replicate found earlier. They are the search phase of a network without
            `Found.searched`: in iterative pruning, each mask comes from the network of the level before.
    """
    if found.mask is None:
        return Phases(dense=(found.result,))
    earlier = [each.result for each in before if each.mask is not None and not each.searched]
    return _split_phases(found.searched or (found.dense, *earlier), found)


def phases_before(trainings: Sequence[Result], mask: str) -> Phases:
    """Return the phases of finding a mask by `trainings` (in order), without training the masked network itself."""
    before = _split_phases(trainings, None)
    return replace(before, masks=tuple(dict.fromkeys([*before.masks, mask])))


def control_phases(
    searched: bool, found: Found, ticket: Phases, trained: Sequence[Result], fresh: Result | None
) -> Phases:
    """Return the phases of a control of a ticket.

    A control with the ticket's mask, shuffled or not, needs all the work behind the ticket. Another control needs only
    the trainings that gave its initial weights.

    Args:
        searched: whether the control uses any result of the search.
        found: the ticket.
        ticket: phases of the ticket.
        trained: the control's own trainings.
        fresh: the dense training that gave its initial weights, if the search does not include it.
    """
    from_final = found.retrain not in FROM_REWOUND
    start = found.dense if from_final else found.rewound
    if not searched:
        start = fresh or start
        needed = [start] if start.segment.start.seed is not None else list(found.searched)
        own = _split_phases(needed, None)
        return Phases(own.dense, own.search, tuple(trained), masks=own.masks)
    begun = fresh or start  # may be later than the ticket's dense training, as in gradual pruning
    dense = _longest_parts([*ticket.dense, *([begun] if not begun.segment.variants else [])])
    return Phases(dense, ticket.search, tuple(trained), ticket.gradients, ticket.masks, ticket.looking)


def _split_phases(needed: Sequence[Result], found: Found | None) -> Phases:
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
    """Return the longest segment of each trajectory, in the given order."""
    longest: dict[str, Result] = {}
    for each in trainings:
        known = longest.get(each.segment.trajectory)
        if known is None or known.segment.last < each.segment.last:
            longest[each.segment.trajectory] = each
    return tuple(longest.values())
