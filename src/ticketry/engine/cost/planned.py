"""A network planned for a processor and not run: its operations under a mask, and what stays in torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ticketry.engine.cost.work import Caches, Setting, Work, tables_of, work_of
from ticketry_engine.ir import Graph, Node, Region
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import Target
from ticketry_engine.plan.emission import Emission
from ticketry_engine.plan.partition import partition
from ticketry_engine.plan.region_programs import Native, Plan, digest_of


@dataclass(frozen=True)
class Planned:
    """Work of a call."""

    works: list[Work]
    """Of all blocks together."""
    torch: list[Node]
    """What the engine leaves to torch."""
    regions: int


def natives(
    graph: Graph, target: Target, precision: str, layout: str | None = None
) -> tuple[list[Native], list[Node], dict[str, str]]:
    """The engine's regions, the nodes that run in torch, and why they do. No code is made."""
    parts = partition(graph)
    library, known = Library(target), list[str]()

    def digest() -> str:
        if not known:
            known.append(digest_of(graph))
        return known[0]

    regions = [
        Native(graph, step, library, digest, layout, precision) for step in parts.steps if isinstance(step, Region)
    ]
    return regions, [step for step in parts.steps if isinstance(step, Node)], parts.reasons


def emitted(native: Native, batch: int) -> tuple[Plan, Emission]:
    """How a batch is run on one thread, and the operations of a block."""
    plan = native.plan(batch, 1)
    return plan, native._emission(plan)


def works_of(emission: Emission, plan: Plan, batch: int, target: Target, caches: Caches) -> tuple[float, list[Work]]:
    """How many blocks a call has, and what each operation does on one of them."""
    tables = sum(tables_of(op) for op in emission.ops)
    # Vectors over planes hold all images of a block, whether they are there or not.
    images = plan.images if plan.layout == "planes" else min(plan.images, batch)
    times = ceil(batch / images) if plan.layout == "planes" else batch / images
    setting = Setting(target, caches, images, tables, emission.bytes)
    return times, [work_of(op, task, setting) for op, task in zip(emission.ops, emission.tasks, strict=True)]


def planned(graph: Graph, batch: int, target: Target, caches: Caches, precision: str, layout: str | None) -> Planned:
    """The work of a call with so many examples.

    Raises:
        UnsupportedError: the layout cannot run a region.
    """
    regions, nodes, _ = natives(graph, target, precision, layout)
    works: list[Work] = []
    for native in regions:
        plan, emission = emitted(native, batch)
        times, found = works_of(emission, plan, batch, target, caches)
        for one in found:
            works.append(Work(one.label, one.kind, {name: times * value for name, value in one.features.items()}))
    return Planned(works, nodes, len(regions))


def torch_work(graph: Graph, node: Node, batch: int) -> dict[str, float]:
    """What a node that runs in torch does, as far as shapes tell: bytes, and multiplications of its weights."""
    numbers = sum(graph.values[name].numel(batch) for name in (*node.inputs, node.output))
    made = graph.values[node.output].shape
    outputs = graph.values[node.output].numel(batch) if made else 0
    largest = max((graph.tensors[name].numel() for name in node.weights.values() if name in graph.tensors), default=0)
    channels = int(made[1] or 1) if made and len(made) > 1 else 1
    return {"op": 1.0, "bytes": 4.0 * numbers, "multiplications": largest * outputs / max(1, channels)}
