"""Adds nodes to a sketch: one rule for each native operation, applied to its inputs or to copies in a suitable
layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from ticketry_engine.ir import Node
from ticketry_engine.plan import rearrangement as tables
from ticketry_engine.plan import value_axes as forms
from ticketry_engine.plan.rearrangement import Rearranged, rearranged
from ticketry_engine.plan.sketch import Like, Sketch
from ticketry_engine.plan.value_axes import UnsupportedError, ValueForm

_SMALL_WINDOW = 7
"""Columns of the widest windows that kernels of pooling go over with vectors of positions."""

Rule = Callable[[Sketch, Node, "list[ValueForm]"], ValueForm]


def _lies_alike(one: ValueForm, other: ValueForm) -> bool:
    plain = one.pixels == other.pixels == (1, 1) and one.labels != "f" != other.labels
    return plain or (one.labels == other.labels and one.pixels == other.pixels)


def _image(form: ValueForm) -> None:
    if form.labels != "cpp":
        raise UnsupportedError("images that lie otherwise than channel by channel")


def _conv2d(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    x, *residual = inputs
    _image(x)
    rows, *_, height, width = sketch.weight(node).shape
    pixels = _pixels_of(sketch, node)
    halo = max(_reach(node, axis, (height, width), x.pixels, pixels) for axis in range(2))
    # A depthwise convolution reads its input without a halo (`taps`); other readers would process the halos, too.
    by_channel = node.attrs.get("groups", 1) == x.channels > 1
    sketch.reads(x, halo, 0 if by_channel else halo)
    return _product(sketch, node, x, residual, ("cpp", [rows], pixels), node.attrs["stride"] == [1, 1])


def _pixels_of(sketch: Sketch, node: Node) -> tuple[int, int]:
    """Return height and width of a node's output; (1, 1) for [N, C]."""
    shape = sketch.graph.values[node.output].shape or ()
    return (int(shape[2] or 0), int(shape[3] or 0)) if len(shape) == 4 else (1, 1)


def _reach(node: Node, axis: int, kernel: Sequence[int], x: Sequence[int], y: Sequence[int]) -> int:
    """Return by how many positions the windows of a convolution or pooling exceed the input."""
    stride, padding = node.attrs["stride"][axis], node.attrs["padding"][axis]
    dilation = node.attrs.get("dilation", (1, 1))[axis]
    behind = (y[axis] - 1) * stride + (kernel[axis] - 1) * dilation - padding - (x[axis] - 1)
    return max(0, int(padding), int(behind))


