"""Which layout a region runs in: the one whose products are estimated to take less time, by the kernels' own
estimates."""

from __future__ import annotations

from ticketry.engine.cpu import pixels, planes
from ticketry.engine.cpu.pixels.geometry import FLOAT
from ticketry.engine.cpu.target import Target
from ticketry.engine.plan.blocks import alone, grouped
from ticketry.engine.plan.emission import geometry_of_product
from ticketry.engine.plan.forms import UnsupportedError
from ticketry.engine.plan.operations import attended
from ticketry.engine.plan.pixels import PixelsArena
from ticketry.engine.plan.planes import PlanesArena
from ticketry.engine.plan.sketch import Sketch

_WORTH_A_LOOK = 0.5
"""Share of the weights in groups of half a vector and more from which the exact cost over pixels is worth its time.

In bf16 it always is: unless few weights are kept, all of them there are faster than those kept in float32."""

_NEARLY_DENSE = 0.6
"""Share of the weights kept from which all of them, zeros too, may be faster over pixels."""


def choose(sketch: Sketch, target: Target, images: int, item: int = FLOAT) -> str:
    """The layout for blocks of so many images: "planes" or "pixels", whose values have so many bytes."""
    small = grouped(sketch, target.lanes // 2) < _WORTH_A_LOOK
    if item == FLOAT and small and _density(sketch) < _NEARLY_DENSE:
        return "planes"
    try:
        return "pixels" if pixels_cost(sketch, target, images, item) < planes_cost(sketch, target, images) else "planes"
    except UnsupportedError:
        return "planes"


def _density(sketch: Sketch) -> float:
    weights = [sketch.weight(node) for _, node in sketch.products()]
    return sum(int(one.count_nonzero()) for one in weights) / max(1, sum(one.numel() for one in weights))


def planes_arena(sketch: Sketch, target: Target, images: int) -> PlanesArena:
    """Where planes lie: with halos, unless few images and single rows make convolutions faster that unfold."""
    halos = images >= target.lanes or not alone(sketch)
    return PlanesArena(sketch.storages, images, target.lanes, halos)


def planes_cost(sketch: Sketch, target: Target, images: int) -> float:
    """Estimated nanoseconds of a region's products over planes, for one image."""
    arena = planes_arena(sketch, target, images)
    spent = 0.0
    for task, _ in sketch.products():
        assert task.output is not None
        weight, where = geometry_of_product(sketch, task, arena)
        x, y = arena.value(task.inputs[0]).geometry, arena.value(task.output).geometry
        spent += planes.cost(x, y, weight, **where, target=target)
    return spent / images


def pixels_cost(sketch: Sketch, target: Target, images: int, item: int = FLOAT) -> float:
    """The same over pixels.

    Raises:
        UnsupportedError: pixels cannot run the region.
    """
    arena = PixelsArena(sketch, images, target.lanes, item)
    spent = 0.0
    for task in sketch.tasks:
        values = [arena.value(form) for form in task.inputs]
        if task.kind == "attention":
            attended(*values)
    for task, _ in sketch.products():
        assert task.output is not None
        weight, where = geometry_of_product(sketch, task, arena)
        x, y = arena.value(task.inputs[0]), arena.value(task.output)
        spent += pixels.cost(x, y, weight, **where, target=target, images=images)
    return spent
