"""Divides a graph into regions that the engine runs as a whole, and the torch nodes between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ticketry_engine.ir import Graph, Node, Region
from ticketry_engine.plan.rearrangement import Rearranged
from ticketry_engine.plan.rules import VIEWS, add
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.value_axes import UnsupportedError

_WORTH = {"conv2d", "linear"}
"""A region without any of these operations costs more to load and store than it saves."""

_LARGE_HEAD = 1 << 16
"""Minimum number of retained weights after the last global pooling for which a new region begins there.

The head's values are small, so a separate region takes more images at once and fetches its weights less often."""


@dataclass
class Partition:
    """A graph as steps in order: regions and torch nodes."""

    steps: list[Region | Node]
    reasons: dict[str, str]
    """Output of each torch node -> why it is not in a region."""


def sketch_region(graph: Graph, region: Region) -> Sketch:
    """Return the region as operations on values whose axes are assigned to channels and positions."""
    sketch = Sketch(graph)
    waiting = {name: number for number, name in enumerate(region.inputs)}
    for node in region.nodes:
        for name in node.inputs:
            if name in waiting:
                sketch.load(name, waiting.pop(name))
        add(sketch, node)
    for number, name in enumerate(region.outputs):
        sketch.store(name, number)
    return sketch


def partition(graph: Graph) -> Partition:
    """Divide a graph into the largest possible regions. Nodes that no layout can run are left to torch."""
    reasons = {node.output: "the engine has no such operation" for node in graph.nodes if not node.native}
    while True:
        levels, regions, sketches = _levels(graph, reasons)
        poor = [nodes for nodes in regions.values() if not any(node.op in _WORTH for node in nodes)]
        for nodes in poor:
            reasons.update({node.output: "alone between torch nodes" for node in nodes})
        moved = {name for level, nodes in regions.items() for name in _moved_for_torch(graph, nodes, sketches[level])}
        reasons.update(dict.fromkeys(moved, "moved for torch alone"))
        if not poor and not moved:
            break
    return Partition(_steps(graph, levels, regions, reasons), reasons)


def _moved_for_torch(graph: Graph, nodes: Sequence[Node], sketch: Sketch) -> set[str]:
    """Return values that the nodes only reorder, for torch to read: torch's views do that at no cost."""
    readers: dict[str, list[str]] = {}
    inside = {node.output for node in nodes}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.output)
    found: set[str] = set()
    for node in reversed(nodes):
        made = isinstance(sketch.forms.get(node.output), Rearranged)
        if made and node.op in VIEWS and all(one not in inside or one in found for one in readers.get(node.output, ())):
            found.add(node.output)
    return found


def _levels(graph: Graph, reasons: dict[str, str]) -> tuple[dict[str, int], dict[int, list[Node]], dict[int, Sketch]]:
    """Return the level of each value, and the nodes and the sketch of each level's region.

    A value's level is the number of changes between torch and the engine before it. Nodes that the layouts cannot run
    are added to `reasons`.
    """
    levels: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    native: set[str] = set()
    sketches: dict[int, Sketch] = {}
    regions: dict[int, list[Node]] = {}
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
                regions.setdefault(level, []).append(node)
                levels[node.output] = level
                native.add(node.output)
                continue
        levels[node.output] = max((levels[name] + (name in native) for name in node.inputs), default=0)
    return levels, regions, sketches


def _steps(
    graph: Graph, levels: Mapping[str, int], regions: Mapping[int, Sequence[Node]], reasons: Mapping[str, str]
) -> list[Region | Node]:
    """Return the steps level by level: torch nodes of a level come before the region of the next."""
    steps: list[tuple[int, Region | Node]] = []
    for level, nodes in regions.items():
        inside = {node.output for node in nodes}
        read = dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside)
        elsewhere = {name for node in graph.nodes if node.output not in inside for name in node.inputs}
        outputs = [node.output for node in nodes if node.output in elsewhere | set(graph.results)]
        region = Region(tuple(read), tuple(outputs), tuple(nodes))
        steps += [(level, part) for part in _without_head(graph, region)]
    steps += [(levels[node.output], node) for node in graph.nodes if node.output in reasons]
    return [step for _, step in sorted(steps, key=lambda pair: pair[0])]


def _without_head(graph: Graph, region: Region) -> list[Region]:
    """Return the region, divided into body and head of the network if the head has many weights."""
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
    first = Region(region.inputs, tuple(dict.fromkeys([*outputs, pooled])), body)
    return [first, Region((pooled,), tuple(name for name in region.outputs if name not in outputs), head)]
