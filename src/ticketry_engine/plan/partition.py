"""Cuts a graph into regions that the engine runs as a whole, and the torch nodes between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ticketry_engine.ir import Graph, Node
from ticketry_engine.plan.placing import VIEWS, add
from ticketry_engine.plan.rearrangement import Rearranged
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.value_axes import UnsupportedError

_WORTH = {"conv2d", "linear"}
"""A region without any of these would move values into the engine's layout and back for next to nothing."""

_LARGE_HEAD = 1 << 16
"""Weights kept behind the last mean over images from which a region ends there. What follows has one position, and
values of no size: in a region of its own it takes more images at once, so that its weights are not fetched for each."""


@dataclass
class Region:
    """Nodes that run in one native call, between values that come from torch and values that go there."""

    nodes: list[Node]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def sketch(self, graph: Graph) -> Sketch:
        """The region with the forms of its values."""
        sketch = Sketch(graph)
        waiting = {name: number for number, name in enumerate(self.inputs)}
        for node in self.nodes:
            for name in node.inputs:
                if name in waiting:
                    sketch.load(name, waiting.pop(name))
            add(sketch, node)
        for number, name in enumerate(self.outputs):
            sketch.store(name, number)
        return sketch


@dataclass
class Parts:
    """A graph as steps in order: regions and torch nodes."""

    steps: list[Region | Node]
    reasons: dict[str, str]
    """Of each node that stays in torch, by its output: why."""


def partition(graph: Graph) -> Parts:
    """The largest regions there can be. A native node stays in torch where the layout cannot run it, and says why."""
    reasons = {node.output: "the engine has no such operation" for node in graph.nodes if not node.native}
    while True:
        levels, regions, sketches = _levels(graph, reasons)
        poor = [region for region in regions.values() if not any(node.op in _WORTH for node in region.nodes)]
        for region in poor:
            reasons.update({node.output: "alone between torch nodes" for node in region.nodes})
        moved = {name for level, region in regions.items() for name in _moved_for_torch(graph, region, sketches[level])}
        reasons.update(dict.fromkeys(moved, "moved for torch alone"))
        if not poor and not moved:
            break
    return Parts(_steps(graph, levels, regions, reasons), reasons)


def _moved_for_torch(graph: Graph, region: Region, sketch: Sketch) -> set[str]:
    """Values that the region would only put in another order, for torch to read: torch's views do that for nothing."""
    readers: dict[str, list[str]] = {}
    inside = {node.output for node in region.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.output)
    found: set[str] = set()
    for node in reversed(region.nodes):
        made = isinstance(sketch.forms.get(node.output), Rearranged)
        if made and node.op in VIEWS and all(one not in inside or one in found for one in readers.get(node.output, ())):
            found.add(node.output)
    return found


def _levels(graph: Graph, reasons: dict[str, str]) -> tuple[dict[str, int], dict[int, Region], dict[int, Sketch]]:
    """Value -> how often execution changed between torch and the engine before it; level -> its region, its sketch.

    Nodes that cannot be run where they are asked to be are put into `reasons`.
    """
    levels: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    native: set[str] = set()
    sketches: dict[int, Sketch] = {}
    regions: dict[int, Region] = {}
    for node in graph.nodes:
        if node.output not in reasons:
            level = max((levels[name] + (name not in native) for name in node.inputs), default=1)
            sketch = sketches.setdefault(level, Sketch(graph))
            try:
                for name in node.inputs:
                    if name not in sketch.forms:
                        sketch.load(name, 0)
                add(sketch, node)
            except UnsupportedError as error:
                reasons[node.output] = str(error)
            else:
                regions.setdefault(level, Region([])).nodes.append(node)
                levels[node.output] = level
                native.add(node.output)
                continue
        levels[node.output] = max((levels[name] + (name in native) for name in node.inputs), default=0)
    return levels, regions, sketches


def _steps(
    graph: Graph, levels: Mapping[str, int], regions: Mapping[int, Region], reasons: Mapping[str, str]
) -> list[Region | Node]:
    """Level by level: torch nodes of a level come before the region of the next."""
    for region in regions.values():
        inside = {node.output for node in region.nodes}
        read = dict.fromkeys(name for node in region.nodes for name in node.inputs if name not in inside)
        region.inputs = list(read)
        elsewhere = {name for node in graph.nodes if node.output not in inside for name in node.inputs}
        results = set(graph.results)
        region.outputs = [node.output for node in region.nodes if node.output in elsewhere | results]
    steps: list[tuple[int, Region | Node]] = [
        (level, part) for level, region in regions.items() for part in _without_head(graph, region)
    ]
    steps += [(levels[node.output], node) for node in graph.nodes if node.output in reasons]
    return [step for _, step in sorted(steps, key=lambda pair: pair[0])]


def _without_head(graph: Graph, region: Region) -> list[Region]:
    """The region, or it and the head of a network in two."""
    means = [number for number, node in enumerate(region.nodes) if node.op == "global_avg_pool"]
    if not means:
        return [region]
    body, head = region.nodes[: means[-1] + 1], region.nodes[means[-1] + 1 :]
    pooled, made = body[-1].output, {node.output for node in body[:-1]}
    weights = [graph.tensors[node.weights["weight"]] for node in head if node.op in _WORTH]
    kept = sum(int(one.count_nonzero()) for one in weights)
    if kept < _LARGE_HEAD or any(name in made or name in region.inputs for node in head for name in node.inputs):
        return [region]
    outputs = [name for name in region.outputs if name in made or name == pooled]
    first = Region(body, region.inputs, [*dict.fromkeys([*outputs, pooled])])
    return [first, Region(head, [pooled], [name for name in region.outputs if name not in outputs])]
