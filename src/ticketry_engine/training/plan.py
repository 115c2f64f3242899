"""The plan of a region's training step: memory of values and gradients, order of operations, and state of a pass.

Operations run in kernels, one after the other. Only batch norms also compute in NumPy: between two passes over the
values, they combine the sums of their channels in float64.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ticketry_engine.errors import EngineError, GraphError
from ticketry_engine.ir import Node, Region, last_uses
from ticketry_engine.ir.native import NATIVE
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar.geometry import FLOAT, Planes
from ticketry_engine.kernels.planar.move import load_tensor, store_tensor
from ticketry_engine.kernels.program import MappedMemory, Op, Program, ProgramSession
from ticketry_engine.kernels.training.by_channel import Add, build_channel_ops
from ticketry_engine.kernels.training.convolution import ProductTables, halo_of_gradient
from ticketry_engine.kernels.training.layer import (
    IMAGES,
    Batch,
    GatheredOps,
    build_border_ops,
    images_per_block,
    operation_blocks,
    split_blocks_by_thread,
)
from ticketry_engine.kernels.training.products import Zero
from ticketry_engine.kernels.window import Array, Window
from ticketry_engine.plan.storage import LARGEST_ARENA, Buffer, BufferAllocator

PlaneShape = tuple[int, int, int]
"""Channels, rows and columns of a value; a value without pixels has 1 row and 1 column."""

LAYERS = ("conv2d", "linear")
"""Operations whose weights a mask may prune."""


def layer_name(node: Node) -> str:
    """Return the name of the module whose weight a node uses: a convolution, linear layer or norm."""
    return node.weights["weight"].rpartition(".")[0]


@dataclass(frozen=True)
class TrainingRegion(Region):
    """A group of a model's nodes that run in kernels and pass values to each other in the kernels' memory layout."""

    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each layer's weight -> its shape."""
    tokens: bool = False
    """Whether values are [..., features] rather than [images, channels, ...]."""
    flat: frozenset[str] = frozenset()
    """Names of the values that were [images, channels] in the traced call, and must have a single pixel per channel."""

    @cached_property
    def parameters(self) -> list[str]:
        """Names of all parameters, in the order of their first use, without repetition."""
        return list(dict.fromkeys(name for node in self.nodes for name in node.weights.values()))

    def window(self, node: Node) -> Window:
        """Return the kernel size, stride, padding and dilation of a layer or pooling; 1 x 1 for a linear layer."""
        size = node.attrs["kernel"] if "kernel" in node.attrs else self.weights[node.weights["weight"]][2:] or (1, 1)
        names = ("stride", "padding", "dilation")
        return Window(tuple(size), **{name: tuple(node.attrs[name]) for name in names if name in node.attrs})

    def shapes(self, inputs: Mapping[str, PlaneShape]) -> dict[str, PlaneShape]:
        """Return the shape of every value; raise `EngineError` if the shapes `inputs` do not fit the layers."""
        found = dict(inputs)
        for node in self.nodes:
            found[node.output] = self._shape(node, [found[name] for name in node.inputs])
        for name in self.flat & found.keys():
            if found[name][1:] != (1, 1):
                raise EngineError(f"{name} has {found[name][1:]} pixels per channel, but the model reads it as one")
        return found

    def _shape(self, node: Node, reads: Sequence[PlaneShape]) -> PlaneShape:
        weights = {role: self.weights[name] for role, name in node.weights.items() if name in self.weights}
        if node.op == "linear":
            outputs, inputs = weights["weight"]
            if reads[0][0] != inputs:
                raise EngineError(f"{layer_name(node)}: {reads[0][0]} channels come in, not {inputs}")
            return outputs, *reads[0][1:]
        if any(shape != reads[0] for shape in reads[1:]):
            raise EngineError(f"{node.output}: cannot add values of the shapes {list(reads)}, they have to be equal")
        if node.op not in ("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool"):
            return reads[0]
        try:
            _, *made = NATIVE[node.op].infer(node.attrs, [(None, *shape) for shape in reads], weights)
        except GraphError as error:
            name = layer_name(node) if node.weights else node.output
            raise EngineError(f"{name}: {error} (an image of {reads[0][1]} x {reads[0][2]})") from None
        channels, rows, columns = (int(size or 0) for size in made)
        return channels, rows, columns


