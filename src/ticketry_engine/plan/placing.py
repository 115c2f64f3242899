"""Adds a node to a region: by its rule where its inputs lie as the rule wants them, else on a copy that does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

from ticketry_engine.ir import Node
from ticketry_engine.plan import rearrangement as tables
from ticketry_engine.plan.rearrangement import Rearranged, rearranged
from ticketry_engine.plan.rules import RULES
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.value_axes import Form, UnsupportedError

Value = Form | Rearranged


def add(sketch: Sketch, node: Node) -> None:
    """The node's value, and whatever has to be done for it.

    Raises:
        UnsupportedError: the layouts have no way to run the node; at most copies were added that nothing reads.
    """
    if node.op not in RULES and node.op not in _VIEWS:
        raise UnsupportedError(f"no kernel for {node.op}")
    values = [sketch.forms[name] for name in node.inputs]
    try:
        sketch.forms[node.output] = _by_rule(sketch, node, values)
    except UnsupportedError as error:
        other = _VIEWS.get(node.op, _laid_anew)
        sketch.forms[node.output] = other(sketch, node, values, error)


def _by_rule(sketch: Sketch, node: Node, values: Sequence[Value]) -> Form:
    planes = [value for value in values if isinstance(value, Form)]
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
    """What lies in planes stays where it is, if something computes with the planes of all: moved is the rest alone."""
    if like := next((value for value in values if isinstance(value, Form)), None):
        axis, labels = node.attrs["axis"], like.labels
        if labels[axis - 1 : axis] == "c" and not _moved_on(sketch, node.output):
            with contextlib.suppress(UnsupportedError):
                return RULES["concat"](sketch, node, [sketch.laid(node, one, labels, like.pixels) for one in values])
    several = [rearranged(value, sketch.storages) for value in values]
    return tables.joined(several, node.attrs["axis"], sketch.storages)


def _moved_on(sketch: Sketch, value: str) -> bool:
    """Whether elements of a value are moved again by what reads it."""
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
    """The node on copies of its inputs that lie as it needs them; the error if they do so already, or cannot."""
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
    """A value of many positions and one axis of channels, as of two axes of positions."""
    table = rearranged(value, sketch.storages)
    first, *rest, channels = table.axes
    return replace(table, where=table.where.reshape(first, prod(rest), channels))


def _is_gate(values: Sequence[Value]) -> bool:
    return len(values) == 2 and values[0].axes != values[1].axes


def _labels(sketch: Sketch, node: Node, values: Sequence[Value]) -> str | None:
    """How the node's inputs have to lie; None if that is not known."""
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
    known = [value.labels for value in values if isinstance(value, Form) and value.labels != "f"]
    if known:
        return known[0]
    return rows if rank <= 3 or not node.weights else None  # a constant has the value's own axes
