"""A region that can be called with tensors: programs for the batches that come, each made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ticketry.engine.cpu.jit import Library
from ticketry.engine.cpu.program import Program
from ticketry.engine.graph import Graph
from ticketry.engine.plan.choose import choose
from ticketry.engine.plan.emission import Emission, memory
from ticketry.engine.plan.operations import PixelsOperations, PlanesOperations
from ticketry.engine.plan.partition import Region
from ticketry.engine.plan.pixels import PixelsArena
from ticketry.engine.plan.planes import PlanesArena
from ticketry.engine.plan.sketch import Sketch

MOST_IMAGES = 16
"""Images of a block: as many as fill a vector of the widest registers."""

PIXELS_IMAGES = 8
"""The same over pixels, which need none for their vectors: more do not fit the caches next to the weights."""

Key = tuple[int, str]
"""Images of a block, and how threads share the work."""


@dataclass
class Native:
    """A region's programs."""

    graph: Graph
    region: Region
    library: Library
    layout: str | None = None
    """"planes" or "pixels"; None for what `choose` says of each block."""
    sketch: Sketch = field(init=False)
    programs: dict[Key, Program] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.sketch = self.region.sketch(self.graph)
        self._made = [memory(task.inputs[0]) for task in self.sketch.tasks if task.kind == "store"]

    def __call__(self, tensors: Sequence[Tensor], threads: int) -> list[Tensor]:
        """The region's outputs, of inputs in its order."""
        batch, inputs, outputs, made = self._bound(tensors)
        if batch:
            self.program(batch, threads).run(batch, [tensor.data_ptr() for tensor in [*inputs, *outputs]], threads)
        return made

    def profile(self, tensors: Sequence[Tensor], seconds: dict[str, float]) -> list[Tensor]:
        """The same on one thread, with the seconds of each layer added to `seconds`."""
        batch, inputs, outputs, made = self._bound(tensors)
        program = self.program(batch, 1)
        found = program.profile(batch, [tensor.data_ptr() for tensor in [*inputs, *outputs]])
        for op, spent in zip(program.ops, found, strict=True):
            seconds[op.label] = seconds.get(op.label, 0.0) + spent
        return made

    def program(self, batch: int, threads: int) -> Program:
        """The program for a batch, made now if there is none yet."""
        key = _key(batch, threads)
        with self._lock:
            if key not in self.programs:
                self.programs[key] = self._program(*key)
            return self.programs[key]

    def _program(self, images: int, split: str) -> Program:
        target, inputs = self.library.target, len(self.region.inputs)
        if (self.layout or choose(self.sketch, target, images)) == "pixels":
            images = min(images, PIXELS_IMAGES)
            emission = Emission(
                self.sketch, PixelsArena(self.sketch, images, target.lanes), PixelsOperations(target, images), inputs
            )
        else:
            arena = PlanesArena(self.sketch.storages, images)
            emission = Emission(self.sketch, arena, PlanesOperations(target), inputs)
        return Program(emission.ops, images, emission.bytes, self.library, split)

    def _bound(self, tensors: Sequence[Tensor]) -> tuple[int, list[Tensor], list[Tensor], list[Tensor]]:
        """Number of images, inputs as they are read, outputs as they are written, outputs as they are returned."""
        batch = tensors[0].shape[0]
        inputs = [tensor.contiguous() for tensor in tensors]
        outputs = [torch.empty(batch, *shape) for shape, _ in self._made]
        made = [tensor.permute(order) for tensor, (_, order) in zip(outputs, self._made, strict=True)]
        return batch, inputs, outputs, made


def _key(batch: int, threads: int) -> Key:
    """The block of a batch: a whole vector of images where there are so many for each thread."""
    share = -(-batch // max(1, threads))
    images = 1
    while images < min(share, MOST_IMAGES):
        images *= 2
    blocks = -(-batch // images)
    return images, "batch" if blocks >= threads else "parts"
