"""Gradients of values on the way back, and the memory that they have meanwhile."""

from __future__ import annotations

from ticketry_engine.kernels.training.by_channel import Add, operations
from ticketry_engine.kernels.training.layout import Batch
from ticketry_engine.training.nodes import Conv, LayerNorm, Norm
from ticketry_engine.training.plan import Plan


class Gradients:
    """Gradients of values on the way back: each is made whole before the node that makes the value is done."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.of: dict[str, Batch] = {}
        needed = set(plan.wanted)
        for node in plan.region.nodes:
            if isinstance(node, (Conv, Norm, LayerNorm)) or needed.intersection(node.reads):
                needed.add(node.y)
        self.needed = needed

    def take(self, name: str) -> Batch:
        """The gradient of what a node makes, as it comes to that node."""
        return self.of.pop(name)

    def give(self, name: str, memory: Batch) -> None:
        """Memory that holds a gradient of a value: its first, or one to be added."""
        plan, there = self._plan, self.of.get(name)
        if there is not None:
            plan.add_into(memory, there)
            plan.release(memory)
        elif name in self.needed:
            self.of[name] = memory
        else:
            plan.release(memory)

    def pass_on(self, name: str, memory: Batch) -> None:
        """A gradient in the layout of another value, which nobody reads after this, given to a value."""
        plan = self._plan
        first = name in self.needed and name not in self.of
        if first and plan.gradient_layout(name).geometry != memory.geometry:
            wanted = plan.gradient_memory(name)
            add_copy(plan, memory, wanted)
            plan.release(memory)
            memory = wanted
        self.give(name, memory)


def add_copy(plan: Plan, source: Batch, goal: Batch) -> None:
    """A copy of a gradient."""
    plan.add("backward", operations(Add, [source, goal], plan.live, plan.target, relu=False, residual=False))
