"""Divide the trainings that led to a network into dense training, search for the mask, and training with the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.lab.search_result import FROM_REWOUND, Found

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


@dataclass(frozen=True)
class Phases:
    """Lists all work that led to a network; a training that several networks share counts in full for each of them."""

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
    looking: float = 0.0
    """Seconds that a detector took to choose the pruning step, see `Moment.seconds`."""

    @property
    def trainings(self) -> tuple[Result, ...]:
        """All trainings of the three phases."""
        return (*self.dense, *self.search, *self.sparse)

    @property
    def steps(self) -> int:
        """Number of training steps of the three phases; a gradient without a training step counts as a step."""
        return sum(each.segment.steps for each in self.trainings) + self.gradients


def phases_of(found: Found, before: Iterable[Found] = ()) -> Phases:
    """Return the phases of the network `found`.

    Args:
        found: the dense network or a ticket of a search.
        before: networks that the same search with the same seeds found earlier. If `found.searched` is empty, as in
            iterative pruning, their trainings are the search phase.
    """
    if found.mask is None:
        return Phases(dense=(found.result,))
    earlier = [each.result for each in before if each.mask is not None and not each.searched]
    return _split_phases(found.searched or (found.dense, *earlier), found)


def phases_before(trainings: Sequence[Result], mask: str) -> Phases:
    """Return the phases of a search that ends with the mask `mask`, before the masked network is trained.

    Args:
        trainings: all trainings of the search, in order.
        mask: digest of the mask.
    """
    before = _split_phases(trainings, None)
    return replace(before, masks=tuple(dict.fromkeys([*before.masks, mask])))


def control_phases(
    searched: bool, found: Found, ticket: Phases, trained: Sequence[Result], fresh: Result | None
) -> Phases:
    """Return the phases of a control, which is a network that is trained to be compared with a ticket.

    A control with the ticket's mask, shuffled or not, needs all the work that led to the ticket. Any other control
    needs only the trainings that gave its initial weights.

    Args:
        searched: whether the control uses the result of the search, such as the ticket's mask.
        found: the ticket.
        ticket: phases of the ticket.
        trained: trainings of the control itself.
        fresh: the dense training that gave the control's initial weights; None if it is one of the search's trainings.
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
    """Return the results without those of segments that are the beginning of a longer segment among them."""
    longest: dict[str, Result] = {}
    for each in trainings:
        known = longest.get(each.segment.trajectory)
        if known is None or known.segment.last < each.segment.last:
            longest[each.segment.trajectory] = each
    return tuple(longest.values())
