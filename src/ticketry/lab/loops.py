"""Which loop trains a segment."""

from __future__ import annotations

from collections.abc import Callable

from ticketry.core.mask import Mask
from ticketry.core.structure import ShrinkPlan
from ticketry.lab.gated import GatedLoop
from ticketry.lab.loop import Loop, TrainingState
from ticketry.lab.segment import Segment
from ticketry.lab.shrunk import ShrunkLoop
from ticketry.lab.tick import ShrunkTickLoop, TickLoop
from ticketry.tasks.course import Course


def loop_of(
    course: Course, segment: Segment, state: TrainingState, mask: Mask | None, plan: Callable[[], ShrinkPlan]
) -> Loop:
    """The training of a segment by itself, from a state on.

    Args:
        course: the task's, with its data.
        mask: the segment's.
        plan: called for the plan of a segment that is trained shrunk.
    """
    ticks = segment.tick is not None
    if segment.shrunk:
        return (ShrunkTickLoop if ticks else ShrunkLoop)(course, segment, state, mask, plan())
    return (GatedLoop if segment.gates else TickLoop if ticks else Loop)(course, segment, state, mask)