def fuse_norms(region: TrainingRegion) -> TrainingRegion:
    """Return a copy of `region` in which batch norms also compute the following sum or ReLU.

    A sum or ReLU becomes part of the norm if nothing else reads the norm's output.
    """
    nodes, uses = list(region.nodes), region.read_counts
    number = 0
    while number < len(nodes):
        fused = _fused_norm(nodes, nodes[number], uses)
        if fused is None:
            number += 1
            continue
        norm, nodes[number] = fused
        del nodes[norm]
    return replace(region, nodes=tuple(nodes))


def _fused_norm(nodes: Sequence[Node], node: Node, uses: Mapping[str, int]) -> tuple[int, Node] | None:
    """Return the index of the norm into which `node` can be fused, and the fused norm; None if no norm qualifies."""
    relu = node.op == "act" and node.attrs["act"] == "relu"
    if not relu and node.op != "add":
        return None
    for read in node.inputs:
        for number, norm in enumerate(nodes):
            if norm.output != read or norm.op != "batch_norm" or norm.attrs["act"] or uses[read] != 1:
                continue
            if relu:
                return number, replace(norm, output=node.output, attrs={**norm.attrs, "act": "relu"})
            if len(norm.inputs) == 1 and node.inputs[0] != node.inputs[1]:
                other = node.inputs[read == node.inputs[0]]
                return number, replace(norm, inputs=(norm.inputs[0], other), output=node.output)
    return None


# -- lifetimes ---------------------------------------------------------------------------------------------------------


def values_read_in_backward(node: Node) -> tuple[str, ...]:
    """Return the values that a node's backward pass reads besides the gradient of the node's output."""
    if node.op == "batch_norm":
        return (node.inputs[0], node.output) if node.attrs["act"] and len(node.inputs) > 1 else node.inputs[:1]
    if node.op == "act":
        return (node.output,) if node.attrs["act"] == "relu" else node.inputs
    return node.inputs if node.op in (*LAYERS, "layer_norm", "max_pool2d") else ()


@dataclass(frozen=True)
class Lifetimes:
    """The values whose memory can be released after each node's forward pass, and after its backward pass."""

    after_forward: Sequence[Sequence[str]]
    """For each node, the values that are not needed after the node's forward pass, or not until they are recomputed."""
    after_backward: Sequence[Sequence[str]]
    """For each node, the values that are not needed after the node's backward pass."""
    after_outputs: Sequence[str]
    """Outputs that the backward pass does not read."""
    recomputed: dict[str, Node]
    """Value that is recomputed in the backward pass -> the batch norm that computes the value."""
    passing: dict[str, Node]
    """Recomputed value that only the layer after the norm reads -> that layer.

    If the norm and the layer run block by block, memory for one block of the value is enough.
    """


def compute_lifetimes(region: TrainingRegion) -> Lifetimes:
    """Return after which node the memory of each value can be released, if every node has a backward pass."""
    nodes, outputs = region.nodes, set(region.outputs)
    back = {name for node in nodes for name in values_read_in_backward(node)}
    recomputed = {
        node.output: node
        for node in nodes
        if node.op == "batch_norm" and len(node.inputs) == 1 and node.output in back - outputs
    }
    forward = last_uses([(node.inputs, (node.output,)) for node in nodes], outputs | (back - recomputed.keys()))
    backward = last_uses([(values_read_in_backward(node), ()) for node in reversed(nodes)], ())
    passing = {
        norm.output: layer
        for norm, layer in itertools.pairwise(nodes)
        if norm.output in recomputed
        and layer.op in LAYERS
        and [node for node in nodes if norm.output in node.inputs] == [layer]
    }
    after_outputs = [name for name in region.outputs if name not in back]
    return Lifetimes(forward, backward[::-1], after_outputs, recomputed, passing)


# -- memory and order of operations ------------------------------------------------------------------------------------


_TENSORS = 48
"""Maximum number of blocks of a tensor that are moved by one call; each block is passed as an external tensor."""


@dataclass
class Slot:
    """The index of an operation in the program; -1 until it is known.

    If several operations were added together, it is the index of the first.
    """

    number: int = -1


