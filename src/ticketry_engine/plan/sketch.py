"""Translates the nodes of a region to tasks on values whose axes are assigned to channels and pixels.

The values do not have places in memory yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from ticketry_engine.ir import Graph, Node
from ticketry_engine.plan.storage import (
    Planned,
    Rearranged,
    Storages,
    UnsupportedError,
    ValueForm,
    as_rearranged,
    as_whole_planes,
    join_channels,
    join_rearranged,
    new_value,
    region_input,
    source_table,
    value_of_all_planes,
)
from ticketry_engine.support.row_groups import row_groups

Like = tuple[str, Sequence[int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class RegionTask:
    """One operation of a subgraph: the operation of a node, a load or store of a tensor, or a copy of elements."""

    kind: str
    label: str
    inputs: tuple[ValueForm, ...]
    output: ValueForm
    """The value that the task computes; for a store, the value that it stores."""
    node: Node
    number: int = 0
    """In a load or store, the number of the region's input or output."""
    where: Planned | None = None
    """In a gather, a table [channels, pixels] of the source of each element, as in `Rearranged.where`."""


@dataclass
class Sketch:
    """A subgraph as tasks on tensors whose axes are assigned to channels and pixels, but which have no memory yet."""

    graph: Graph
    storages: Storages = field(default_factory=Storages)
    tasks: list[RegionTask] = field(default_factory=list)
    forms: dict[str, ValueForm | Rearranged] = field(default_factory=dict)
    """By name of a value: its planes or, if the value only rearranges elements, the table of their sources."""
    _constants: dict[tuple[str, str, tuple[int, int]], ValueForm] = field(default_factory=dict)
    _groups: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _copies: dict[tuple[int, str, tuple[int, int]], tuple[Rearranged, ValueForm]] = field(default_factory=dict)
    """(id of a rearranged value, labels, pixels) -> (the value, its copy).

    The reference to the value keeps its id unique."""

    def add_load(self, name: str, number: int) -> ValueForm:
        """Add a task that loads the value `name` from the subgraph's input tensor with the number `number`."""
        shape = self.graph.values[name].shape
        if shape is None or shape[0] is not None or self.graph.values[name].dtype != "float32":
            raise UnsupportedError("a value that is not float32 with the batch first")
        blank = region_input(shape, 0)
        form = region_input(shape, self.storages.add_storage(blank.channels, blank.pixels, len(self.tasks)))
        self.storages.pin_channel_order(form)
        self.tasks.append(RegionTask("load", "load", (), form, Node("load", (), name), number))
        self.forms[name] = form
        return form

    def add_store(self, name: str, number: int) -> None:
        """Add a task that stores the value `name` to the subgraph's output tensor with the number `number`."""
        form = self.forms[name]
        if isinstance(form, Rearranged):
            labels = ("c" * (len(form.axes) - 2) + "pp")[-len(form.axes) :]
            form = self.as_planes(Node("store", (name,), ""), form, labels)
        self.storages.record_read(form, len(self.tasks))
        self.storages.pin_channel_order(form)
        self.tasks.append(RegionTask("store", "store", (form,), form, Node("store", (name,), ""), number))

    def add_constant(self, node: Node, role: str, like: ValueForm, channels: Sequence[int]) -> ValueForm:
        """Return the weight `role` of a node as a tensor with the axis labels and pixels of `like`.

        `channels` are the sizes of its channel axes. Its channels are never reordered.
        """
        key = (node.weights[role], f"{like.labels} {list(channels)}", like.pixels)
        if key not in self._constants:
            held = Node("constant", (), node.weights[role], {}, {"constant": node.weights[role]})
            self._constants[key] = self.add_task(held, [], (like.labels, channels, like.pixels))
            self.storages.pin_channel_order(self._constants[key])
        self.storages.require_equal_geometry([like, self._constants[key]])
        return self._constants[key]

    def weight(self, node: Node, role: str = "weight") -> Tensor:
        return self.graph.tensors[node.weights[role]]

    def row_group_sizes(self, node: Node) -> list[tuple[int, int]]:
        """Return (number of rows, number of columns) of each group of rows with equal columns in the node's weight."""
        name = node.weights["weight"]
        if name not in self._groups:
            self._groups[name] = [(len(one.rows), one.width) for one in row_groups(self.graph.tensors[name])]
        return self._groups[name]

    def layer_tasks(self) -> list[tuple[RegionTask, Node]]:
        """Return (task, its node) for each convolution and linear layer."""
        return [(task, task.node) for task in self.tasks if task.kind in ("conv2d", "linear")]

    def add_task(self, node: Node, inputs: Sequence[ValueForm], like: Like, kind: str = "") -> ValueForm:
        """Add a task and return its output.

        `like` is (axis labels, sizes of the channel axes, pixels) of the output.
        """
        labels, channels, pixels = like
        storage = self.storages.add_storage(prod(channels), pixels, len(self.tasks))
        output = new_value(labels, channels, pixels, storage)
        self.tasks.append(RegionTask(kind or node.op, node.output, tuple(inputs), output, node))
        return output

    def without_row_gaps(self, node: Node, form: ValueForm) -> ValueForm:
        """Return `form` without zeros (halos) between the rows of an image; add a copy if it has several rows."""
        if form.pixels[0] == 1:
            return form
        self.record_read(form)
        self.storages.pin_channel_order(form)
        output = self.add_task(node, [form], (form.labels, form.planes.shape[:-1], form.pixels), "copy")
        self.storages.pin_channel_order(output)
        return output

    def as_planes(
        self, node: Node, value: ValueForm | Rearranged, labels: str, pixels: tuple[int, int] | None = None
    ) -> ValueForm:
        """Return `value` with the axis labels `labels` and images of the size `pixels`; add a copy if necessary.

        `labels` has "c" (channels) or "p" (pixels) for each axis except the batch.
        """
        if isinstance(value, ValueForm) and value.labels == labels and pixels in (None, value.pixels):
            return value
        table = as_rearranged(value, self.storages)
        if len(labels) != len(table.axes):
            raise UnsupportedError(f"a value of {len(table.axes) + 1} axes")
        found = as_whole_planes(table, labels, self.storages)
        if found is not None and pixels in (None, found.pixels):
            self.storages.pin_channel_order(found)
            return found
        where, channels, size = source_table(table, labels)
        size = size if pixels is None else pixels
        if prod(size) != where.shape[1]:
            raise UnsupportedError("two values in different layouts")
        key = (id(value), labels, size)
        if isinstance(value, Rearranged) and key in self._copies:
            return self._copies[key][1]
        made = self._add_gather(node, table, where, (labels, channels, size))
        if isinstance(value, Rearranged):
            self._copies[key] = (value, made)
        return made

    def _add_gather(self, node: Node, table: Rearranged, where: Planned, like: Like) -> ValueForm:
        sources = [value_of_all_planes(number, self.storages) for number in table.sources]
        for source in sources:
            self.record_read(source)
        made = self.add_task(node, sources, like, "gather")
        self.tasks[-1] = replace(self.tasks[-1], where=where)
        channels = where // prod(sources[0].pixels)
        same = len(sources) == 1 and made.channels == sources[0].channels
        if same and bool(((channels == np.arange(len(where))[:, None]) | (where < 0)).all()):
            self.storages.require_equal_order(sources[0], made)
            return made
        for form in (*sources, made):
            self.storages.pin_channel_order(form)
        return made

    def record_read(self, form: ValueForm, halo: int = 0, halo_of_few: int | None = None) -> None:
        """Record that the next task reads a tensor with `halo` zeros around each channel's image.

        If there are too few images to fill a vector register with one pixel of each, `halo_of_few` replaces `halo`.
        """
        self.storages.record_read(form, len(self.tasks), halo, halo_of_few)


