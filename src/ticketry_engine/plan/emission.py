"""Translates the tasks of a region to operations of one memory layout, by calling the layout's kernel functions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from ticketry_engine.kernels import planar
from ticketry_engine.kernels.program import Bias, BlockSpec, Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.window import Array, Convolution, Window
from ticketry_engine.plan.arenas import PixelsArena, PlanesArena
from ticketry_engine.plan.sketch import RegionTask, Sketch
from ticketry_engine.plan.storage import ValueForm
from ticketry_engine.support.row_groups import row_groups

Arena = PixelsArena | PlanesArena
"""Memory of a region in one layout; the module `layout` has kernel functions of the same names for both layouts."""


class Emission:
    """The operations that compute a subgraph for a block of images, which are computed together.

    Raise `UnsupportedError` if the layout cannot run a task.

    Args:
        sketch: the subgraph as a list of tasks.
        arena: the places of all tensors in memory.
        target: the processor.
        images: number of images in the block.
        inputs: number of input tensors; output tensors are numbered after them.
        last: numbers of the inputs whose channels are innermost in memory (torch's channels_last).
        found: by task number, the chunks of channels in which this task and the next one are computed alternately.
    """

    def __init__(
        self,
        sketch: Sketch,
        arena: Arena,
        target: Target,
        images: int,
        inputs: int,
        last: Collection[int] = (),
        found: Mapping[int, Chunk] = MappingProxyType({}),
    ) -> None:
        self.sketch, self.arena, self.layout = sketch, arena, arena.layout
        self.inputs, self.last = inputs, last
        self.spec = BlockSpec(target, images, self._scratch_offset)
        self.ops: list[Op] = []
        self.tasks: list[RegionTask] = []
        """Task of each operation; if the task is computed in chunks, a task restricted to the channels of a chunk."""
        self.scratch = 0
        for number, task in enumerate(sketch.tasks):
            arena.check_task(task)
            if number in found:
                for each, ops in _emit_in_chunks(self, task, sketch.tasks[number + 1], found[number].parts):
                    self._append_task_operations(each, ops)
            elif number - 1 not in found:
                self._append_task_operations(
                    task, _emit_operations(self, task, [arena.value_memory(form) for form in task.inputs])
                )

    def _append_task_operations(self, task: RegionTask, ops: list[Op]) -> None:
        self.ops += [replace(op, label=task.label) for op in ops]
        self.tasks += [task] * len(ops)

    @property
    def bytes(self) -> int:
        """Return the size of a thread's working memory in bytes."""
        return self.arena.bytes + 64 + self.scratch

    def _scratch_offset(self, size: int) -> int:
        """Reserve `size` bytes of scratch memory, which all operations share, after the values; return its offset."""
        self.scratch = max(self.scratch, size)
        return -(-self.arena.bytes // 64) * 64

    def weights_in_stored_order(self, task: RegionTask, *roles: str) -> list[Array | None]:
        """Return the task's weights `roles`, in the stored order of output channels; None for a missing weight."""
        return [_weight_in_storage_order(self.sketch, task, role, self.arena) for role in roles]


Strides = tuple[int, int, int, int]


def tensor_strides(form: ValueForm, channels_last: bool = False) -> Strides:
    """Return the strides (image, channel, row, column), in elements, of the torch tensor that stores a value.

    The tensor is contiguous, or in torch's channels_last format if `channels_last`.
    """
    channels, (height, width) = form.channels, form.pixels
    if form.labels == "pc" or channels_last:
        return (channels * height * width, 1, width * channels, channels)
    return (channels * height * width, height * width, width, 1)


def tensor_layout(form: ValueForm) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return (shape, permutation) of the contiguous tensor that stores a value of the graph.

    The shape excludes the batch. Permuting the tensor's axes by the permutation gives the value; None stands for no
    permutation.
    """
    sizes = form.axes
    if form.labels in ("pc", "f"):
        return sizes, None
    order = [axis for axis, label in enumerate(form.labels) if label == "c"]
    order += [axis for axis, label in enumerate(form.labels) if label == "p"]
    if order == sorted(order):
        return sizes, None
    return tuple(sizes[axis] for axis in order), (0, *(order.index(axis) + 1 for axis in range(len(sizes))))


def _weight_in_storage_order(sketch: Sketch, task: RegionTask, role: str, arena: Arena) -> Array | None:
    if role not in task.node.weights:
        return None
    weight: Array = sketch.weight(task.node, role).detach().cpu().float().numpy()
    order = arena.channel_order(task.output)
    return weight if order is None else weight[order]


def to_convolution(sketch: Sketch, task: RegionTask, arena: Arena) -> Convolution:
    """Return a layer as a convolution, with weights in the order of the input and output channels in memory.

    A linear layer becomes a convolution with a kernel of one pixel or, after a flattening, as large as the image.
    """
    node, x = task.node, task.inputs[0]
    weight = _weight_in_storage_order(sketch, task, "weight", arena)
    assert weight is not None
    slides = {}
    if node.op == "conv2d":
        slides = {name: tuple(node.attrs[name]) for name in ("stride", "padding", "dilation")}
    else:
        weight = weight.reshape(weight.shape[0], -1, *(x.pixels if x.labels == "f" else (1, 1)))
    columns, groups = arena.channel_order(x), node.attrs.get("groups", 1)
    weight = weight if columns is None or groups > 1 else weight[:, columns]
    bias = _weight_in_storage_order(sketch, task, "bias", arena)
    return Convolution(weight, bias, **slides, groups=groups, act=node.attrs["act"])


def _constant_by_position(sketch: Sketch, task: RegionTask) -> Array:
    """Return the constant of `task` as [channels, height, width] of the output, in the original order of channels."""
    form = task.output
    spread = sketch.weight(task.node, "constant").detach().cpu().float().expand(form.axes)
    order = [axis for kind in "cp" for axis, label in enumerate(form.labels) if label == kind]
    found: Array = spread.permute(order).reshape(form.channels, *form.pixels).contiguous().numpy()
    return found


def _element_sources(emission: Emission, task: RegionTask) -> tuple[Array, Array]:
    """Return (number of the input, index in this input) from which each element of the task's output is copied.

    Both are arrays with one entry per output element. The number is -1 if the output element is 0. Output and inputs
    have their channels in the order of memory.
    """
    assert task.where is not None
    order = emission.arena.channel_order(task.output)
    where = task.where if order is None else task.where[order]
    of, element = np.full(where.shape, -1), np.zeros(where.shape, np.int64)
    begin = 0
    for number, form in enumerate(task.inputs):
        positions = prod(form.pixels)
        end = begin + form.channels * positions
        inside = (where >= begin) & (where < end)
        channel, position = np.divmod(where[inside] - begin, positions)
        order = emission.arena.channel_order(form)
        of[inside] = number
        element[inside] = (channel if order is None else np.argsort(order)[channel]) * positions + position
        begin = end
    return of, element


def _constant_by_channel(emission: Emission, task: RegionTask) -> Array:
    """Return the constant of `task` as one float32 per channel, in the order of the channels in memory.

    The constant must be the same for all pixels.
    """
    form = task.output
    constant = emission.sketch.weight(task.node, "constant").detach().cpu().float()
    sizes = [size for size, label in zip(constant.shape, form.labels, strict=True) if label == "c"]
    flat: Array = constant.reshape(sizes).expand(form.planes.shape[:-1]).reshape(-1).numpy()
    order = emission.arena.channel_order(form)
    return flat if order is None else flat[order]


def _emit_head_by_head(emission: Emission, task: RegionTask, x: Any, y: Any) -> Any:
    """Return the operations of a norm or softmax over the last axis, separately for each attention head.

    `x` and `y` are the memory of the task's input and output.
    """
    layout, kind, attrs = emission.layout, task.kind, task.node.attrs
    size = task.output.planes.shape[-2]
    alone = size == task.output.channels
    weights = ["weight", "bias"] if kind == "layer_norm" else ["weight"] if kind == "rms_norm" else []
    found: list[Array | None] = (
        emission.weights_in_stored_order(task, *weights)
        if alone
        else [_weight_of_one_head(emission, task, role) for role in weights]
    )
    settings = [attrs["eps"]] if weights else []
    operation = getattr(layout, kind)
    if alone:
        return operation(x, y, *found, *settings)
    firsts = range(0, task.output.channels, size)
    return [
        op for at in firsts for op in operation(x.channel_range(at, size), y.channel_range(at, size), *found, *settings)
    ]


def _weight_of_one_head(emission: Emission, task: RegionTask, role: str) -> Array | None:
    """Return the part of the weight `role` for one attention head, or None if the task has no such weight."""
    if role not in task.node.weights:
        return None
    found: Array = emission.sketch.weight(task.node, role).detach().cpu().float().numpy()
    return found


def _emit_in_chunks(
    emission: Emission, task: RegionTask, next_task: RegionTask, parts: list[Array]
) -> Iterator[tuple[RegionTask, list[Op]]]:
    """Yield (a task limited to some channels, operations that compute it), for all channels of two consecutive tasks.

    The channels are divided into `parts`. For each part, `task` is followed by `next_task`.
    """
    layout, arena, spec = emission.layout, emission.arena, emission.spec
    x, between, y = (cast("Any", arena.value_memory(form)) for form in (task.inputs[0], task.output, next_task.output))
    first, second = (to_convolution(emission.sketch, one, arena) for one in (task, next_task))
    beside = spec
    if isinstance(between, planar.Planes) and planar.scratch_bytes(between, y, second, spec) == 0:
        # For few channels, estimates may favour copying them first, because they ignore that these are in the cache.
        beside = replace(spec, reserve=None)
    for rows in parts:
        some = between.select_channels(np.arange(len(rows)))
        made, gone = (replace(form, planes=form.planes[rows]) for form in (task.output, next_task.output))
        yield replace(task, output=made), layout.conv(x, some, select_rows(first, rows), None, spec)
        out = layout.conv(some, y.select_channels(rows), select_rows(second, rows), None, beside)
        yield replace(next_task, inputs=(made,), output=gone), out


def _emit_operations(emission: Emission, task: RegionTask, inputs: list[Any]) -> Any:
    """Return the operations that compute a task; `inputs` are the memory locations of the task's inputs."""
    layout, kind, attrs, y = emission.layout, task.kind, task.node.attrs, emission.arena.value_memory(task.output)
    if kind == "load":
        return layout.load_tensor(task.number, tensor_strides(task.output, task.number in emission.last), y)
    if kind == "store":
        return layout.store_tensor(emission.inputs + task.number, tensor_strides(task.output), y)
    if kind == "constant":
        return layout.store_constant(_constant_by_position(emission.sketch, task), y)
    if kind == "gather":
        return layout.gather_elements(inputs, y, _element_sources(emission, task))
    x, *others = inputs
    if kind in ("add_constant", "mul_constant"):
        operation = kind.removesuffix("_constant")
        if others:
            return layout.elementwise(operation, x, others[0], y, attrs["act"])
        number = _constant_by_channel(emission, task)
        scale, shift = (number, np.zeros_like(number)) if operation == "mul" else (np.ones_like(number), number)
        return layout.affine(x, y, scale, shift, attrs["act"])
    if kind == "rotary":
        return layout.rotary(x, *others, y, attrs["half"])
    if kind == "copy":
        return layout.copy(x, y)
    if kind in ("conv2d", "linear"):
        layer = to_convolution(emission.sketch, task, emission.arena)
        return layout.conv(x, y, layer, others[0] if others else None, emission.spec)
    if kind in ("add", "mul"):
        return layout.elementwise(kind, x, others[0], y, attrs["act"])
    if kind == "act":
        return layout.apply_activation(attrs["act"], x, y)
    if kind == "affine":
        return layout.affine(x, y, *emission.weights_in_stored_order(task, "scale", "shift"), attrs["act"])
    if kind in ("layer_norm", "rms_norm", "softmax"):
        return _emit_head_by_head(emission, task, x, y)
    if kind == "global_avg_pool":
        return layout.global_mean(x, y)
    if kind in ("max_pool2d", "avg_pool2d"):
        window = Window(*(tuple(attrs.get(name, (1, 1))) for name in ("kernel", "stride", "padding", "dilation")))
        if kind == "max_pool2d":
            return layout.max_pool(x, y, window)
        return layout.avg_pool(x, y, window, attrs["count_include_pad"])
    heads, size = task.inputs[0].planes.shape[:2]
    factor = size**-0.5 if attrs["scale"] is None else float(attrs["scale"])
    name = task.node.weights.get("bias")
    added = (
        None
        if name is None
        else Bias.from_array(name, emission.sketch.graph.tensors[name].detach().cpu().float().numpy())
    )
    windows = kind == "window_attention"
    causal = not windows and attrs["causal"]
    return layout.attention(*inputs, y, heads, factor, causal, emission.spec, added, windows)


# -- chunks ------------------------------------------------------------------------------------------------------------

# The input of a depthwise convolution often has several times the channels of the value that it is computed from. For
# large images, the L2 cache does not hold this input, so it would be written to the last-level cache or to memory and
# read again. A chunk of its channels stays in the L2 cache, and all chunks use the same memory.


BYTES = 384 << 10
"""Maximum bytes of a chunk of channels that passes through two operations.

Time relative to no chunks, measured with 256 and 512 KB (batch 8, a Zen 5 with 1 MB of L2 cache): with a fifth of the
weights, EfficientNet-B0 0.90 and 0.89, MobileNetV3 0.95 and 0.96; without a mask, EfficientNet-B0 0.95 and 0.96,
MobileNetV3 0.94 and 0.96."""

_ROWS = 8
"""In the planar layout, the number of channels of a chunk is a multiple of this number.

In the channels-last layout, it is a multiple of the lanes of a vector."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The division of a tensor's channels into chunks; a chunk is computed and read before the next is computed."""

    channels: int
    """Number of channels of a chunk."""
    order: Array
    """Numbers of all channels in the order of the chunks."""

    @property
    def parts(self) -> list[Array]:
        """Return the channel numbers of each chunk."""
        return [self.order[at : at + self.channels] for at in range(0, len(self.order), self.channels)]


def choose_chunks(sketch: Sketch, layout: str, images: int, lanes: int, element_bytes: int) -> dict[int, Chunk]:
    """Return, by task number, the chunks of channels in which the task and the next task are computed alternately.

    Only a pointwise convolution with an output of more than `BYTES` is computed in chunks, and only if the next task is
    a depthwise convolution, and no other task reads the output.
    """
    readers = _tasks_reading_storage(sketch)
    found = {}
    for number, (task, then) in enumerate(zip(sketch.tasks, sketch.tasks[1:], strict=False)):
        storage = int(task.output.flat[0, 0])
        if not (_is_pointwise_conv(sketch, task) and _is_depthwise_conv(then) and readers.get(storage) == [number + 1]):
            continue
        size = element_bytes * images * prod(task.output.pixels)
        times = -(-size * task.output.channels // BYTES)
        each = lanes if layout == "pixels" else _ROWS
        at_once = -(-task.output.channels // (times * each)) * each
        if at_once < task.output.channels:
            found[number] = Chunk(at_once, _channel_order_for_chunks(sketch, task, layout))
    return found


def with_chunks(sketch: Sketch, chunks: Mapping[int, Chunk]) -> Sketch:
    """Return a copy of `sketch` with memory for only one chunk of the output channels of each task in `chunks`.

    The inputs of these tasks keep their memory until the last chunk is computed.
    """
    if not chunks:
        return sketch
    storages = sketch.storages
    all_ = list(storages.all)
    for number, chunk in chunks.items():
        (made,) = sketch.tasks[number].output.storages
        all_[made] = replace(all_[made], channels=chunk.channels)
        for form in sketch.tasks[number].inputs:
            for one in form.storages:
                all_[one] = replace(all_[one], dies=max(all_[one].dies, number + 1))
    return replace(sketch, storages=replace(storages, all=all_))


def select_rows(layer: Convolution, rows: Array) -> Convolution:
    """Return the convolution limited to the output channels `rows`.

    A depthwise convolution is also limited to the input channels `rows`.
    """
    bias = None if layer.bias is None else layer.bias[rows]
    groups = len(rows) if layer.groups > 1 else 1
    return replace(layer, weight=layer.weight[rows], bias=bias, groups=groups)


def _tasks_reading_storage(sketch: Sketch) -> dict[int, list[int]]:
    """Return, by number of a tensor's memory area, the numbers of the tasks that read the tensor."""
    found: dict[int, list[int]] = {}
    for number, task in enumerate(sketch.tasks):
        for one in {one for form in task.inputs for one in form.storages}:
            found.setdefault(one, []).append(number)
    return found


def _is_pointwise_conv(sketch: Sketch, task: RegionTask) -> bool:
    """Return whether a task is a 1 x 1 convolution of all channels without a residual."""
    if task.kind != "conv2d" or task.node.attrs.get("groups", 1) != 1 or len(task.inputs) > 1:
        return False
    plain = all(tuple(task.node.attrs[name]) == only for name, only in (("stride", (1, 1)), ("padding", (0, 0))))
    whole = task.output.channels == sketch.storages.all[int(task.output.flat[0, 0])].channels
    return plain and whole and prod(sketch.weight(task.node).shape[2:]) == 1


def _is_depthwise_conv(task: RegionTask) -> bool:
    """Return whether a task is a depthwise convolution without a residual."""
    if task.kind != "conv2d" or len(task.inputs) > 1:
        return False
    return bool(task.node.attrs.get("groups", 1) == task.inputs[0].channels == task.output.channels > 1)


def _channel_order_for_chunks(sketch: Sketch, task: RegionTask, layout: str) -> Array:
    """Return the order in which the output channels of `task` are divided into chunks.

    In the planar layout, weight rows that retain equal columns become neighbours. In the channels-last layout, the
    channels keep their order in memory.
    """
    channels = np.arange(task.output.channels)
    if layout == "pixels":
        return channels
    groups = row_groups(sketch.weight(task.node))
    found: Array = np.concatenate([np.asarray(group.rows) for group in groups]) if groups else channels
    return found
