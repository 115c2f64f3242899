"""A region before its memory is laid out: which operations it has, on which values, lying how.

One rule for each native operation says whether this layout runs it, and what it needs of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ticketry.core.structure.groups import row_groups
from ticketry.engine.graph import Graph, Node
from ticketry.engine.plan import forms
from ticketry.engine.plan.forms import Form, UnsupportedError
from ticketry.engine.plan.storage import Storages

_SMALL_WINDOW = 7
"""Columns of the widest windows that kernels of pooling go over with vectors of positions."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to be done natively: a node, or a value that comes in ("load") or goes out ("store")."""

    kind: str
    label: str
    inputs: tuple[Form, ...]
    output: Form | None
    node: Node | None = None
    number: int = 0
    """Of a load or store: which of the region's inputs or outputs."""


@dataclass
class Sketch:
    """A region being planned."""

    graph: Graph
    storages: Storages = field(default_factory=Storages)
    tasks: list[Task] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)
    _groups: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def load(self, name: str, number: int) -> Form:
        """A value comes in from torch."""
        shape = self.graph.values[name].shape
        if shape is None or shape[0] is not None or self.graph.values[name].dtype != "float32":
            raise UnsupportedError("a value that is not float32 with the batch first")
        blank = forms.loaded(shape, 0)
        form = forms.loaded(shape, self.storages.add(blank.channels, blank.pixels, len(self.tasks)))
        self.storages.pin(form)
        self.tasks.append(Task("load", name, (), form, number=number))
        self.forms[name] = form
        return form

    def store(self, name: str, number: int) -> None:
        """A value goes out to torch."""
        form = self.forms[name]
        self.storages.read(form, len(self.tasks))
        self.storages.pin(form)
        self.tasks.append(Task("store", name, (form,), None, number=number))

    def add(self, node: Node) -> Form:
        """The node's value, and whatever has to be done for it.

        Raises:
            UnsupportedError: this layout has no way to run the node; nothing was changed.
        """
        rule = _RULES.get(node.op)
        if rule is None:
            raise UnsupportedError(f"no kernel for {node.op}")
        form = rule(self, node, [self.forms[name] for name in node.inputs])
        self.forms[node.output] = form
        return form

    def weight(self, node: Node, role: str = "weight") -> Tensor:
        return self.graph.tensors[node.weights[role]]

    def groups(self, node: Node) -> list[tuple[int, int]]:
        """Rows and columns of each group of the weight's rows that keep the same: looked at once, whoever asks."""
        name = node.weights["weight"]
        if name not in self._groups:
            self._groups[name] = [(len(one.rows), one.width) for one in row_groups(self.graph.tensors[name])]
        return self._groups[name]

    def products(self) -> list[tuple[Task, Node]]:
        """The convolutions and linear layers."""
        return [(task, task.node) for task in self.tasks if task.node is not None and task.kind in ("conv2d", "linear")]

    def make(self, node: Node, inputs: Sequence[Form], like: tuple[str, Sequence[int], tuple[int, int]]) -> Form:
        """A task with an output of its own: labels, channel axes and pixels."""
        labels, channels, pixels = like
        count = 1
        for size in channels:
            count *= size
        output = forms.fresh(labels, channels, pixels, self.storages.add(count, pixels, len(self.tasks)))
        self.tasks.append(Task(node.op, node.output, tuple(inputs), output, node))
        return output

    def run(self, node: Node, form: Form) -> Form:
        """A value whose positions follow one another: itself, or a copy where others may want a halo between rows."""
        if form.pixels[0] == 1:
            return form
        self.reads(form)
        self.storages.pin(form)
        channels = form.planes.shape[:-1]
        storage = self.storages.add(form.channels, form.pixels, len(self.tasks))
        output = forms.fresh(form.labels, channels, form.pixels, storage)
        self.storages.pin(output)
        self.tasks.append(Task("copy", node.output, (form,), output, node))
        return output

    def reads(self, form: Form, halo: int = 0) -> None:
        """The task that is added next reads a value."""
        self.storages.read(form, len(self.tasks), halo)


Rule = Callable[[Sketch, Node, "list[Form]"], Form]


def _lies_alike(one: Form, other: Form) -> bool:
    plain = one.pixels == other.pixels == (1, 1) and one.labels != "f" != other.labels
    return plain or (one.labels == other.labels and one.pixels == other.pixels)


def _image(form: Form) -> None:
    if form.labels != "cpp":
        raise UnsupportedError("images that lie otherwise than channel by channel")


