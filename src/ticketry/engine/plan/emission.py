"""A sketched region as operations of one layout: each task given to the layout's kernels, with its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ticketry.engine.cpu.program import Op
from ticketry.engine.plan.forms import Form
from ticketry.engine.plan.operations import Operations
from ticketry.engine.plan.sketch import Sketch, Task

Array = np.ndarray[Any, Any]


class Arena(Protocol):
    """A layout's memory: where the values of a region lie."""

    @property
    def bytes(self) -> int:
        """Working memory of a thread."""
        ...

    def value(self, form: Form) -> Any:
        """A value as the layout's operations take it; `UnsupportedError` if it cannot lie so."""
        ...

    def order(self, form: Form) -> Array | None:
        """The value's channels in the order in which they lie, None if that is their own."""
        ...


class Emission:
    """A region's operations on one block.

    Args:
        sketch: the region.
        arena: where its values lie.
        operations: the layout's.
        inputs: how many external tensors come in; those that go out follow them.
        last: numbers of the inputs whose channels are innermost in memory (torch's channels_last).

    Raises:
        UnsupportedError: the layout cannot run a task of the region.
    """

    def __init__(
        self, sketch: Sketch, arena: Arena, operations: Operations, inputs: int, last: Collection[int] = ()
    ) -> None:
        self.sketch, self.arena, self.operations = sketch, arena, operations
        self.inputs, self.last = inputs, last
        self.ops: list[Op] = []
        self.scratch = 0
        operations.reserve = self.reserve
        for task in sketch.tasks:
            label = task.kind if task.node is None else task.label
            ops = _EMIT[task.kind](self, task, [arena.value(form) for form in task.inputs])
            self.ops += [replace(op, label=label) for op in ops]

    @property
    def bytes(self) -> int:
        """Working memory of a thread."""
        return self.arena.bytes + 64 + self.scratch

    def reserve(self, size: int) -> int:
        """Memory behind all values, which every operation may use for itself."""
        self.scratch = max(self.scratch, size)
        return -(-self.arena.bytes // 64) * 64

    def output(self, task: Task) -> Any:
        assert task.output is not None
        return self.arena.value(task.output)

    def weight(self, task: Task, role: str) -> Array | None:
        """A weight of the task's node, None if it has none in that role."""
        assert task.node is not None
        name = task.node.weights.get(role)
        return None if name is None else self.sketch.graph.tensors[name].detach().cpu().float().numpy()

    def ordered(self, task: Task, role: str, form: Form) -> Array | None:
        """A weight with one entry a channel of a value, in the order in which those lie."""
        weight, order = self.weight(task, role), self.arena.order(form)
        return weight if weight is None or order is None else weight[order]


Strides = tuple[int, int, int, int]


def strides(form: Form, last: bool = False) -> Strides:
    """Element strides (image, channel, row, column) of a tensor that holds a value, as `memory` has it.

    It is contiguous, or its channels come last in memory.
    """
    channels, (height, width) = form.channels, form.pixels
    if form.labels == "pc" or last:
        return (channels * height * width, 1, width * channels, channels)
    return (channels * height * width, height * width, width, 1)


def memory(form: Form) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The contiguous tensor that a value is stored to: its shape without the batch, and the order of its axes that is
    the value's (the batch's axis 0 included); None if that is its own."""
    sizes = form.axes
    if form.labels in ("pc", "f"):
        return sizes, None
    order = [axis for axis, label in enumerate(form.labels) if label == "c"]
    order += [axis for axis, label in enumerate(form.labels) if label == "p"]
    if order == sorted(order):
        return sizes, None
    return tuple(sizes[axis] for axis in order), (0, *(order.index(axis) + 1 for axis in range(len(sizes))))


def _load(emission: Emission, task: Task, inputs: list[Any]) -> list[Op]:
    assert task.output is not None
    y, spread = emission.output(task), strides(task.output, task.number in emission.last)
    return emission.operations.load(task.number, spread, y)


def _store(emission: Emission, task: Task, inputs: list[Any]) -> list[Op]:
    number, spread = emission.inputs + task.number, strides(task.inputs[0])
    return emission.operations.store(number, spread, inputs[0])


def _copy(emission: Emission, task: Task, inputs: list[Any]) -> list[Op]:
    return emission.operations.apply(None, inputs[0], emission.output(task))


def geometry_of_product(sketch: Sketch, task: Task, arena: Arena) -> tuple[Array, dict[str, Any]]:
    """A convolution's weight in the order in which its channels lie, and how it slides.

    A linear layer is one of a single pixel, or of the whole plane behind a flattening.
    """
    assert task.node is not None
    assert task.output is not None
    node = task.node
    weight: Array = sketch.weight(node).detach().cpu().float().numpy()
    where: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    if node.op == "conv2d":
        where = {name: tuple(node.attrs[name]) for name in ("stride", "padding", "dilation")}
        where["groups"] = node.attrs["groups"]
    else:
        kernel = task.inputs[0].pixels if task.inputs[0].labels == "f" else (1, 1)
        weight = weight.reshape(weight.shape[0], -1, *kernel)
    rows, columns = arena.order(task.output), arena.order(task.inputs[0])
    weight = weight if rows is None else weight[rows]
    return (weight if columns is None or where["groups"] > 1 else weight[:, columns]), where


def _product(emission: Emission, task: Task, inputs: list[Any]) -> list[Op]:
    assert task.node is not None
    assert task.output is not None
    x, *residual = inputs
    weight, where = geometry_of_product(emission.sketch, task, emission.arena)
    return emission.operations.conv(
        x,
        emission.output(task),
        weight,
        emission.ordered(task, "bias", task.output),
        **where,
        act=task.node.attrs["act"],
        residual=residual[0] if residual else None,
    )


def _other(emission: Emission, task: Task, inputs: list[Any]) -> list[Op]:
    """All that has no weights of its own, or one a channel."""
    assert task.node is not None
    assert task.output is not None
    layout, node, y = emission.operations, task.node, emission.output(task)
    attrs, x = node.attrs, inputs[0]
    window = [tuple(attrs[name]) for name in ("kernel", "stride", "padding") if name in attrs]
    if node.op in ("add", "mul"):
        ops = layout.elementwise(node.op, x, inputs[1], y, attrs["act"])
    elif node.op == "act":
        ops = layout.apply(attrs["act"], x, y)
    elif node.op == "affine":
        scale, shift = (emission.ordered(task, role, task.output) for role in ("scale", "shift"))
        ops = layout.affine(x, y, scale, shift, attrs["act"])
    elif node.op == "layer_norm":
        scale, shift = (emission.ordered(task, role, task.output) for role in ("weight", "bias"))
        ops = layout.layer_norm(x, y, scale, shift, float(attrs["eps"]))
    elif node.op == "softmax":
        ops = layout.softmax(x, y)
    elif node.op == "max_pool2d":
        ops = layout.max_pool(x, y, *window, tuple(attrs["dilation"]))
    elif node.op == "avg_pool2d":
        ops = layout.avg_pool(x, y, *window, attrs["count_include_pad"])
    elif node.op == "global_avg_pool":
        ops = layout.global_mean(x, y)
    else:
        heads, size = task.inputs[0].planes.shape[:2]
        factor = size**-0.5 if attrs["scale"] is None else float(attrs["scale"])
        ops = layout.attention(*inputs, y, heads, factor, attrs["causal"])
    return ops


_EMIT: Mapping[str, Callable[[Emission, Task, list[Any]], list[Op]]] = {
    "load": _load,
    "store": _store,
    "copy": _copy,
    "conv2d": _product,
    "linear": _product,
    **dict.fromkeys(("add", "mul", "act", "affine", "layer_norm", "softmax"), _other),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "global_avg_pool", "attention"), _other),
}
