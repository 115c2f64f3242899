"""A sketched region as a program over planes: its memory laid out, and each task given to its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ticketry.engine.cpu import planes
from ticketry.engine.cpu.planes.geometry import Planes
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.engine.plan.forms import Form
from ticketry.engine.plan.sketch import Sketch, Task
from ticketry.engine.plan.storage import Arena

Array = np.ndarray[Any, Any]


@dataclass
class Emission:
    """A region's operations on blocks of so many images, and the memory they work in."""

    sketch: Sketch
    images: int
    target: Target
    inputs: int
    """External tensors: first those that come in, then those that go out."""
    ops: list[Op] = field(default_factory=list)
    scratch: int = 0

    def __post_init__(self) -> None:
        self.arena: Arena = self.sketch.storages.place(self.images)
        for task in self.sketch.tasks:
            self.ops += _EMIT[task.kind](self, task, [self.arena.planes(form) for form in task.inputs])

    @property
    def bytes(self) -> int:
        """Working memory of a thread."""
        return self.arena.bytes + self.scratch

    def output(self, task: Task) -> Planes:
        assert task.output is not None
        return self.arena.planes(task.output)

    def weight(self, task: Task, role: str) -> Array | None:
        assert task.node is not None
        name = task.node.weights.get(role)
        return None if name is None else self.sketch.graph.tensors[name].detach().cpu().float().numpy()

    def reserve(self, size: int) -> int:
        """Memory that one operation uses for itself; all use the same."""
        self.scratch = max(self.scratch, size)
        return self.arena.bytes


Strides = tuple[int, int, int, int]


def strides(form: Form) -> Strides:
    """Element strides (image, channel, row, column) of a contiguous tensor that holds a value, as `memory` has it."""
    channels, (height, width) = form.channels, form.pixels
    if form.labels == "pc":
        return (channels * height * width, 1, width * channels, channels)
    return (channels * height * width, height * width, width, 1)


def memory(form: Form) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The contiguous tensor that a value is stored to: its shape without the batch, and the order of its axes that is
    the value's (the batch's axis 0 included)."""
    sizes = form.axes
    if form.labels in ("pc", "f"):
        return sizes, tuple(range(len(sizes) + 1))
    order = [axis for axis, label in enumerate(form.labels) if label == "c"]
    order += [axis for axis, label in enumerate(form.labels) if label == "p"]
    return tuple(sizes[axis] for axis in order), (0, *(order.index(axis) + 1 for axis in range(len(sizes))))


def _load(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.output is not None
    return planes.load(task.number, strides(task.output), emission.output(task), target=emission.target, label="load")


def _store(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    number = emission.inputs + task.number
    return planes.store(number, strides(task.inputs[0]), inputs[0], target=emission.target, label="store")


def _product(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    """A convolution; a linear layer is one of a single pixel, or of the whole plane behind a flattening."""
    assert task.node is not None
    node, (x, *residual) = task.node, inputs
    weight = emission.weight(task, "weight")
    assert weight is not None
    where: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    if node.op == "conv2d":
        where = {name: tuple(node.attrs[name]) for name in ("stride", "padding", "dilation")}
        where["groups"] = node.attrs["groups"]
    else:
        kernel = task.inputs[0].pixels if task.inputs[0].labels == "f" else (1, 1)
        weight = weight.reshape(weight.shape[0], -1, *kernel)
    y = emission.output(task)
    return planes.conv(
        x,
        y,
        weight,
        emission.weight(task, "bias"),
        **where,
        act=node.attrs["act"],
        residual=residual[0] if residual else None,
        scratch=emission.reserve(planes.scratch_bytes(x, y, weight.shape[2:], where["stride"])),
        target=emission.target,
        label=task.label,
    )


def _pairwise(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    one, other = inputs
    act = task.node.attrs["act"]
    y = emission.output(task)
    return planes.elementwise(task.node.op, one, other, y, act, target=emission.target, label=task.label)


def _act(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    y = emission.output(task)
    return planes.apply(task.node.attrs["act"], inputs[0], y, target=emission.target, label=task.label)


def _affine(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    scale, shift = emission.weight(task, "scale"), emission.weight(task, "shift")
    y, act = emission.output(task), task.node.attrs["act"]
    return planes.affine(inputs[0], y, scale, shift, act, target=emission.target, label=task.label)


def _layer_norm(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    weight, bias = emission.weight(task, "weight"), emission.weight(task, "bias")
    y, eps = emission.output(task), float(task.node.attrs["eps"])
    return planes.layer_norm(inputs[0], y, weight, bias, eps, target=emission.target, label=task.label)


def _softmax(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    return planes.softmax(inputs[0], emission.output(task), target=emission.target, label=task.label)


def _pool(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    attrs, (x,), y = task.node.attrs, inputs, emission.output(task)
    common: dict[str, Any] = {"target": emission.target, "label": task.label}
    if task.node.op == "global_avg_pool":
        return planes.global_mean(x, y, **common)
    window = tuple(tuple(attrs[name]) for name in ("kernel", "stride", "padding"))
    if task.node.op == "max_pool2d":
        return planes.max_pool(x, y, *window, tuple(attrs["dilation"]), **common)
    return planes.avg_pool(x, y, *window, attrs["count_include_pad"], **common)


def _attention(emission: Emission, task: Task, inputs: list[Planes]) -> list[Op]:
    assert task.node is not None
    q, k, v = inputs
    heads, size = task.inputs[0].planes.shape[:2]
    scale = task.node.attrs["scale"]
    scale = size**-0.5 if scale is None else float(scale)
    y, causal = emission.output(task), task.node.attrs["causal"]
    return planes.attention(q, k, v, y, heads, scale, causal, target=emission.target, label=task.label)


_EMIT: Mapping[str, Callable[[Emission, Task, list[Planes]], list[Op]]] = {
    "load": _load,
    "store": _store,
    "conv2d": _product,
    "linear": _product,
    "add": _pairwise,
    "mul": _pairwise,
    "act": _act,
    "affine": _affine,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "global_avg_pool": _pool,
    "attention": _attention,
}


def elements(form: Form) -> int:
    """Elements of a value for one image."""
    return form.channels * prod(form.pixels)