# -- rules that add a node of each native operation to a sketch --------------------------------------------------------


_SMALL_WINDOW = 7
"""Width of the widest pooling windows for which kernels use vectors of consecutive pixels."""

Rule = Callable[[Sketch, Node, "list[ValueForm]"], ValueForm]


def _have_equal_axes_and_pixels(one: ValueForm, other: ValueForm) -> bool:
    plain = one.pixels == other.pixels == (1, 1) and one.labels != "f" != other.labels
    return plain or (one.labels == other.labels and one.pixels == other.pixels)


def _require_image(form: ValueForm) -> None:
    if form.labels != "cpp":
        raise UnsupportedError("images that are not stored channel by channel")


def _add_conv2d(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    x, *residual = inputs
    _require_image(x)
    rows, *_, height, width = sketch.weight(node).shape
    pixels = _output_pixels(sketch, node)
    halo = max(_required_halo(node, axis, (height, width), x.pixels, pixels) for axis in range(2))
    # A depthwise convolution reads its input without a halo (`taps`); other readers would process the halos, too.
    by_channel = node.attrs.get("groups", 1) == x.channels > 1
    sketch.record_read(x, halo, 0 if by_channel else halo)
    return _add_layer(sketch, node, x, residual, ("cpp", [rows], pixels), node.attrs["stride"] == [1, 1])


def _output_pixels(sketch: Sketch, node: Node) -> tuple[int, int]:
    """Return (height, width) of a node's output; (1, 1) if the output is no image."""
    shape = sketch.graph.values[node.output].shape or ()
    return (int(shape[2] or 0), int(shape[3] or 0)) if len(shape) == 4 else (1, 1)


def _required_halo(node: Node, axis: int, kernel: Sequence[int], x: Sequence[int], y: Sequence[int]) -> int:
    """Return how many zeros a sliding window needs around an image along `axis`.

    `kernel`, `x` and `y` are the (height, width) of the window, the input and the output.
    """
    stride, padding = node.attrs["stride"][axis], node.attrs["padding"][axis]
    dilation = node.attrs.get("dilation", (1, 1))[axis]
    behind = (y[axis] - 1) * stride + (kernel[axis] - 1) * dilation - padding - (x[axis] - 1)
    return max(0, int(padding), int(behind))


def _add_linear(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    x, *residual = inputs
    if x.labels != "f" and not _is_only_channel_axis(x, -1):
        raise UnsupportedError("features that are spread over several axes")
    labels, pixels = ("c", (1, 1)) if x.labels == "f" else (x.labels, x.pixels)
    sketch.record_read(x)
    return _add_layer(sketch, node, x, residual, (labels, [sketch.weight(node).shape[0]], pixels), True)


def _add_layer(
    sketch: Sketch,
    node: Node,
    x: ValueForm,
    residual: list[ValueForm],
    like: Like,
    same_rows: bool,
) -> ValueForm:
    """Add a convolution or linear layer and return its output.

    `like` is (axis labels, sizes of the channel axes, pixels) of the output. If `same_rows`, the rows of input and
    output must have equal distances in memory.
    """
    labels, _, pixels = like
    for other in residual:
        if (other.labels, other.pixels) != (labels, pixels) and not (other.pixels == pixels == (1, 1)):
            raise UnsupportedError("a residual in another layout")
    for other in residual:
        sketch.record_read(other)
    y = sketch.add_task(node, [x, *residual], like)
    if same_rows:
        sketch.storages.require_equal_row_distances(x, y)
    for other in residual:
        sketch.storages.require_equal_geometry([other, y])
        sketch.storages.require_equal_order(other, y)
        sketch.storages.allow_overwriting(y, other, [x], once=False)
    if node.attrs.get("groups", 1) == x.channels == y.channels > 1:
        sketch.storages.require_equal_order(x, y)
    elif node.attrs.get("groups", 1) > 1:
        sketch.storages.pin_channel_order(x)
        sketch.storages.pin_channel_order(y)
    return y


def _add_pairwise_operation(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    one, other = inputs
    gate = sketch.graph.values[node.inputs[0]].shape != sketch.graph.values[node.inputs[1]].shape
    if (
        one.labels == "f"
        or (gate and other.channels != one.channels)
        or not (gate or _have_equal_axes_and_pixels(one, other))
    ):
        raise UnsupportedError("two values in different layouts")
    sketch.record_read(one)
    sketch.record_read(other)
    y = sketch.add_task(node, [one, other], (one.labels, one.planes.shape[:-1], one.pixels))
    sketch.storages.require_equal_geometry([one, y] if gate else [one, other, y])
    sketch.storages.require_equal_order(one, other, y)
    sketch.storages.allow_overwriting(y, one, [other], once=True)
    return y


def _add_pointwise(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    if x.labels == "f":
        raise UnsupportedError("a flattened value")
    sketch.record_read(x)
    y = sketch.add_task(node, [x], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.require_equal_geometry([x, y])
    sketch.storages.require_equal_order(x, y)
    return y


def _add_over_last_axis(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    """Add an operation over the last axis; if there are several channel axes, each attention head is separate."""
    (x,) = inputs
    if node.attrs.get("axis", len(x.labels)) != len(x.labels) or x.labels[-1] != "c":
        raise UnsupportedError(f"a {node.op} over positions")
    if x.labels.count("c") == 1:
        return _add_pointwise(sketch, node, inputs)
    sketch.record_read(x)
    sketch.storages.pin_channel_order(x)
    y = sketch.add_task(node, [x], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.require_equal_geometry([x, y])
    sketch.storages.pin_channel_order(y)
    return y


def _add_with_constant(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    if x.labels == "f":
        raise UnsupportedError("a flattened value")
    shape = sketch.weight(node, "constant").shape
    sketch.record_read(x)
    values = [x]
    if any(size > 1 for size, label in zip(shape, x.labels, strict=True) if label == "p"):
        values.append(sketch.add_constant(node, "constant", x, x.planes.shape[:-1]))
        sketch.storages.pin_channel_order(x)
        sketch.record_read(x)
        sketch.record_read(values[1])
    y = sketch.add_task(node, values, (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.require_equal_geometry([*values, y])
    if len(values) > 1:
        sketch.storages.pin_channel_order(y)
    else:
        sketch.storages.require_equal_order(x, y)
    return y


def _add_rotary(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    shape = sketch.weight(node, "cos").shape
    heads = [size for size, label in zip(shape, x.labels, strict=False) if label == "c"][:-1]
    if x.labels[-1] != "c" or x.labels == "f" or any(size > 1 for size in heads):
        raise UnsupportedError("angles that differ between heads, or turn positions")
    cos, sin = (sketch.add_constant(node, role, x, [*heads, shape[-1]]) for role in ("cos", "sin"))
    for form in (x, cos, sin):
        sketch.record_read(form)
    sketch.storages.pin_channel_order(x)
    y = sketch.add_task(node, [x, cos, sin], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.require_equal_geometry([x, y])
    sketch.storages.pin_channel_order(y)
    return y


def _add_affine(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    if not _is_only_channel_axis(inputs[0], 0):
        raise UnsupportedError("channels that are not the first axis")
    return _add_pointwise(sketch, node, inputs)


def _add_softmax(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    """Add a softmax over the only channel axis, or over the last axis."""
    (x,) = inputs
    if _is_only_channel_axis(x, int(node.attrs["axis"]) - 1):
        return _add_pointwise(sketch, node, inputs)
    if x.pixels == (1, 1):
        raise UnsupportedError("a softmax of many short rows")  # as positions they are done together
    return _add_over_last_axis(sketch, node, inputs)


def _is_only_channel_axis(form: ValueForm, axis: int) -> bool:
    """Return whether `axis`, where 0 is the first axis after the batch, is the only channel axis."""
    return form.labels[axis] == "c" and form.labels.count("c") == 1


def _add_pool(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    _require_image(x)
    pixels = _output_pixels(sketch, node)
    # Pooling of few images is faster where windows end in the halo.
    kernel = node.attrs.get("kernel", (0, 0))
    sketch.record_read(x, _required_halo(node, 1, kernel, x.pixels, pixels) if 0 < kernel[1] <= _SMALL_WINDOW else 0)
    y = sketch.add_task(node, [x], ("cpp" if node.attrs.get("keepdim", True) else "c", [x.channels], pixels))
    sketch.storages.require_equal_order(x, y)
    return y


def _add_attention(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    if any(form.labels != "cpc" for form in inputs):
        raise UnsupportedError("heads whose tokens are no positions")
    inputs = [sketch.without_row_gaps(node, form) for form in inputs]
    q, k, v = inputs
    for form in inputs:
        sketch.record_read(form)
        sketch.storages.pin_channel_order(form)
    sketch.storages.require_equal_geometry([k, v])
    heads, size = q.planes.shape[0], v.planes.shape[1]
    y = sketch.add_task(node, inputs, ("cpc", [heads, size], q.pixels))
    sketch.storages.pin_channel_order(y)
    return sketch.without_row_gaps(node, y)


def _add_window_attention(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    if any(form.labels != "pcpc" for form in inputs):
        raise UnsupportedError("windows whose tokens are no positions")
    for form in inputs:
        sketch.record_read(form)
        sketch.storages.pin_channel_order(form)
    q, k, v = inputs
    sketch.storages.require_equal_geometry([k, v])
    y = sketch.add_task(node, inputs, ("pcpc", v.planes.shape[:-1], q.pixels))
    sketch.storages.require_equal_geometry([q, y])
    sketch.storages.pin_channel_order(y)
    return y


def _add_concat(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    y = join_channels(inputs, node.attrs["axis"])
    sketch.storages.require_equal_geometry(inputs)
    sketch.storages.pin_channel_order(y)
    return y


def _make_rule_without_copies(view_of: Callable[[Node, ValueForm], ValueForm]) -> Rule:
    """Return a function that adds an operation which moves no data.

    `view_of` is a function from (node, input) to the output, which uses the memory of the input.
    """

    def add_view(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
        y = view_of(node, inputs[0])
        if not np.array_equal(y.flat, inputs[0].flat):
            sketch.storages.pin_channel_order(inputs[0])
        return y

    return add_view


_MOVES: Mapping[str, Callable[[Node, Any], Any]] = {
    "slice": lambda node, x: x.sliced(node.attrs["axis"], node.attrs["start"], node.attrs["stop"]),
    "flatten": lambda node, x: x.flattened(),
    "transpose": lambda node, x: x.transposed(node.attrs["axes"]),
    "reshape": lambda node, x: x.reshaped(node.attrs["shape"]),
    "channel_shuffle": lambda node, x: x.shuffled(node.attrs["groups"]),
}
"""By operation: the function that returns the operation's view of a `ValueForm` or `Rearranged`."""

RULES: Mapping[str, Rule] = {
    "conv2d": _add_conv2d,
    "linear": _add_linear,
    "add": _add_pairwise_operation,
    "mul": _add_pairwise_operation,
    "act": _add_pointwise,
    "affine": _add_affine,
    "layer_norm": _add_over_last_axis,
    "rms_norm": _add_over_last_axis,
    "softmax": _add_softmax,
    "add_constant": _add_with_constant,
    "mul_constant": _add_with_constant,
    "rotary": _add_rotary,
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "global_avg_pool"), _add_pool),
    "attention": _add_attention,
    "window_attention": _add_window_attention,
    "concat": _add_concat,
    **{op: _make_rule_without_copies(made) for op, made in _MOVES.items()},
}


Value = ValueForm | Rearranged


def add_node(sketch: Sketch, node: Node) -> None:
    """Add a node, with copies of its inputs if necessary; raise `UnsupportedError` if kernels cannot run the node."""
    if node.op not in RULES and node.op not in _VIEWS:
        raise UnsupportedError(f"no kernel for {node.op}")
    values = [sketch.forms[name] for name in node.inputs]
    try:
        planes = [value for value in values if isinstance(value, ValueForm)]
        if len(planes) < len(values) or node.op not in RULES:
            raise UnsupportedError("a value whose elements were moved")
        sketch.forms[node.output] = RULES[node.op](sketch, node, planes)
    except UnsupportedError as error:
        other = _VIEWS.get(node.op, _apply_on_copies)
        sketch.forms[node.output] = other(sketch, node, values, error)


_View = Callable[[Sketch, Node, Sequence[Value], UnsupportedError], Value]


def _make_rearranging_rule(view_of: Callable[[Node, Rearranged], Rearranged]) -> _View:
    def add_rearranged(sketch: Sketch, node: Node, values: Sequence[Value], _: UnsupportedError) -> Rearranged:
        return view_of(node, as_rearranged(values[0], sketch.storages))

    return add_rearranged


def _concatenate(sketch: Sketch, node: Node, values: Sequence[Value], error: UnsupportedError) -> Value:
    """Return the concatenated values as channels in memory, or else as a table that says where each element is.

    The table is used if the values cannot be stored as channels, or if the next node only rearranges elements.
    """
    if like := next((value for value in values if isinstance(value, ValueForm)), None):
        axis, labels = node.attrs["axis"], like.labels
        moved = any(node.output in one.inputs and one.op in _VIEWS for one in sketch.graph.nodes)
        if labels[axis - 1 : axis] == "c" and not moved:
            with contextlib.suppress(UnsupportedError):
                return RULES["concat"](
                    sketch, node, [sketch.as_planes(node, one, labels, like.pixels) for one in values]
                )
    several = [as_rearranged(value, sketch.storages) for value in values]
    return join_rearranged(several, node.attrs["axis"], sketch.storages)


_VIEWS: Mapping[str, _View] = {
    "concat": _concatenate,
    "pad": _make_rearranging_rule(lambda node, x: x.padded(node.attrs["before"], node.attrs["after"])),
    **{op: _make_rearranging_rule(made) for op, made in _MOVES.items()},
}

VIEWS = frozenset(_VIEWS)
"""Names of the operations that only move elements or insert zeros."""

# -- operations that compute, on copies of their inputs ----------------------------------------------------------------

_ROW_BY_ROW = frozenset({"linear", "layer_norm", "rms_norm", "softmax"})
_ON_IMAGES = frozenset({"conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool"})


def _apply_on_copies(sketch: Sketch, node: Node, values: Sequence[Value], error: UnsupportedError) -> Value:
    """Add the node on copies of its inputs that have suitable axes for it; raise `error` if that is impossible."""
    labels = _required_labels(sketch, node, values)
    rank = len(values[0].axes)
    if labels is None or any(len(value.axes) != rank for value in values):
        raise error
    together = None
    if labels.count("p") > 2:
        values, labels, together = [_with_two_pixel_axes(sketch, value) for value in values], "ppc", values[0].axes
        if "axis" in node.attrs:
            node = replace(node, attrs={**node.attrs, "axis": len(labels)})
    first = sketch.as_planes(node, values[0], labels)
    same = (
        first.pixels
        if node.op not in ("attention", "window_attention") and not _have_different_shapes(values)
        else None
    )
    laid = [first, *(sketch.as_planes(node, value, labels, same) for value in values[1:])]
    if all(one is other for one, other in zip(laid, values, strict=True)):
        raise error
    made = RULES[node.op](sketch, node, laid)
    if together is None:
        return made
    apart = as_rearranged(made, sketch.storages)
    return apart.with_sources(apart.where.reshape(*together[:-1], -1))


def _with_two_pixel_axes(sketch: Sketch, value: Value) -> Rearranged:
    """Return a value of several pixel axes and one channel axis, reshaped so that it has two pixel axes."""
    table = as_rearranged(value, sketch.storages)
    first, *rest, channels = table.axes
    return replace(table, where=table.where.reshape(first, prod(rest), channels))


def _have_different_shapes(values: Sequence[Value]) -> bool:
    return len(values) == 2 and values[0].axes != values[1].axes


def _required_labels(sketch: Sketch, node: Node, values: Sequence[Value]) -> str | None:
    """Return the axis labels that the inputs of a node must have; None if the node can run with no labels.

    A label is "c" (channels) or "p" (pixels) for each axis except the batch.
    """
    rank = len(values[0].axes)
    rows = "p" * (rank - 1) + "c"
    if node.op in _ROW_BY_ROW:
        return rows if node.attrs.get("axis", rank) == rank else None
    if node.op in _ON_IMAGES:
        return "cpp" if rank == 3 else None
    if node.op == "affine":
        return "c" + "p" * (rank - 1) if rank <= 3 else None
    if node.op in ("attention", "window_attention"):
        return "cpc" if node.op == "attention" else "pcpc"
    if node.op == "rotary":
        angles = sketch.weight(node, "cos").shape
        return "".join("p" if size > 1 else "c" for size in angles[:-1]) + "c"
    if _have_different_shapes(values):
        return "cpp"
    known = [value.labels for value in values if isinstance(value, ValueForm) and value.labels != "f"]
    if known:
        return known[0]
    return rows if rank <= 3 or not node.weights else None  # a constant has the value's own axes