def _linear(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    x, *residual = inputs
    if x.labels != "f" and not _is_channels(x, -1):
        raise UnsupportedError("features that are spread over several axes")
    labels, pixels = ("c", (1, 1)) if x.labels == "f" else (x.labels, x.pixels)
    sketch.reads(x)
    return _product(sketch, node, x, residual, (labels, [sketch.weight(node).shape[0]], pixels), True)


def _product(
    sketch: Sketch,
    node: Node,
    x: ValueForm,
    residual: list[ValueForm],
    like: Like,
    same_rows: bool,
) -> ValueForm:
    """Add a convolution or linear layer, with its residual if there is one."""
    labels, _, pixels = like
    for other in residual:
        if (other.labels, other.pixels) != (labels, pixels) and not (other.pixels == pixels == (1, 1)):
            raise UnsupportedError("a residual that lies otherwise")
    for other in residual:
        sketch.reads(other)
    y = sketch.make(node, [x, *residual], like)
    if same_rows:
        sketch.storages.same_rows(x, y)
    for other in residual:
        sketch.storages.alike([other, y])
        sketch.storages.one_order(other, y)
        sketch.storages.may_lie_over(y, other, [x], once=False)
    if node.attrs.get("groups", 1) == x.channels == y.channels > 1:
        sketch.storages.one_order(x, y)
    elif node.attrs.get("groups", 1) > 1:
        sketch.storages.pin(x)
        sketch.storages.pin(y)
    return y


def _pairwise(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    one, other = inputs
    gate = sketch.graph.values[node.inputs[0]].shape != sketch.graph.values[node.inputs[1]].shape
    if one.labels == "f" or (gate and other.channels != one.channels) or not (gate or _lies_alike(one, other)):
        raise UnsupportedError("two values that lie differently")
    sketch.reads(one)
    sketch.reads(other)
    y = sketch.make(node, [one, other], (one.labels, one.planes.shape[:-1], one.pixels))
    sketch.storages.alike([one, y] if gate else [one, other, y])
    sketch.storages.one_order(one, other, y)
    sketch.storages.may_lie_over(y, one, [other], once=True)
    return y


def _same(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    if x.labels == "f":
        raise UnsupportedError("a flattened value")
    sketch.reads(x)
    y = sketch.make(node, [x], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.alike([x, y])
    sketch.storages.one_order(x, y)
    return y


def _over_last(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    """Add an operation on the last axis, head by head if there are several channel axes."""
    (x,) = inputs
    if node.attrs.get("axis", len(x.labels)) != len(x.labels) or x.labels[-1] != "c":
        raise UnsupportedError(f"a {node.op} over positions")
    if x.labels.count("c") == 1:
        return _same(sketch, node, inputs)
    sketch.reads(x)
    sketch.storages.pin(x)
    y = sketch.make(node, [x], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.alike([x, y])
    sketch.storages.pin(y)
    return y


def _with_constant(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    if x.labels == "f":
        raise UnsupportedError("a flattened value")
    shape = sketch.weight(node, "constant").shape
    sketch.reads(x)
    values = [x]
    if any(size > 1 for size, label in zip(shape, x.labels, strict=True) if label == "p"):
        values.append(sketch.constant(node, "constant", x, x.planes.shape[:-1]))
        sketch.storages.pin(x)
        sketch.reads(x)
        sketch.reads(values[1])
    y = sketch.make(node, values, (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.alike([*values, y])
    if len(values) > 1:
        sketch.storages.pin(y)
    else:
        sketch.storages.one_order(x, y)
    return y


def _rotary(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    shape = sketch.weight(node, "cos").shape
    heads = [size for size, label in zip(shape, x.labels, strict=False) if label == "c"][:-1]
    if x.labels[-1] != "c" or x.labels == "f" or any(size > 1 for size in heads):
        raise UnsupportedError("angles that differ between heads, or turn positions")
    cos, sin = (sketch.constant(node, role, x, [*heads, shape[-1]]) for role in ("cos", "sin"))
    for form in (x, cos, sin):
        sketch.reads(form)
    sketch.storages.pin(x)
    y = sketch.make(node, [x, cos, sin], (x.labels, x.planes.shape[:-1], x.pixels))
    sketch.storages.alike([x, y])
    sketch.storages.pin(y)
    return y


def _over_channels(axis: Callable[[Node], int], otherwise: str) -> Rule:
    """Return a rule for an operation that needs an axis to be the only channel axis."""

    def rule(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
        if not _is_channels(inputs[0], axis(node)):
            raise UnsupportedError(otherwise)
        return _same(sketch, node, inputs)

    return rule


def _softmax(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    """Add a softmax over the only channel axis, or over the last of several."""
    (x,) = inputs
    if _is_channels(x, int(node.attrs["axis"]) - 1):
        return _same(sketch, node, inputs)
    if x.pixels == (1, 1):
        raise UnsupportedError("a softmax of many short rows")  # as positions they are done together
    return _over_last(sketch, node, inputs)


def _is_channels(form: ValueForm, axis: int) -> bool:
    """Return whether an axis after the batch is the only channel axis."""
    return form.labels[axis] == "c" and form.labels.count("c") == 1


def _pool(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    (x,) = inputs
    _image(x)
    pixels = _pixels_of(sketch, node)
    # Pooling of few images is faster where windows end in the halo.
    kernel = node.attrs.get("kernel", (0, 0))
    sketch.reads(x, _reach(node, 1, kernel, x.pixels, pixels) if 0 < kernel[1] <= _SMALL_WINDOW else 0)
    y = sketch.make(node, [x], ("cpp" if node.attrs.get("keepdim", True) else "c", [x.channels], pixels))
    sketch.storages.one_order(x, y)
    return y


def _attention(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    if any(form.labels != "cpc" for form in inputs):
        raise UnsupportedError("heads whose tokens are no positions")
    inputs = [sketch.run(node, form) for form in inputs]
    q, k, v = inputs
    for form in inputs:
        sketch.reads(form)
        sketch.storages.pin(form)
    sketch.storages.alike([k, v])
    heads, size = q.planes.shape[0], v.planes.shape[1]
    y = sketch.make(node, inputs, ("cpc", [heads, size], q.pixels))
    sketch.storages.pin(y)
    return sketch.run(node, y)


def _window_attention(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    if any(form.labels != "pcpc" for form in inputs):
        raise UnsupportedError("windows whose tokens are no positions")
    for form in inputs:
        sketch.reads(form)
        sketch.storages.pin(form)
    q, k, v = inputs
    sketch.storages.alike([k, v])
    y = sketch.make(node, inputs, ("pcpc", v.planes.shape[:-1], q.pixels))
    sketch.storages.alike([q, y])
    sketch.storages.pin(y)
    return y


def _concat(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
    y = forms.joined(inputs, node.attrs["axis"])
    sketch.storages.alike(inputs)
    sketch.storages.pin(y)
    return y


def _by_view(made: Callable[[Node, ValueForm], ValueForm]) -> Rule:
    """Return a rule for an operation that only rearranges the list of planes."""

    def rule(sketch: Sketch, node: Node, inputs: list[ValueForm]) -> ValueForm:
        y = made(node, inputs[0])
        if not np.array_equal(y.flat, inputs[0].flat):
            sketch.storages.pin(inputs[0])
        return y

    return rule


RULES: Mapping[str, Rule] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "add": _pairwise,
    "mul": _pairwise,
    "act": _same,
    "affine": _over_channels(lambda node: 0, "channels that are not the first axis"),
    "layer_norm": _over_last,
    "rms_norm": _over_last,
    "softmax": _softmax,
    "add_constant": _with_constant,
    "mul_constant": _with_constant,
    "rotary": _rotary,
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "global_avg_pool"), _pool),
    "attention": _attention,
    "window_attention": _window_attention,
    "concat": _concat,
    "slice": _by_view(lambda node, x: forms.sliced(x, node.attrs["axis"], node.attrs["start"], node.attrs["stop"])),
    "flatten": _by_view(lambda node, x: forms.flattened(x)),
    "transpose": _by_view(lambda node, x: forms.transposed(x, node.attrs["axes"])),
    "reshape": _by_view(lambda node, x: forms.reshaped(x, node.attrs["shape"])),
    "channel_shuffle": _by_view(lambda node, x: forms.shuffled(x, node.attrs["groups"])),
}


# -- placing -----------------------------------------------------------------------------------------------------------


Value = ValueForm | Rearranged


def add(sketch: Sketch, node: Node) -> None:
    """Add a node to the sketch, with the copies it needs.

    Raises:
        UnsupportedError: if no layout can run the node; only unused copies may have been added.
    """
    if node.op not in RULES and node.op not in _VIEWS:
        raise UnsupportedError(f"no kernel for {node.op}")
    values = [sketch.forms[name] for name in node.inputs]
    try:
        sketch.forms[node.output] = _by_rule(sketch, node, values)
    except UnsupportedError as error:
        other = _VIEWS.get(node.op, _laid_anew)
        sketch.forms[node.output] = other(sketch, node, values, error)


def _by_rule(sketch: Sketch, node: Node, values: Sequence[Value]) -> ValueForm:
    planes = [value for value in values if isinstance(value, ValueForm)]
    if len(planes) < len(values) or node.op not in RULES:
        raise UnsupportedError("a value whose elements were moved")
    return RULES[node.op](sketch, node, planes)


# -- views -------------------------------------------------------------------------------------------------------------

_View = Callable[[Sketch, Node, Sequence[Value], UnsupportedError], Value]


def _view(made: Callable[[Node, Rearranged], Rearranged]) -> _View:
    def view(sketch: Sketch, node: Node, values: Sequence[Value], _: UnsupportedError) -> Rearranged:
        return made(node, rearranged(values[0], sketch.storages))

    return view


def _joined(sketch: Sketch, node: Node, values: Sequence[Value], error: UnsupportedError) -> Value:
    """Concatenate values. Those stored as planes stay in place if an operation reads all planes; the others are
    moved."""
    if like := next((value for value in values if isinstance(value, ValueForm)), None):
        axis, labels = node.attrs["axis"], like.labels
        if labels[axis - 1 : axis] == "c" and not _moved_on(sketch, node.output):
            with contextlib.suppress(UnsupportedError):
                return RULES["concat"](sketch, node, [sketch.laid(node, one, labels, like.pixels) for one in values])
    several = [rearranged(value, sketch.storages) for value in values]
    return tables.joined(several, node.attrs["axis"], sketch.storages)


def _moved_on(sketch: Sketch, value: str) -> bool:
    """Return whether an operation that reads the value moves its elements again."""
    return any(value in one.inputs and one.op in _VIEWS for one in sketch.graph.nodes)


_VIEWS: Mapping[str, _View] = {
    "concat": _joined,
    "slice": _view(lambda node, x: tables.sliced(x, node.attrs["axis"], node.attrs["start"], node.attrs["stop"])),
    "flatten": _view(lambda node, x: tables.flattened(x)),
    "transpose": _view(lambda node, x: tables.transposed(x, node.attrs["axes"])),
    "reshape": _view(lambda node, x: tables.reshaped(x, node.attrs["shape"])),
    "channel_shuffle": _view(lambda node, x: tables.shuffled(x, node.attrs["groups"])),
    "pad": _view(lambda node, x: tables.padded(x, node.attrs["before"], node.attrs["after"])),
}

VIEWS = frozenset(_VIEWS)
"""Operations that make nothing but another order of what there is, and zeros."""

# -- what computes -----------------------------------------------------------------------------------------------------

_ROW_BY_ROW = frozenset({"linear", "layer_norm", "rms_norm", "softmax"})
_ON_IMAGES = frozenset({"conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool"})


def _laid_anew(sketch: Sketch, node: Node, values: Sequence[Value], error: UnsupportedError) -> Value:
    """Run the node on copies of its inputs in the layout it needs; raise the error if that is impossible."""
    labels = _labels(sketch, node, values)
    rank = len(values[0].axes)
    if labels is None or any(len(value.axes) != rank for value in values):
        raise error
    together = None
    if labels.count("p") > 2:
        values, labels, together = [_two_positions(sketch, value) for value in values], "ppc", values[0].axes
        if "axis" in node.attrs:
            node = replace(node, attrs={**node.attrs, "axis": len(labels)})
    first = sketch.laid(node, values[0], labels)
    same = first.pixels if node.op not in ("attention", "window_attention") and not _is_gate(values) else None
    laid = [first, *(sketch.laid(node, value, labels, same) for value in values[1:])]
    if all(one is other for one, other in zip(laid, values, strict=True)):
        raise error
    made = RULES[node.op](sketch, node, laid)
    if together is None:
        return made
    apart = rearranged(made, sketch.storages)
    return apart.view(apart.where.reshape(*together[:-1], -1))


def _two_positions(sketch: Sketch, value: Value) -> Rearranged:
    """Return a value of several position axes and one channel axis with its positions reshaped to two axes."""
    table = rearranged(value, sketch.storages)
    first, *rest, channels = table.axes
    return replace(table, where=table.where.reshape(first, prod(rest), channels))


def _is_gate(values: Sequence[Value]) -> bool:
    return len(values) == 2 and values[0].axes != values[1].axes


def _labels(sketch: Sketch, node: Node, values: Sequence[Value]) -> str | None:
    """Return the axis labels that the node's inputs need; None if unknown."""
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
    if _is_gate(values):
        return "cpp"
    known = [value.labels for value in values if isinstance(value, ValueForm) and value.labels != "f"]
    if known:
        return known[0]
    return rows if rank <= 3 or not node.weights else None  # a constant has the value's own axes
