"""Activations that a model has written out: silu, hardsigmoid, hardswish, gelu in both forms."""

from __future__ import annotations

from math import isclose, pi, sqrt

from ticketry.engine.capture.editor import Editor, arguments, base, number_of, rewrite, value_of
from ticketry.engine.graph import Graph, Node, node


def recognise_acts(graph: Graph) -> Graph:
    """The graph with one `act` for each formula of such an activation."""
    for rule in (_hardsigmoid, _gated, _gelu):
        graph = rewrite(graph, rule)
    return graph


def scaled(editor: Editor, one: Node | None, kind: str) -> tuple[str, float] | None:
    """(value, number) of a torch node that adds a number ("add") or multiplies by one ("mul", also a division)."""
    if one is None or base(one) not in (kind, "div" if kind == "mul" else kind):
        return None
    found = arguments(one)
    x, number = value_of(found["self"]), number_of(found["other"], editor.tensors)
    if x is None:  # a number first
        x, number = value_of(found["other"]), number_of(found["self"], editor.tensors)
        if base(one) == "div":
            return None
    if x is None or not number or found.get("alpha", 1) != 1 or found.get("rounding_mode") is not None:
        return None
    return x, (1 / number if base(one) == "div" else number)


def _is(number: float, other: float) -> bool:
    return isclose(number, other, rel_tol=1e-6)


def _hardsigmoid(editor: Editor, one: Node) -> list[Node] | None:
    """relu6(x + 3) / 6"""
    outer = scaled(editor, one, "mul") if not one.native else None
    if outer is None or not _is(outer[1], 1 / 6) or not editor.floating(outer[0], one.output):
        return None
    clipped = editor.makers.get(outer[0])
    if clipped is None or clipped.op != "act" or clipped.attrs["act"] != "relu6":
        return None
    inner = scaled(editor, editor.makers.get(clipped.inputs[0]), "add")
    if inner is None or inner[1] != 3:
        return None
    return [node("act", (inner[0],), one.output, act="hardsigmoid")]


def _gated(editor: Editor, one: Node) -> list[Node] | None:
    """x * sigmoid(x), x * hardsigmoid(x), (x * relu6(x + 3)) / 6"""
    if one.op == "mul" and one.attrs["act"] is None:
        return _gated_by(editor, one.inputs, one.output)
    outer = scaled(editor, one, "mul") if not one.native else None
    if outer is None or not _is(outer[1], 1 / 6) or not editor.floating(outer[0], one.output):
        return None
    product = editor.makers.get(outer[0])
    if product is None or product.op != "mul" or product.attrs["act"] is not None:
        return None
    for x, gate in (product.inputs, product.inputs[::-1]):
        clipped = editor.makers.get(gate)
        if clipped is not None and clipped.op == "act" and clipped.attrs["act"] == "relu6":
            inner = scaled(editor, editor.makers.get(clipped.inputs[0]), "add")
            if inner is not None and inner[0] == x and inner[1] == 3:
                return [node("act", (x,), one.output, act="hardswish")]
    return None


def _gated_by(editor: Editor, pair: tuple[str, ...], output: str) -> list[Node] | None:
    for x, gate in (pair, pair[::-1]):
        maker = editor.makers.get(gate)
        if maker is not None and maker.op == "act" and maker.inputs == (x,):
            act = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(str(maker.attrs["act"]))
            if act is not None:
                return [node("act", (x,), output, act=act)]
    return None


def _gelu(editor: Editor, one: Node) -> list[Node] | None:
    """x / 2 * (1 + erf(x / sqrt 2)), or with tanh((x + 0.044715 x^3) sqrt(2 / pi))"""
    if one.op != "mul" or one.attrs["act"] is not None:
        return None
    for half, sum_ in (one.inputs, one.inputs[::-1]):
        halved = scaled(editor, editor.makers.get(half), "mul")
        plus = scaled(editor, editor.makers.get(sum_), "add")
        if halved is None or plus is None or not _is(halved[1], 0.5) or plus[1] != 1:
            continue
        x, curve = halved[0], editor.makers.get(plus[0])
        if curve is None or not editor.floating(x, one.output):
            continue
        if base(curve) == "erf":
            inner = scaled(editor, editor.makers.get(curve.inputs[0]), "mul")
            if inner is not None and inner[0] == x and _is(inner[1], sqrt(0.5)):
                return [node("act", (x,), one.output, act="gelu")]
        if curve.op == "act" and curve.attrs["act"] == "tanh" and _is_cubic(editor, curve.inputs[0], x):
            return [node("act", (x,), one.output, act="gelu_tanh")]
    return None


def _is_cubic(editor: Editor, name: str, x: str) -> bool:
    """Whether a value is sqrt(2 / pi) (x + 0.044715 x^3)."""
    outer = scaled(editor, editor.makers.get(name), "mul")
    if outer is None or not _is(outer[1], sqrt(2 / pi)):
        return False
    total = editor.makers.get(outer[0])
    if total is None or total.op != "add" or x not in total.inputs:
        return False
    cubic = scaled(editor, editor.makers.get(total.inputs[1 - total.inputs.index(x)]), "mul")
    if cubic is None or not _is(cubic[1], 0.044715):
        return False
    power = editor.makers.get(cubic[0])
    if power is None or base(power) != "pow":
        return False
    found = arguments(power)
    return value_of(found["self"]) == x and found["exponent"] == 3
