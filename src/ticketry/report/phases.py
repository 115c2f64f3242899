"""What a network cost, phase by phase: a part of a record's rows, read into types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ticketry.report.nodes import Node

PHASES = ("dense", "search", "sparse")


@dataclass(frozen=True)
class Phase:
    """A part of the training that a network needed. What is None was not measured."""

    steps: int
    flops: float | None
    seconds: float | None
    memory: int | None
    """Bytes of tensors at the height of one training step; None too where scoring was all there was."""

    @property
    def empty(self) -> bool:
        """Whether there was no such phase."""
        return not (self.steps or self.flops or self.seconds)


@dataclass(frozen=True)
class Phases:
    """All training that a network needed, shared or not."""

    dense: Phase
    """Without any mask."""
    search: Phase
    """Whatever else until its mask was known."""
    sparse: Phase
    """Its own training with its mask."""

    @property
    def each(self) -> dict[str, Phase]:
        return {name: getattr(self, name) for name in PHASES}

    @property
    def whole(self) -> Phase:
        """Sums; of memory the highest of phases that train. None where a phase that took place was not measured."""
        parts = [part for part in self.each.values() if not part.empty]
        memories = [part.memory for part in parts if part.steps]
        known = [memory for memory in memories if memory is not None]
        return Phase(
            steps=sum(part.steps for part in parts),
            flops=_sum([part.flops for part in parts]),
            seconds=_sum([part.seconds for part in parts]),
            memory=max(known) if known and len(known) == len(memories) else None,
        )


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def read_phases(node: Node) -> Phases | None:
    """The cost of a row; None where it has none."""
    if "cost" not in node:
        return None
    cost = node.node("cost")
    return Phases(*(_phase(cost.node(name)) for name in PHASES))


def _phase(node: Node) -> Phase:
    for name in ("flops", "seconds"):
        if (node.number_or_none(name) or 0) < 0:
            node.fail(name, "is less than 0")
    return Phase(
        steps=node.integer("steps", least=0),
        flops=node.number_or_none("flops"),
        seconds=node.number_or_none("seconds"),
        memory=node.integer_or_none("memory", least=0),
    )
