"""Attention written out as products and a softmax, with what is added to the scores; of examples or of windows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ticketry_engine.capture.editor import Editor, NoMatchError, arguments, base, need, number, rewrite, value_of
from ticketry_engine.capture.tracing.program import Sizes
from ticketry_engine.ir import FLOATS, Graph, Node, node

_PRODUCTS = ("matmul", "bmm")


def recognise_lengths(graph: Graph, sizes: Mapping[str, Sizes]) -> Graph:
    """The graph of torch nodes in which vectors made of length 1 (`torch.nn.functional.normalize` over the last axis,
    the queries and keys of cosine attention) are a root-mean-square norm.

    What is shorter than torch's smallest length, 1e-12, becomes up to a root of two shorter than there.
    """
    return rewrite(graph, _length, sizes)


def _length(editor: Editor, one: Node) -> list[Node]:
    need(not one.native and base(one) == "div")
    found = arguments(one)
    x, spread = value_of(found["self"]), editor.made_by(value_of(found["other"]), "expand_as", "expand", "clamp_min")
    if base(spread) != "clamp_min":
        spread = editor.made_by(value_of(arguments(spread)["self"]), "clamp_min")
    least = number(arguments(spread)["min"])
    norm = arguments(editor.made_by(value_of(arguments(spread)["self"]), "linalg_vector_norm"))
    size = editor.size(x or "")
    need(size is not None and norm["ord"] == 2 and norm["keepdim"] and norm["dtype"] is None and least > 0)
    width = (size or (None,))[-1]
    axes = [int(axis) % len(size or ()) for axis in norm["dim"] or ()]
    need(editor.same_size(x or "", one.output) and editor.values[x or ""].dtype == editor.values[one.output].dtype)
    need(value_of(norm["self"]) == x and axes == [len(size or ()) - 1] and editor.values[x or ""].dtype in FLOATS)
    if not isinstance(width, int):
        raise NoMatchError
    dtype = getattr(torch, editor.values[x or ""].dtype)
    name = editor.constant(f"{one.output}.length", torch.full((width,), width**-0.5, dtype=dtype))
    args = [{"value": x}, [width], {"tensor": name}, least**2 / width]
    return [Node("aten.rms_norm.default", (str(x),), one.output, {"args": args, "kwargs": {}}, {name: name})]


def recognise_written_attention(graph: Graph) -> Graph:
    """The graph with one node for each softmax(f(q k^T)) v, where f multiplies and adds what is the same for every
    example. Sums and products with constants have to be native by then."""
    return rewrite(graph, _attention)


def _attention(editor: Editor, one: Node) -> list[Node]:
    weights, v = _factors(editor, one)
    soft = editor.made_by(weights, "softmax")
    rank = len(editor.shape(v) or ())
    need(soft.native and rank in (4, 5) and soft.attrs["axis"] == rank - 1)
    product, factor, bias = _scores(editor, soft.inputs[0])
    q, turned = _factors(editor, product)
    transposed = editor.made_by(turned, "transpose")
    shapes = [editor.shape(name) or () for name in (q, turned, v)]
    need(transposed.native and len({shape[: rank - 2] for shape in shapes}) == 1)
    axes = list(transposed.attrs["axes"])
    nodes: list[Node] = []
    k = transposed.inputs[0]
    axes[-2:] = axes[:-3:-1]
    if axes != sorted(axes):  # a transpose that also put the heads in place
        nodes.append(editor.make("transpose", (k,), one.output, axes=axes))
        k = nodes[-1].output
    scale = 1.0
    if factor.numel() == 1:
        scale = float(factor)
    else:
        need(factor.shape[-2:] == (1, 1))
        held = {"constant": editor.constant(f"{one.output}.factor", factor)}
        nodes.append(editor.make("mul_constant", (q,), one.output, held))
        q = nodes[-1].output
    return [*nodes, attention(editor, (q, k, v), one.output, bias, scale)]


def attention(
    editor: Editor, inputs: tuple[str, str, str], output: str, bias: Tensor | None, scale: float | None
) -> Node:
    """The node of so many axes.

    Args:
        bias: what is added to the scores: of their axes but the batch, each whole or 1.

    Raises:
        NoMatchError: it leaves a query no key, or differs between heads in a way that kernels have no table for.
    """
    *several, queries, _ = editor.shape(inputs[0]) or ()
    keys = (editor.shape(inputs[1]) or ())[-2]
    held = {}
    if bias is not None and bool(bias.any()):
        need(not bool((bias.isnan() | (bias == float("inf"))).any()))
        need(bool(bias.isfinite().any(-1).all()))  # torch's rows without a key are 0, a quotient's are NaN
        whole = bias.expand(*bias.shape[:-2], int(queries or 0), int(keys or 0))
        held["bias"] = editor.constant(f"{output}.bias", whole)
    if len(several) == 2:
        return node("attention", inputs, output, held, scale=scale)
    return node("window_attention", inputs, output, held, scale=scale)


def _factors(editor: Editor, one: Node) -> tuple[str, str]:
    """The two values that a torch node multiplies."""
    need(not one.native and base(one) in _PRODUCTS)
    found = arguments(one)
    left, right = value_of(found["self"]), value_of(found.get("other", found.get("mat2")))
    if left is None or right is None or not editor.floating(left, right, one.output):
        raise NoMatchError
    return left, right


def _scores(editor: Editor, name: str) -> tuple[Node, Tensor, Tensor | None]:
    """The product that scores are made of, what it is multiplied by, and what is added."""
    factor, bias = torch.ones(()), None
    while True:
        with contextlib.suppress(NoMatchError):
            return editor.made_by(name, *_PRODUCTS), factor, bias
        maker = editor.made_by(name, "add_constant", "mul_constant", "affine")
        if maker.op != "mul_constant":
            constant = _constant(editor, maker, "constant" if maker.op == "add_constant" else "shift")
            bias = constant * factor if bias is None else bias + constant * factor
        if maker.op != "add_constant":
            factor = factor * _constant(editor, maker, "constant" if maker.op == "mul_constant" else "scale")
        name = maker.inputs[0]


def _constant(editor: Editor, one: Node, role: str) -> Tensor:
    """A constant with all axes of the node's value but the batch."""
    found = editor.tensors[one.weights[role]]
    if one.op != "affine":
        return found
    return found.reshape(-1, *(1 for _ in (editor.shape(one.output) or ())[2:]))