class TrainingPlan:
    """Collects the operations of a training step for a region: a group of a model's nodes that run in kernels.

    After all have been added, `link` builds a program from them.

    Args:
        kept: name of a module -> bool array [O, I / groups, kh, kw], True where a weight is retained.
        live: number of images of the batch; the last block of images is filled up with empty images.
        wanted: inputs whose gradients are requested.
        threads: number of threads that share each operation.
        rows: modules whose weights are trained as vectors of the retained weights only.
        item: bytes of a number in values and gradients: `FLOAT`, or `HALF` for bfloat16.
    """

    program: Program

    def __init__(
        self,
        region: TrainingRegion,
        shapes: Mapping[str, PlaneShape],
        kept: Mapping[str, Array],
        live: int,
        wanted: frozenset[str],
        library: Library,
        threads: int = 1,
        rows: frozenset[str] = frozenset(),
        item: int = FLOAT,
    ) -> None:
        self.threads, self.rows, self.item, self.images = threads, rows, item, images_per_block(item)
        self._apart = -(-live // self.images) >= threads
        self.region, self.kept, self.live, self.target = region, kept, live, library.target
        self._library = library
        self.blocks = -(-live // self.images)
        self.wanted = wanted
        self.shapes = region.shapes(shapes)
        self.ops: list[Op] = []
        self.label = ""
        """Label of the operations that are being added: the name of their layer, or their kind."""
        self.stages: dict[str, list[Stage]] = {"forward": [], "backward": []}
        self.prepare: dict[str, list[Stage]] = {"forward": [], "backward": []}
        self._arena = BufferAllocator()
        self._buffers: dict[int, Buffer] = {}
        """Buffers in use, by offset in bytes."""
        self._borders: list[tuple[Buffer, Op]] = []
        self.values: dict[str, Batch] = {}
        """Layout of each value; if the value is not in `present`, its previous layout."""
        self.present: set[str] = set()
        self.moves: dict[str, list[int]] = {}
        self._scratch, self._scratch_taken = Buffer(0, 0, None), False
        self._collected: list[tuple[list[Op], list[Op], Slot]] = []
        self._later: list[Stage] = []
        self._last: list[Stage] = []
        self._standalone: list[tuple[Op, Slot]] = []
        self._gathers: list[tuple[Op, str]] = []
        self._regathers: list[Op] = []
        self.packed: dict[str, GatheredOps] = {}
        """Module -> its forward operations, whose table holds the module's weights."""
        self.passing: set[str] = set()
        """Values of which only one block is stored at a time."""
        self.tables: dict[str, ProductTables] = {}
        """Module -> tables of its weight gradient, if they were built before the gradient's operations."""
        self.token_statistics: dict[str, list[Batch]] = {}
        """Output of a layer norm -> mean and 1 / deviation of each token."""
        self._filled = -1

    def link(self) -> None:
        """Build the plan's program from the added operations."""
        size = self._arena.size
        for op, slot in self._standalone:
            slot.number = len(self.ops)
            self.ops.append(op)
        self._link_gathers()
        self.stages["backward"] += self._last
        # Borders that nothing overwrites are zero from the beginning.
        stay = {id(op) for buffer, op in self._borders if self._arena.is_exclusive(buffer)}
        ops = [replace(op, args=(0, *op.args[1:])) if id(op) in stay else op for op in self.ops]
        self.program = Program(ops, self.blocks * self.images, size, self._library, split="parts")
        # The program has copied all tables: do not keep the originals as long as the plan.
        self.ops, self.packed, self._borders = [], {}, []
        self._standalone, self._gathers, self._regathers = [], [], []

    def _link_gathers(self) -> None:
        """Add the operations that fill tables to the program; each native call runs many of them, to save overhead."""
        first, keys = len(self.ops), [key for _, key in self._gathers]
        for number, (op, _) in enumerate(self._gathers):
            self.ops.append(replace(op, args=(*op.args[:-1], number % _TENSORS)))
        again = range(len(self.ops), len(self.ops) + len(self._regathers))
        self.ops += self._regathers

        def copy_parameters_to_tables(state: RegionPass) -> None:
            for low in range(0, len(keys), _TENSORS):
                weights = [state.parameters[key].detach().contiguous() for key in keys[low : low + _TENSORS]]
                begin, addresses = first + low, [weight.data_ptr() for weight in weights]
                state.session.run(begin, begin + len(weights), addresses)

        self.prepare["forward"].append(copy_parameters_to_tables)
        if again:
            self.prepare["backward"].append(lambda state: state.session.run(again.start, again.stop))

    # -- memory --------------------------------------------------------------------------------------------------------

    def _halo(self, name: str) -> int:
        """Return the width in pixels of the zero border (halo) that convolutions need around the value `name`."""
        needed = 0
        for node in self.region.nodes:
            if node.op in LAYERS and node.inputs[0] == name:
                window = self.region.window(node)
                for axis in range(2):
                    size, outputs = self.shapes[name][1 + axis], self.shapes[node.output][1 + axis]
                    last = window.input_position(outputs - 1, window.size[axis] - 1, axis)
                    needed = max(needed, window.padding[axis], last - size + 1)
        return needed

    def _gradient_halo(self, name: str) -> int:
        """Return the width in pixels of the zero border (halo) that the gradient of the value `name` needs."""
        # If only convolutions read a norm's output, the gradients of its output and input share memory and the halo.
        for node in self.region.nodes:
            if node.op in LAYERS and node.output == name:
                shape = self.shapes[node.inputs[0]]
                return halo_of_gradient(shape[1:], self.shapes[name][1:], self.region.window(node))
            plain = node.op == "batch_norm" and len(node.inputs) == 1
            if plain and node.output == name and self._only_convolutions_read(name):
                return self._gradient_halo(node.inputs[0])
        return 0

    def _only_convolutions_read(self, name: str) -> bool:
        readers = [node for node in self.region.nodes if name in node.inputs]
        return name not in self.region.outputs and all(node.op in LAYERS for node in readers)

    def runs_by_block(self, *names: str) -> bool:
        """Return whether operations on the values `names` process one block of images at a time, on a single thread."""
        return self.threads == 1 and all(
            len(operation_blocks(self.blocks, self.shapes[name][1:])) == self.blocks for name in names
        )

    def store_value(self, name: str, when: str = "forward", *, passing: bool = False) -> Batch:
        """Reserve memory for a value, and return its memory layout.

        The memory is for use from the pass `when` ("forward" or "backward") on. If `passing`, reserve memory only for
        one block of images.
        """
        value = self._reserve_value(replace(self.value_layout(name), passing=passing), when)
        self.values[name] = value
        self.present.add(name)
        return value

    def release_value(self, name: str) -> None:
        """Release the memory of a value after its last read; do nothing if the backward pass recomputes the value."""
        if name in self.present:
            self.present.remove(name)
            self.release_memory(self.values[name])

    def allocate_token_memory(self, name: str, when: str) -> Batch:
        """Allocate memory for one number per token of a value, and return the memory layout.

        The pass `when` ("forward" or "backward") writes the numbers.
        """
        _, *size = self.shapes[name]
        return self._reserve_value(Batch.build(1, (size[0], size[1]), 0, self.blocks), when)

    def value_layout(self, name: str) -> Batch:
        """Return the sizes and strides of the value `name` in memory, with offset 0."""
        channels, *size = self.shapes[name]
        return Batch.build(channels, (size[0], size[1]), self._halo(name), self.blocks, item=self.item)

    def allocate_gradient_memory(self, name: str) -> Batch:
        """Allocate memory for a gradient of a value, and return the gradient's memory layout."""
        return self._reserve_value(self.gradient_layout(name), "backward")

    def gradient_layout(self, name: str) -> Batch:
        """Return the sizes and strides in memory of a gradient of the value `name`, with offset 0."""
        channels, *size = self.shapes[name]
        return Batch.build(channels, (size[0], size[1]), self._gradient_halo(name), self.blocks, item=self.item)

    def release_memory(self, memory: Batch) -> None:
        """Release the memory of a value or gradient."""
        self._arena.release(self._buffers.pop(memory.offset))

    def free_scratch(self) -> None:
        """Make scratch memory free for reuse; operations that use it are appended to the backward pass before that."""
        if self._scratch_taken:
            self.append_collected_ops("backward")

    def reserve_scratch(self, size: int) -> int:
        """Reserve `size` bytes of scratch memory for an operation of the backward pass, and return their offset."""
        self.free_scratch()
        self._scratch_taken = True
        if size > self._scratch.end - self._scratch.begin:
            if self._scratch.end:
                self._arena.release(self._scratch)
            self._scratch, _ = self._take_from_arena(-(-size // 64) * 64, "scratch")
        return self._scratch.begin

    def _take_from_arena(self, size: int, layout: Hashable) -> tuple[Buffer, bool]:
        found = self._arena.allocate(size, layout)
        if self._arena.size > LARGEST_ARENA:
            raise EngineError(
                f"a batch of {self.live} needs more working memory than the {LARGEST_ARENA >> 20} MiB that kernels"
                " reach: train with smaller batches, and add up their gradients"
            )
        return found

    def _reserve_value(self, value: Batch, when: str) -> Batch:
        buffer, clean = self._take_from_arena(value.bytes, (value.geometry, value.channels, value.passing))
        self._buffers[buffer.begin] = buffer
        value = replace(value, offset=buffer.begin)
        if value.geometry.halo and not clean:
            ops = self._label_ops(build_border_ops(value))
            self._borders += [(buffer, op) for op in ops]
            self.add_ops(when, ops)
        return value

    # -- stages --------------------------------------------------------------------------------------------------------

    def add_ops(self, when: str, ops: list[Op], begin: Sequence[Op] = ()) -> Slot:
        """Add operations to a pass, one for each block of images or some for all blocks; return the index of the first.

        Operations for single blocks are first collected. All collected operations then run on one block after the
        other, so that caches still hold what the previous operation wrote. Operations for all blocks run after those
        that were collected.

        Args:
            when: "forward" or "backward".
            begin: operations that run before `ops`: a single one, or, if threads process whole blocks, one per thread.
        """
        slot, ops, begin = Slot(), self._label_ops(ops), self._label_ops(begin)
        if len(ops) == self.blocks:
            self._collected.append((ops, list(begin), slot))
            return slot
        self.append_collected_ops(when)
        first = len(self.ops)
        self.ops += [*begin, *ops]
        slot.number = len(self.ops) - len(ops)
        self._append_op_range(when, [first, len(self.ops)])
        return slot

    def _append_op_range(self, when: str, bounds: list[int]) -> None:
        """Append the operations between `bounds` to a pass, as part of the last native call if possible."""
        before = self.stages[when][-1] if self.stages[when] else None
        if isinstance(before, OpRange) and len(bounds) == len(before.bounds) == 2 and before.bounds[1] == bounds[0]:
            before.bounds[1] = bounds[1]
        else:
            self.stages[when].append(OpRange(bounds))

    def add_stage(self, when: str, stage: Stage) -> None:
        """Add a function of the pass's state (a stage) that runs after everything that was added before."""
        self.append_collected_ops(when)
        self.stages[when].append(stage)

    def add_stage_after_collected_ops(self, stage: Stage) -> None:
        """Add a function (a stage) to the backward pass, after the operations that `add_ops` has collected."""
        self._later.append(stage)
        if not self._collected:
            self.append_collected_ops("backward")

    def add_final_stage(self, stage: Stage) -> None:
        """Add a function (a stage) to the end of the backward pass; nothing else may write the table that it reads."""
        self._last.append(stage)

    def add_standalone(self, op: Op) -> Slot:
        """Add an operation that runs only when a stage calls it; return its index."""
        slot = Slot()
        self._standalone.append((self._label_ops([op])[0], slot))
        return slot

    def add_gather(self, op: Op, parameter: str | None = None) -> None:
        """Add an operation that fills a kernel's table from the parameter `parameter` before the forward pass.

        If `parameter` is None, the operation reads another table, and runs before the backward pass.
        """
        (op,) = self._label_ops([op])
        if parameter is None:
            self._regathers.append(op)
        else:
            self._gathers.append((op, parameter))

    def _label_ops(self, ops: Sequence[Op]) -> list[Op]:
        return [op if op.label == self.label else replace(op, label=self.label) for op in ops]

    def append_collected_ops(self, when: str) -> None:
        """Append all operations on single blocks that `add_ops` has collected to the pass `when`."""
        if lost := [name for name in self.present if self.values[name].passing]:
            raise AssertionError(f"{lost} are still read, but only their last block is stored")
        bounds = [len(self.ops)]
        for thread, share in enumerate(split_blocks_by_thread(self.blocks, self.threads if self._apart else 1)):
            for block in share:
                for ops, begin, slot in self._collected:
                    if block == share.start and thread < len(begin):
                        self.ops.append(begin[thread])
                    if block == 0:
                        slot.number = len(self.ops)
                    self.ops.append(ops[block])
            bounds.append(len(self.ops))
        if bounds[-1] > bounds[0]:
            self._append_op_range(when, bounds)
        self.stages[when] += self._later
        self._collected, self._later, self._scratch_taken = [], [], False
        self._arena.free_released_buffers()

    def copy_into(self, value: Batch, other: Batch, *, added: bool = False) -> None:
        """Add the operation ``other = value``, or ``other += value`` if `added`, to the backward pass."""
        values = [value, other, other] if added else [value, other]
        self.add_ops("backward", build_channel_ops(Add, values, self.live, self.target, relu=False, residual=added))

    def add_zeroing(self, value: Batch) -> None:
        """Add an operation to the backward pass that sets a gradient to 0."""
        self.add_ops("backward", [Op(Zero(), (value.offset, value.bytes // (FLOAT * self.target.lanes)))])

    # -- to and from tensors -------------------------------------------------------------------------------------------

    def add_tensor_copy(self, key: str, value: Batch, *, out: bool) -> None:
        """Add operations, named `key`, that copy a value from a tensor, or to a tensor if `out`."""
        channels, height, width = value.channels, value.geometry.height, value.geometry.width
        strides = (channels * height * width, height * width, width, 1)
        if self.region.tokens:  # the first position holds sixteen neighbouring tokens, one per image
            strides = (channels, 1, IMAGES * channels, IMAGES * channels)
        numbers = []
        for block in range(value.blocks):
            planes = Planes.from_offset(value.geometry, channels, value.offset + block * value.block_bytes)
            numbers.append(len(self.ops))
            self.ops += self._label_ops(
                (store_tensor if out else load_tensor)(block % _TENSORS, strides, planes, self.item)
            )
        self.moves[key] = numbers

    def copy_to_new_tensor(self, state: RegionPass, key: str, shape: Sequence[int]) -> Tensor:
        """Run the operations that `add_tensor_copy` named `key`, to copy a value without padding to a new tensor."""
        value = self.shapes[key.rpartition(" ")[2]]
        size = self.blocks * self.images * math.prod(value)
        tensor = torch.empty(size, dtype=torch.float32, device="cpu")
        self.run_tensor_copy(state, key, tensor)
        return tensor.resize_(*shape)  # not a view, because autograd lets users change it in place

    def run_tensor_copy(self, state: RegionPass, key: str, tensor: Tensor) -> None:
        """Run the operations called `key` (`add_tensor_copy`): copy a value from or to `tensor`, contiguous float32."""
        size = tensor.numel() // self.blocks * FLOAT
        numbers, begin = self.moves[key], tensor.data_ptr()
        for first in range(0, len(numbers), _TENSORS):
            some = numbers[first : first + _TENSORS]
            addresses = [begin + (first + block) * size for block in range(len(some))]
            state.session.run(some[0], some[-1] + 1, addresses, self.images, shared=True)

    def run(self, when: str, state: RegionPass) -> None:
        """Run the pass `when` ("forward" or "backward") without loading inputs or storing outputs."""
        ready: list[Stage] = []
        if when == "forward" or self._filled != state.number:  # another step may have filled the tables meanwhile
            ready += self.prepare["forward"]
            self._filled = state.number
        if when == "backward":
            ready += self.prepare["backward"]
        with np.errstate(all="ignore"):  # a diverging training shows in its loss, as in torch
            for stage in (*ready, *self.stages[when]):
                stage(state)

    def argument_table(self, number: int, argument: int) -> Array:
        """Return the table that is argument number `argument` of operation `number`, in the program's memory."""
        found = self.program.ops[number].args[argument]
        assert isinstance(found, np.ndarray)
        return found


class Gradients:
    """Records which memory holds the gradient of each value, while operations are added to the backward pass."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._plan = plan
        self.by_value: dict[str, Batch] = {}
        """Value -> layout of its gradient, if the gradient exists and was not used."""
        self.needed = set(plan.wanted)
        for node in plan.region.nodes:
            if node.op in (*LAYERS, "batch_norm", "layer_norm") or self.needed.intersection(node.inputs):
                self.needed.add(node.output)

    def add_gradient(self, name: str, memory: Batch) -> None:
        """Use `memory` as the gradient of a value, or add it to an existing gradient; release unused memory."""
        first = self.by_value.get(name)
        if first is None and name in self.needed:
            self.by_value[name] = memory
            return
        if first is not None:
            self._plan.copy_into(memory, first, added=True)
        self._plan.release_memory(memory)

    def set_gradient_memory(self, name: str, memory: Batch) -> None:
        """Use `memory`, which nothing else reads later, as the gradient of `name`.

        The numbers are copied if the gradient needs another memory layout.
        """
        plan = self._plan
        first = name in self.needed and name not in self.by_value
        if first and plan.gradient_layout(name).geometry != memory.geometry:
            copy = plan.allocate_gradient_memory(name)
            plan.copy_into(memory, copy)
            plan.release_memory(memory)
            memory = copy
        self.add_gradient(name, memory)


# -- pass state --------------------------------------------------------------------------------------------------------


_LARGE = 4 << 20
"""Minimum number of bytes of memory that is reused; smaller memory is quickly available from the allocator."""


@dataclass
class PassState:
    """Holds the working memory of one training step; the backward pass releases it by closing `session`."""

    session: ProgramSession
    number: int = field(default_factory=itertools.count().__next__, kw_only=True)
    """Number of the step among all steps."""
    closed: bool = field(default=False, kw_only=True)

    def require_open(self, what: str) -> None:
        """Raise EngineError if a backward pass has already used and released the memory; `what` names the layers."""
        if self.closed:
            raise EngineError(
                f"backward runs a second time through {what} of sparse training, which keeps its values for one:"
                " add losses up before, instead of retain_graph=True"
            )

    def close(self) -> None:
        """Close the session and return its working memory for reuse."""
        if not self.closed:
            self.closed = True
            self.session.close()

    def __del__(self) -> None:
        self.close()


class GradientMemory:
    """Memory for gradients of large weights; each training step reuses the memory of the step before.

    The system zeroes each page of new memory, which can take longer than all products of a large sparse layer.
    """

    def __init__(self) -> None:
        self._memories: dict[object, MappedMemory] = {}
        self._lent: dict[object, weakref.ref[Array]] = {}

    def allocate(self, key: object, shape: torch.Size) -> Tensor:
        """Return an uninitialised float32 tensor; reuse the memory kept under `key` if no other tensor uses it."""
        size = shape.numel() * FLOAT
        lent = self._lent.get(key)
        if size < _LARGE or (lent is not None and lent() is not None):
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = MappedMemory(size)
        # The tensor and all views of its storage hold a reference to this array.
        array = memory.bytes[:size].view(np.float32).reshape(shape)
        self._lent[key] = weakref.ref(array)
        return torch.from_numpy(array)


@dataclass
class RegionPass(PassState):
    """What a forward pass in kernels saves for the backward pass of the same training step."""

    parameters: dict[str, Tensor]
    modules: Mapping[str, Any]
    memory: GradientMemory = field(default_factory=GradientMemory)
    saved: dict[str, Any] = field(default_factory=dict)
    """Output of each batch norm -> mean, 1 / standard deviation, and the numbers per channel of its kernel."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    """Names of the parameters whose gradients are requested."""


Stage = Callable[[RegionPass], None]


@dataclass
class OpRange:
    """Stage of a pass that runs a range of operations, from the first of `bounds` to before the second.

    If there are more bounds, each thread runs the range between two consecutive bounds.
    """

    bounds: list[int]

    def __call__(self, state: RegionPass) -> None:
        if len(self.bounds) > 2:
            state.session.run_ranges_in_parallel(self.bounds)
        else:
            state.session.run(self.bounds[0], self.bounds[-1], shared=True)
