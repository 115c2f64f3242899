"""When a network was pruned early, and what the detector saw until then: a part of a record's rows, read into types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ticketry.report.nodes import Node

DISTANCE, MASKS = "distance", "masks"
"""Detectors."""


@dataclass(frozen=True)
class Moment:
    """The step at which a network was pruned, and the looks that led to it."""

    step: int
    detected: bool
    """Whether the detector found it; if not, it is the latest step allowed, or one that was given."""
    detector: str
    threshold: float
    """Below it, what `compared` has is small enough."""
    looks: tuple[tuple[int, float], ...]
    """(step, value), in the order of steps. Detector distance: ||w - w0|| / ||w0||. Detector masks: the share of
    elements in which the mask differs from that of the look before, NaN where there is none."""

    @property
    def compared(self) -> tuple[tuple[int, float], ...]:
        """(step, what stands against the threshold). Of distances |d_t - d_(t-1)| / d_1, with d_0 = 0, so that the
        first is 1; of masks the values themselves. NaN where it is not defined."""
        if self.detector != DISTANCE or not self.looks:
            return self.looks
        first = self.looks[0][1]
        changes = [first, *(abs(after - before) for (_, before), (_, after) in pairwise(self.looks))]
        steps = (step for step, _ in self.looks)
        return tuple((step, change / first if first else math.nan) for step, change in zip(steps, changes, strict=True))

    @property
    def at(self) -> float:
        """What was compared at the last look up to the moment; NaN without looks."""
        return next((value for step, value in reversed(self.compared) if step <= self.step), math.nan)


def read_moment(node: Node) -> Moment | None:
    """The moment of a row; None where it has none."""
    if "moment" not in node:
        return None
    moment = node.node("moment")
    looks = []
    for index, item in enumerate(moment.measured_items("looks")):
        if len(item) != 2 or not item[0] >= 0 or item[0] != int(item[0]):
            moment.fail(f"looks[{index}]", "is not a step and a value")
        looks.append((int(item[0]), item[1]))
    if any(one[0] >= other[0] for one, other in pairwise(looks)):
        moment.fail("looks", "are not in the order of steps")
    return Moment(
        step=moment.integer("step", least=0),
        detected=moment.boolean("detected"),
        detector=moment.text("detector", ""),
        threshold=moment.number("threshold"),
        looks=tuple(looks),
    )
