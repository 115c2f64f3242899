"""Values that one operation alone reads, channel by channel: some channels at a time go through both operations.

The expansion before a depthwise convolution has several times the channels of what it is made of, and of large pictures
no near cache holds it: it was written to the last one, or to memory, and read again. Some channels at a time stay in
the second cache, and in memory take the place of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ticketry_engine.kernels.window import Array, Convolution
from ticketry_engine.plan.sketch import Sketch, Task
from ticketry_engine.support.row_groups import row_groups

BYTES = 384 << 10
"""Of the channels that go through at a time. With 256 and 512 KB EfficientNet-B0 with a fifth of its weights took 0.90
and 0.89 of the time, MobileNetV3 0.95 and 0.96, and without a mask 0.95 and 0.96, 0.94 and 0.96 (batch 8, a Zen 5 with
1 MB of second cache)."""

_ROWS = 8
"""Channels at a time over planes are a multiple of this, over pixels of a vector."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A value whose channels go through two operations some at a time."""

    channels: int
    """At a time."""
    order: Array
    """All of the value's channels, in the order in which they go."""

    @property
    def parts(self) -> list[Array]:
        """The channels of each time."""
        return [self.order[at : at + self.channels] for at in range(0, len(self.order), self.channels)]


def chunks(sketch: Sketch, layout: str, images: int, lanes: int, item: int) -> dict[int, Chunk]:
    """By the number of the task that makes it, each value that is larger than `BYTES`, comes from a convolution of
    single pixels, and is read by nothing but the next task, which is a depthwise convolution.
    """
    readers = _readers(sketch)
    found = {}
    for number, (task, then) in enumerate(zip(sketch.tasks, sketch.tasks[1:], strict=False)):
        storage = int(task.output.flat[0, 0])
        if not (_pointwise(sketch, task) and _depthwise(then) and readers.get(storage) == [number + 1]):
            continue
        size = item * images * prod(task.output.pixels)
        times = -(-size * task.output.channels // BYTES)
        each = lanes if layout == "pixels" else _ROWS
        at_once = -(-task.output.channels // (times * each)) * each
        if at_once < task.output.channels:
            found[number] = Chunk(at_once, _order(sketch, task, layout))
    return found


def with_chunks(sketch: Sketch, found: Mapping[int, Chunk]) -> Sketch:
    """The same region, with memory for the channels that go through at a time. What these are made of lives as long as
    there are more of them to make."""
    if not found:
        return sketch
    storages = sketch.storages
    all_ = list(storages.all)
    for number, chunk in found.items():
        (made,) = sketch.tasks[number].output.storages
        all_[made] = replace(all_[made], channels=chunk.channels)
        for form in sketch.tasks[number].inputs:
            for one in form.storages:
                all_[one] = replace(all_[one], dies=max(all_[one].dies, number + 1))
    return replace(sketch, storages=replace(storages, all=all_))


def some_rows(layer: Convolution, rows: Array) -> Convolution:
    """A convolution's rows of some channels of its output; of a depthwise one those of its input too."""
    bias = None if layer.bias is None else layer.bias[rows]
    groups = len(rows) if layer.groups > 1 else 1
    return replace(layer, weight=layer.weight[rows], bias=bias, groups=groups)


def _readers(sketch: Sketch) -> dict[int, list[int]]:
    """Of each storage the numbers of the tasks that read it."""
    found: dict[int, list[int]] = {}
    for number, task in enumerate(sketch.tasks):
        for one in {one for form in task.inputs for one in form.storages}:
            found.setdefault(one, []).append(number)
    return found


def _pointwise(sketch: Sketch, task: Task) -> bool:
    """Whether a task is a convolution of single pixels and all channels, with nothing added to it."""
    if task.kind != "conv2d" or task.node.attrs.get("groups", 1) != 1 or len(task.inputs) > 1:
        return False
    plain = all(tuple(task.node.attrs[name]) == only for name, only in (("stride", (1, 1)), ("padding", (0, 0))))
    whole = task.output.channels == sketch.storages.all[int(task.output.flat[0, 0])].channels
    return plain and whole and prod(sketch.weight(task.node).shape[2:]) == 1


def _depthwise(task: Task) -> bool:
    """Whether a task is a convolution of each channel by itself, with nothing added to it."""
    if task.kind != "conv2d" or len(task.inputs) > 1:
        return False
    return bool(task.node.attrs.get("groups", 1) == task.inputs[0].channels == task.output.channels > 1)


def _order(sketch: Sketch, task: Task, layout: str) -> Array:
    """Over planes rows that share their columns follow one another; over pixels channels lie in the stream's order."""
    channels = np.arange(task.output.channels)
    if layout == "pixels":
        return channels
    groups = row_groups(sketch.weight(task.node))
    found: Array = np.concatenate([np.asarray(group.rows) for group in groups]) if groups else channels
    return found
