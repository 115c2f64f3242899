"""Sums and products with what is the same for every example: numbers, weights, rows of constants."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    Found,
    NoMatchError,
    arguments,
    base,
    need,
    number,
    number_of,
    rewrite,
    tensor_of,
    value_of,
)
from ticketry_engine.capture.same_rows import rows_of
from ticketry_engine.ir import Graph, Json, Node, node

_NAMES = ("add", "sub", "mul", "div", "neg", "rsub", "addcmul")


def lower_constants(graph: Graph) -> Graph:
    """The graph in which no sum or product with a constant is left to torch.

    Formulas that have a meaning as a whole have to be recognised before.
    """
    return rewrite(graph, _lower)


def constant_of(editor: Editor, arg: Json, like: str) -> Tensor:
    """An argument as a constant for each example of the value `like`: of its axes but the batch, each whole or 1.

    Raises:
        NoMatchError: it differs between examples, is of another type, or makes the value larger.
    """
    shape = editor.shape(like)
    if not shape or len(shape) < 2:
        raise NoMatchError
    single = number_of(arg, editor.tensors)
    dtype = getattr(torch, editor.values[like].dtype)
    if single is not None:
        return torch.full((1,) * (len(shape) - 1), single, dtype=dtype)
    name = tensor_of(arg)
    tensor = editor.tensors[name] if name is not None else rows_of(editor.makers, editor.tensors, value_of(arg))
    if tensor is None or tensor.dim() > len(shape) or tensor.dtype != dtype:
        raise NoMatchError
    tensor = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    need(tensor.shape[0] == 1 and all(size in (1, own) for size, own in zip(tensor.shape[1:], shape[1:], strict=True)))
    return tensor[0]


def is_constant(editor: Editor, arg: Json) -> bool:
    """Whether an argument is a number, a weight or a row of constants."""
    named = value_of(arg)
    return named is None or rows_of(editor.makers, editor.tensors, named) is not None


def _lower(editor: Editor, one: Node) -> list[Node]:
    need(not one.native and base(one) in _NAMES)
    name, found = base(one), arguments(one)
    if name == "addcmul":
        return _shifted_product(editor, one, found)
    arg, other, alpha = found["self"], found.get("other", -1), number(found.get("alpha", 1))
    first = not is_constant(editor, arg)
    if not first:
        arg, other = other, arg
    (x,) = editor.floats(one, arg)
    need(editor.shape(x) == editor.shape(one.output))
    constant = constant_of(editor, other, x)
    if name in ("mul", "neg"):
        return [_with(editor, "mul_constant", x, constant, one.output)]
    if name == "div":
        need(first)
        return [_with(editor, "mul_constant", x, constant.reciprocal(), one.output)]
    if name == "add" or (name == "sub" and first):
        need(first or alpha == 1)
        return [_with(editor, "add_constant", x, constant * (-alpha if name == "sub" else alpha), one.output)]
    # constant - alpha x, which rsub has the other way round
    need(name == "sub" or first)
    turned = editor.make(
        "mul_constant", (x,), one.output, _weight(editor, one.output, torch.full_like(constant, -alpha))
    )
    return [turned, _with(editor, "add_constant", turned.output, constant, one.output)]


def _shifted_product(editor: Editor, one: Node, found: Found) -> list[Node]:
    """self + value * tensor1 * tensor2, one factor of which is a constant."""
    factors = [found["tensor1"], found["tensor2"]]
    if is_constant(editor, factors[1]):
        factors.reverse()
    (x,) = editor.floats(one, factors[1])
    need(is_constant(editor, factors[0]) and editor.shape(x) == editor.shape(one.output))
    scale = constant_of(editor, factors[0], x) * number(found["value"])
    product = editor.make("mul_constant", (x,), one.output, _weight(editor, one.output, scale))
    if is_constant(editor, found["self"]):
        shift = constant_of(editor, found["self"], x)
        return [product, _with(editor, "add_constant", product.output, shift, one.output)]
    (other,) = editor.floats(one, found["self"])
    need(editor.shape(other) == editor.shape(x))
    return [product, node("add", (other, product.output), one.output)]


def _weight(editor: Editor, like: str, constant: Tensor) -> dict[str, str]:
    return {"constant": editor.constant(f"{like}.constant", constant)}


def _with(editor: Editor, op: str, x: str, constant: Tensor, output: str) -> Node:
    return node(op, (x,), output, _weight(editor, output, constant))


def with_plain_zeros(graph: Graph, captured: Graph) -> Graph:
    """The graph with 0.0 for -0.0 in what passes have made of its weights, where only native nodes read it.

    A negative factor makes -0.0 of a weight that a mask removes, and a file has a bit more for each weight of a tensor
    with such a zero. Sums do not see it; what torch computes, as a quotient, may.
    """
    in_torch = {name for one in graph.nodes if not one.native for name in one.weights.values()}
    made = {
        name: tensor + 0.0
        for name, tensor in graph.tensors.items()
        if tensor is not captured.tensors.get(name) and name not in in_torch and tensor.is_floating_point()
    }
    return replace(graph, tensors={**graph.tensors, **made}) if made else graph
