"""Which trainings belong to a network: dense ones, those of its search, and its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.lab.search_result import FROM_REWOUND, Found

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result


@dataclass(frozen=True)
class Phases:
    """All that a network needed, each training once and whole, also where other networks share it."""

    dense: tuple[Result, ...] = ()
    """Trainings without any variant: as one would train without pruning."""
    search: tuple[Result, ...] = ()
    """Others that were made until its mask was known: with masks before its own, or with soft ones."""
    sparse: tuple[Result, ...] = ()
    """With its own mask; more than one if it is trained in cycles."""
    gradients: int = 0
    """Batches whose gradient was needed for its mask and trained nothing, see `Found.gradients`."""
    masks: tuple[str, ...] = ()
    """Digests of all masks that were made until its own was known, that one included."""
    looking: float = 0.0
    """Seconds in which a detector looked at the network, see `Moment.seconds`."""

    @property
    def trainings(self) -> tuple[Result, ...]:
        """Of all three phases."""
        return (*self.dense, *self.search, *self.sparse)

    @property
    def steps(self) -> int:
        """Of all three phases, batches that trained nothing included."""
        return sum(each.segment.steps for each in self.trainings) + self.gradients


def phases_of(found: Found, before: Iterable[Found] = ()) -> Phases:
    """The phases of a network that a search found.

    Args:
        found: the dense network, or a ticket.
        before: what the same replicate found before it. They are its search if it has no `Found.searched`: of iterative
            pruning each level's mask comes from the level before.
    """
    if found.mask is None:
        return Phases(dense=(found.result,))
    earlier = [each.result for each in before if each.mask is not None and not each.searched]
    return _sorted(found.searched or (found.dense, *earlier), found)


def phases_before(trainings: Sequence[Result], mask: str) -> Phases:
    """The phases of what it took to find a mask, before its own training: `trainings` in order, and the mask itself."""
    before = _sorted(trainings, None)
    return replace(before, masks=tuple(dict.fromkeys([*before.masks, mask])))


def control_phases(
    searched: bool, found: Found, ticket: Phases, trained: Sequence[Result], fresh: Result | None
) -> Phases:
    """The phases of a ticket's control.

    Controls that hold the ticket's mask, or that mask shuffled, needed all that it did. Others needed what their first
    weights come from.

    Args:
        searched: whether there is anything in the control of what the search found.
        ticket: of the ticket `found`.
        trained: the control's own trainings.
        fresh: the dense training that its first weights come from, where the search has it not.
    """
    from_final = found.retrain not in FROM_REWOUND
    start = found.dense if from_final else found.rewound
    if not searched:
        start = fresh or start
        needed = [start] if start.segment.start.seed is not None else list(found.searched)
        own = _sorted(needed, None)
        return Phases(own.dense, own.search, tuple(trained), masks=own.masks)
    begun = fresh or start  # which may lie behind the ticket's dense training, as gradual pruning's last cut does
    dense = _once([*ticket.dense, *([begun] if not begun.segment.variants else [])])
    return Phases(dense, ticket.search, tuple(trained), ticket.gradients, ticket.masks, ticket.looking)


def _sorted(needed: Sequence[Result], found: Found | None) -> Phases:
    once = _once(needed)
    dense = tuple(each for each in once if not each.segment.variants)
    search = tuple(each for each in once if each not in dense)
    masks = [each.segment.mask for each in search]
    if found is not None:  # the one without structure is chosen, too, and perhaps nothing is trained with it
        masks += [found.structured.of if found.structured else None, found.mask]
    return Phases(
        dense,
        search,
        (found.result,) if found else (),
        found.gradients if found else 0,
        tuple(dict.fromkeys(mask for mask in masks if mask is not None)),
        found.moment.seconds if found and found.moment else 0.0,
    )


def _once(trainings: Iterable[Result]) -> tuple[Result, ...]:
    """Of each trajectory the longest part, in the order given."""
    longest: dict[str, Result] = {}
    for each in trainings:
        known = longest.get(each.segment.trajectory)
        if known is None or known.segment.last < each.segment.last:
            longest[each.segment.trajectory] = each
    return tuple(longest.values())