def _conv2d(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    x, *residual = inputs
    _image(x)
    shape = sketch.graph.values[node.output].shape
    assert shape is not None
    pixels = (int(shape[2] or 0), int(shape[3] or 0))
    kernel = sketch.weight(node).shape[2:]
    halo = max(_reach(node, axis, kernel, x.pixels, pixels) for axis in range(2))
    return _product(sketch, node, x, residual, ("cpp", shape[1:2], pixels), halo, node.attrs["stride"] == [1, 1])


def _reach(node: Node, axis: int, kernel: Sequence[int], x: Sequence[int], y: Sequence[int]) -> int:
    """By how many positions the windows of a convolution or pooling reach over the input's ends."""
    stride, padding = node.attrs["stride"][axis], node.attrs["padding"][axis]
    dilation = node.attrs.get("dilation", (1, 1))[axis]
    behind = (y[axis] - 1) * stride + (kernel[axis] - 1) * dilation - padding - (x[axis] - 1)
    return max(0, int(padding), int(behind))


def _linear(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    x, *residual = inputs
    size = [sketch.weight(node).shape[0]]
    if x.labels == "f":
        return _product(sketch, node, x, residual, ("c", size, (1, 1)), 0, True)
    if x.labels[-1] != "c" or x.labels.count("c") != 1:
        raise UnsupportedError("features that are spread over several axes")
    return _product(sketch, node, x, residual, (x.labels, size, x.pixels), 0, True)


def _product(
    sketch: Sketch,
    node: Node,
    x: Form,
    residual: list[Form],
    like: tuple[str, Sequence[int | None], tuple[int, int]],
    halo: int,
    same_rows: bool,
) -> Form:
    """A convolution or linear layer, with a residual if there is one."""
    labels, channels, pixels = like
    for other in residual:
        if (other.labels, other.pixels) != (labels, pixels) and not (other.pixels == pixels == (1, 1)):
            raise UnsupportedError("a residual that lies otherwise")
    sketch.reads(x, halo)
    for other in residual:
        sketch.reads(other)
    y = sketch.make(node, [x, *residual], (labels, [int(size or 0) for size in channels], pixels))
    if same_rows:
        sketch.storages.same_rows(x, y)
    for other in residual:
        sketch.storages.alike([other, y])
        sketch.storages.one_order(other, y)
    if node.attrs.get("groups", 1) == x.channels == y.channels > 1:
        sketch.storages.one_order(x, y)
    elif node.attrs.get("groups", 1) > 1:
        sketch.storages.pin(x)
        sketch.storages.pin(y)
    return y


def _pairwise(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    one, other = inputs
    gate = sketch.graph.values[node.inputs[0]].shape != sketch.graph.values[node.inputs[1]].shape
    if one.labels == "f" or (gate and other.channels != one.channels) or not (gate or _lies_alike(one, other)):
        raise UnsupportedError("two values that lie differently")
    sketch.reads(one)
    sketch.reads(other)
    y = sketch.make(node, [one, other], (one.labels, one.planes.shape[:-1], one.pixels))
    sketch.storages.alike([one, y] if gate else [one, other, y])
    sketch.storages.one_order(one, other, y)
    return y


def _same(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    (x,) = inputs
    if x.labels == "f":
        raise UnsupportedError("a flattened value")
    sketch.reads(x)
    y = sketch.make(node, [x], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.alike([x, y])
    sketch.storages.one_order(x, y)
    return y


def _affine(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    if inputs[0].labels[0] != "c" or inputs[0].labels.count("c") != 1:
        raise UnsupportedError("channels that are not the first axis")
    return _same(sketch, node, inputs)


def _layer_norm(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    if inputs[0].labels[-1] != "c" or inputs[0].labels.count("c") != 1:
        raise UnsupportedError("a norm over positions")
    return _same(sketch, node, inputs)


def _softmax(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    labels = inputs[0].labels
    if labels.count("c") != 1 or labels[node.attrs["axis"] - 1] != "c":
        raise UnsupportedError("a softmax over positions")
    return _same(sketch, node, inputs)


def _pool(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    (x,) = inputs
    _image(x)
    shape = sketch.graph.values[node.output].shape
    assert shape is not None
    pixels = (int(shape[2] or 0), int(shape[3] or 0)) if len(shape) == 4 else (1, 1)
    # Pooling of few images is faster where windows end in the halo.
    kernel = node.attrs.get("kernel", (0, 0))
    sketch.reads(x, _reach(node, 1, kernel, x.pixels, pixels) if 0 < kernel[1] <= _SMALL_WINDOW else 0)
    y = sketch.make(node, [x], ("cpp" if len(shape) == 4 else "c", [x.channels], pixels))
    sketch.storages.one_order(x, y)
    return y


def _attention(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    if any(form.labels != "cpc" for form in inputs):
        raise UnsupportedError("heads whose tokens are no positions")
    inputs = [sketch.run(node, form) for form in inputs]
    q, k, v = inputs
    for form in inputs:
        sketch.reads(form)
        sketch.storages.pin(form)
    sketch.storages.alike([k, v])
    heads, size = v.planes.shape[:2]
    y = sketch.make(node, inputs, ("cpc", [heads, size], q.pixels))
    sketch.storages.pin(y)
    return sketch.run(node, y)


def _concat(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
    y = forms.joined(inputs, node.attrs["axis"])
    sketch.storages.alike(inputs)
    sketch.storages.pin(y)
    return y


def _view(made: Callable[[Node, Form], Form]) -> Rule:
    """An operation that is another list of the same planes."""

    def rule(sketch: Sketch, node: Node, inputs: list[Form]) -> Form:
        y = made(node, inputs[0])
        if not np.array_equal(y.flat, inputs[0].flat):
            sketch.storages.pin(inputs[0])
        return y

    return rule


_RULES: Mapping[str, Rule] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "add": _pairwise,
    "mul": _pairwise,
    "act": _same,
    "affine": _affine,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "global_avg_pool": _pool,
    "attention": _attention,
    "concat": _concat,
    "slice": _view(lambda node, x: forms.sliced(x, node.attrs["axis"], node.attrs["start"], node.attrs["stop"])),
    "flatten": _view(lambda node, x: forms.flattened(x)),
    "transpose": _view(lambda node, x: forms.transposed(x, node.attrs["axes"])),
    "reshape": _view(lambda node, x: forms.reshaped(x, node.attrs["shape"])),
    "channel_shuffle": _view(lambda node, x: forms.shuffled(x, node.attrs["groups"])),
}
