"""A region laid out for a batch: where its values and gradients lie, and which operations run in which order.

What a norm needs between two passes over its values (a few numbers a channel) is computed in between, in float64. All
else runs in the kernels, operation after operation.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.planar.move import load, store
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.kernels.training.by_channel import Add, operations
from ticketry_engine.kernels.training.convolution import ProductTables, halo_of_gradient
from ticketry_engine.kernels.training.halos import border
from ticketry_engine.kernels.training.layer import Gathered
from ticketry_engine.kernels.training.layout import IMAGES, Batch, images_of, parts, shares
from ticketry_engine.kernels.training.products import Zero
from ticketry_engine.kernels.window import Array
from ticketry_engine.training.call import Call, Run, Stage
from ticketry_engine.training.memory import Arena, Place
from ticketry_engine.training.nodes import Conv, Norm, Region, Shape

_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of working memory that tables of 32 bits reach."""

_TENSORS = 48
"""Blocks of a tensor that are moved at a time, each as a tensor from outside."""


@dataclass
class Slot:
    """Where the first of some operations is in the program, known when all are in order."""

    number: int = -1


class Plan:
    """Args:
    kept: of modules under a mask, which weights are kept: bool [O, I / groups, kh, kw].
    live: images of the batch. Blocks are filled up with more.
    wanted: inputs whose gradients are asked for.
    threads: that share each operation.
    rows: modules whose weights come as rows of what is kept, see `kept_weights`.
    item: bytes of a number in values and their gradients: `FLOAT`, or `HALF` for bfloat16.

    Raises:
        EngineError: shapes do not fit.
    """

    program: Program

    def __init__(
        self,
        region: Region,
        shapes: Mapping[str, Shape],
        kept: Mapping[str, Array],
        live: int,
        wanted: frozenset[str],
        library: Library,
        threads: int = 1,
        rows: frozenset[str] = frozenset(),
        item: int = FLOAT,
    ) -> None:
        self.threads, self.rows, self.item, self.images = threads, rows, item, images_of(item)
        self._apart = -(-live // self.images) >= threads
        self.region, self.kept, self.live, self.target = region, kept, live, library.target
        self._library = library
        self.blocks = -(-live // self.images)
        self.wanted = wanted
        self.shapes = region.shapes(shapes)
        self.ops: list[Op] = []
        self.label = ""
        """Of the operations that are added: what they do, or for which layer."""
        self.stages: dict[str, list[Stage]] = {"forward": [], "backward": []}
        self.prepare: dict[str, list[Stage]] = {"forward": [], "backward": []}
        self._arena = Arena()
        self._places: dict[int, Place] = {}
        """Of what is in use, by its offset."""
        self._borders: list[tuple[Place, Op]] = []
        self.values: dict[str, Batch] = {}
        """Where values lie: of those that are not `present`, where they lay."""
        self.present: set[str] = set()
        self.moves: dict[str, list[int]] = {}
        self._scratch, self._scratch_taken = Place(0, 0, None), False
        self._waiting: list[tuple[list[Op], list[Op], Slot]] = []
        self._later: list[Stage] = []
        self._last: list[Stage] = []
        self._alone: list[tuple[Op, Slot]] = []
        self._gathers: list[tuple[Op, tuple[str, str]]] = []
        self._regathers: list[Op] = []
        self.packed: dict[str, Gathered] = {}
        """Module -> the operations of the way there, with its weights."""
        self.passing: set[str] = set()
        """Values of which there is one block at a time."""
        self.tables: dict[str, ProductTables] = {}
        """Module -> those of its weight gradient, where they were needed before it."""
        self.known: dict[str, list[Batch]] = {}
        """Value that a layer norm makes -> what it keeps of each token."""
        self._filled = -1

    def link(self) -> None:
        """Make the program of the operations that were added."""
        size = self._arena.size
        for op, slot in self._alone:
            slot.number = len(self.ops)
            self.ops.append(op)
        self._link_gathers()
        self.stages["backward"] += self._last
        # Zeros that nobody ever overwrites are there from the beginning.
        stay = {id(op) for place, op in self._borders if self._arena.alone(place)}
        ops = [replace(op, args=(0, *op.args[1:])) if id(op) in stay else op for op in self.ops]
        self.program = Program(ops, self.blocks * self.images, size, self._library, split="parts")
        # The program has tables of its own: those that it was made of would lie beside them as long as the plan does.
        self.ops, self.packed, self._alone, self._gathers, self._regathers, self._borders = [], {}, [], [], [], []

    def _link_gathers(self) -> None:
        """All tables of a pass are filled in one call, or in one for so many tensors: small steps are mostly calls."""
        first, keys = len(self.ops), [key for _, key in self._gathers]
        for number, (op, _) in enumerate(self._gathers):
            self.ops.append(replace(op, args=(*op.args[:-1], number % _TENSORS)))
        again = range(len(self.ops), len(self.ops) + len(self._regathers))
        self.ops += self._regathers

        def fill(call: Call) -> None:
            for low in range(0, len(keys), _TENSORS):
                weights = [call.parameters[key].detach().contiguous() for key in keys[low : low + _TENSORS]]
                begin, places = first + low, [weight.data_ptr() for weight in weights]
                call.session.run(begin, begin + len(weights), places)

        self.prepare["forward"].append(fill)
        if again:
            self.prepare["backward"].append(lambda call: call.session.run(again.start, again.stop))

    # -- memory ----------------------------------------------------------------------------------------------------

    def _halo(self, name: str) -> int:
        """The halo that the convolutions which read a value need."""
        needed = 0
        for node in self.region.nodes:
            if isinstance(node, Conv) and node.x == name:
                for axis in range(2):
                    size, outputs = self.shapes[name][1 + axis], self.shapes[node.y][1 + axis]
                    last = node.window.input(outputs - 1, node.window.size[axis] - 1, axis)
                    needed = max(needed, node.window.padding[axis], last - size + 1)
        return needed

    def _gradient_halo(self, name: str) -> int:
        """The halo that the gradient of a value needs, if a convolution makes the value.

        What a norm makes of it, for convolutions alone, has the same: the norm's gradient is written over its own.
        """
        for node in self.region.nodes:
            if isinstance(node, Conv) and node.y == name:
                return halo_of_gradient(self.shapes[node.x][1:], self.shapes[name][1:], node.window)
            if isinstance(node, Norm) and node.y == name and node.residual is None and self._read_by_convolutions(name):
                return self._gradient_halo(node.x)
        return 0

    def _read_by_convolutions(self, name: str) -> bool:
        readers = [node for node in self.region.nodes if name in node.reads]
        return name not in self.region.outputs and all(isinstance(node, Conv) for node in readers)

    def by_block(self, *names: str) -> bool:
        """Whether operations over these values go block by block, on one thread."""
        return self.threads == 1 and all(
            len(parts(self.blocks, self.shapes[name][1:])) == self.blocks for name in names
        )

    def make(self, name: str, when: str = "forward", *, passing: bool = False) -> Batch:
        """Memory for a value, from now on.

        Args:
            passing: whether all that reads it waits together with what writes it, so that it needs a block's memory.
        """
        made = self._reserve(replace(self.layout(name), passing=passing), when)
        self.values[name] = made
        self.present.add(name)
        return made

    def drop(self, name: str) -> None:
        """No operation to come reads a value, unless it is made again."""
        if name in self.present:
            self.present.remove(name)
            self.release(self.values[name])

    def token_memory(self, name: str, when: str) -> Batch:
        """Memory for a number of each token of a value."""
        _, *size = self.shapes[name]
        return self._reserve(Batch.of(1, (size[0], size[1]), 0, self.blocks), when)

    def layout(self, name: str) -> Batch:
        """How a value lies, somewhere."""
        channels, *size = self.shapes[name]
        return Batch.of(channels, (size[0], size[1]), self._halo(name), self.blocks, item=self.item)

    def gradient_memory(self, name: str) -> Batch:
        """Memory for a gradient of a value."""
        return self._reserve(self.gradient_layout(name), "backward")

    def gradient_layout(self, name: str) -> Batch:
        """How a gradient of a value lies, somewhere."""
        channels, *size = self.shapes[name]
        return Batch.of(channels, (size[0], size[1]), self._gradient_halo(name), self.blocks, item=self.item)

    def release(self, memory: Batch) -> None:
        """Let others use memory."""
        self._arena.give(self._places.pop(memory.offset))

    def free_scratch(self) -> None:
        """Let what comes next reserve scratch without an end of what waits."""
        if self._scratch_taken:
            self.finish("backward")

    def reserve_scratch(self, size: int) -> int:
        """A byte from which on an operation of the way back may use so many, which others used before."""
        self.free_scratch()
        self._scratch_taken = True
        if size > self._scratch.end - self._scratch.begin:
            if self._scratch.end:
                self._arena.give(self._scratch)
            self._scratch, _ = self._take(-(-size // 64) * 64, "scratch")
        return self._scratch.begin

    def _take(self, size: int, layout: Hashable) -> tuple[Place, bool]:
        """A place in the memory, see `Arena.take`; `EngineError` beyond what the tables of kernels reach."""
        found = self._arena.take(size, layout)
        if self._arena.size > _LARGEST:
            raise EngineError(
                f"a batch of {self.live} needs more working memory than the {_LARGEST >> 20} MiB that kernels reach:"
                " train with smaller batches, and add up their gradients"
            )
        return found

    def _reserve(self, value: Batch, when: str) -> Batch:
        place, clean = self._take(value.bytes, (value.geometry, value.channels, value.passing))
        self._places[place.begin] = place
        made = replace(value, offset=place.begin)
        if value.geometry.halo and not clean:
            ops = self._labelled(border(made))
            self._borders += [(place, op) for op in ops]
            self.add(when, ops)
        return made

    # -- stages ----------------------------------------------------------------------------------------------------

    def add(self, when: str, ops: list[Op], begin: Sequence[Op] = ()) -> Slot:
        """Add operations to a pass: one for each block, or one for all.

        Those of several kinds, one behind the other, run block by block, so that caches still have what one of them
        leaves to the next. One for all blocks, and what is added by `then`, waits for all of those.

        Args:
            begin: what runs before them: one operation, or one for each thread that takes blocks of its own.
        """
        slot, ops, begin = Slot(), self._labelled(ops), self._labelled(begin)
        if len(ops) == self.blocks:
            self._waiting.append((ops, list(begin), slot))
            return slot
        self.finish(when)
        first = len(self.ops)
        self.ops += [*begin, *ops]
        slot.number = len(self.ops) - len(ops)
        self._runs(when, [first, len(self.ops)])
        return slot

    def _runs(self, when: str, bounds: list[int]) -> None:
        """Run operations next, in one call with those before them where nothing comes between."""
        before = self.stages[when][-1] if self.stages[when] else None
        if isinstance(before, Run) and len(bounds) == len(before.bounds) == 2 and before.bounds[1] == bounds[0]:
            before.bounds[1] = bounds[1]
        else:
            self.stages[when].append(Run(bounds))

    def then(self, when: str, stage: Stage) -> None:
        """Add what happens when all is done that was added before."""
        self.finish(when)
        self.stages[when].append(stage)

    def later(self, stage: Stage) -> None:
        """Add what happens on the way back when all operations that wait now are done."""
        self._later.append(stage)
        if not self._waiting:
            self.finish("backward")

    def last(self, stage: Stage) -> None:
        """Add what may happen at the end of the way back: it reads a table that nobody else writes."""
        self._last.append(stage)

    def alone(self, op: Op) -> Slot:
        """An operation that only a stage runs."""
        slot = Slot()
        self._alone.append((self._labelled([op])[0], slot))
        return slot

    def gather(self, op: Op, parameter: tuple[str, str] | None = None) -> None:
        """Fill a table before the way there from a parameter, or else before the way back from another table."""
        (op,) = self._labelled([op])
        if parameter is None:
            self._regathers.append(op)
        else:
            self._gathers.append((op, parameter))

    def _labelled(self, ops: Sequence[Op]) -> list[Op]:
        return [op if op.label == self.label else replace(op, label=self.label) for op in ops]

    def finish(self, when: str) -> None:
        """Let nothing wait any more."""
        if lost := [name for name in self.present if self.values[name].passing]:
            raise AssertionError(f"{lost} are still read, of which the last block alone is there")
        bounds = [len(self.ops)]
        for thread, share in enumerate(shares(self.blocks, self.threads if self._apart else 1)):
            for block in share:
                for ops, begin, slot in self._waiting:
                    if block == share.start and thread < len(begin):
                        self.ops.append(begin[thread])
                    if block == 0:
                        slot.number = len(self.ops)
                    self.ops.append(ops[block])
            bounds.append(len(self.ops))
        if bounds[-1] > bounds[0]:
            self._runs(when, bounds)
        self.stages[when] += self._later
        self._waiting, self._later, self._scratch_taken = [], [], False
        self._arena.settle()

    def add_into(self, value: Batch, other: Batch) -> None:
        """``other += value``, on the way back."""
        self.add("backward", operations(Add, [value, other, other], self.live, self.target, relu=False, residual=True))

    def zero(self, value: Batch) -> None:
        """Make a gradient 0."""
        self.add("backward", [Op(Zero(), (value.offset, value.bytes // (FLOAT * self.target.lanes)))])

    # -- to and from tensors ----------------------------------------------------------------------------------------

    def move(self, key: str, value: Batch, *, out: bool) -> None:
        """Make the operations that load a value from a tensor, or store it to one: one for each block."""
        channels, height, width = value.channels, value.geometry.height, value.geometry.width
        strides = (channels * height * width, height * width, width, 1)
        if self.region.tokens:  # sixteen neighbours, a token of each image, are the first position
            strides = (channels, 1, IMAGES * channels, IMAGES * channels)
        numbers = []
        for block in range(value.blocks):
            planes = Planes.at(value.geometry, channels, value.offset + block * value.block_bytes)
            numbers.append(len(self.ops))
            self.ops += self._labelled((store if out else load)(block % _TENSORS, strides, planes, self.item))
        self.moves[key] = numbers

    def load(self, call: Call, key: str, tensor: Tensor) -> None:
        """A tensor of all images, float32 and contiguous, into a value."""
        self._moved(call, key, tensor)

    def store(self, call: Call, key: str, shape: Sequence[int]) -> Tensor:
        """A value as a tensor of a shape, with less than all images perhaps. No view: autograd lets it be changed."""
        value = self.shapes[key.rpartition(" ")[2]]
        size = self.blocks * self.images * math.prod(value)
        tensor = torch.empty(size, dtype=torch.float32, device="cpu")
        self._moved(call, key, tensor)
        return tensor.resize_(*shape)

    def _moved(self, call: Call, key: str, tensor: Tensor) -> None:
        size = tensor.numel() // self.blocks * FLOAT
        numbers, begin = self.moves[key], tensor.data_ptr()
        for first in range(0, len(numbers), _TENSORS):
            some = numbers[first : first + _TENSORS]
            begins = [begin + (first + block) * size for block in range(len(some))]
            call.session.run(some[0], some[-1] + 1, begins, self.images, shared=True)

    def run(self, when: str, call: Call) -> None:
        """A whole pass, between loads and stores."""
        ready: list[Stage] = []
        if when == "forward" or self._filled != call.number:  # another step, with other weights, may have been between
            ready += self.prepare["forward"]
            self._filled = call.number
        if when == "backward":
            ready += self.prepare["backward"]
        with np.errstate(all="ignore"):  # a training that diverges is told by its loss, as in torch
            for stage in (*ready, *self.stages[when]):
                stage(call)

    # -- what the nodes' emission needs ------------------------------------------------------------------------------

    def table(self, number: int, argument: int) -> Array:
        """A table of an operation, as it lies in the program's memory."""
        found = self.program.ops[number].args[argument]
        assert isinstance(found, np.ndarray)
        return found
