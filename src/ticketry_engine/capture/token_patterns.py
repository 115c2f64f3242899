"""Patterns of networks on tokens: root-mean-square norms, rotary position embeddings, heads of keys that serve several
heads of queries."""

from __future__ import annotations

import contextlib
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
from ticketry_engine.capture.lower_constants import constant_of, is_constant
from ticketry_engine.ir import Graph, Node, node


def recognise_tokens(graph: Graph) -> Graph:
    """The graph with one node for each such formula."""
    for rule in (_rms_norm, _rotary, _partial_rotary, _shared_heads):
        graph = rewrite(graph, rule)
    return graph


# -- x / sqrt(mean(x^2) + eps) * weight --------------------------------------------------------------------------------


def _rms_norm(editor: Editor, one: Node) -> list[Node]:
    need(not one.native and base(one) in ("mul", "div"))
    found = arguments(one)
    pair = [found["self"], found["other"]]
    if any(tensor_of(arg) is not None for arg in pair):
        return _weighted(editor, one)
    for arg, other in (pair, pair[::-1]) if base(one) == "mul" else (pair,):
        with contextlib.suppress(NoMatchError):
            (x,) = editor.floats(one, arg)
            square, eps = _inverse_root(editor, value_of(other), "rsqrt" if base(one) == "mul" else "sqrt")
            need(square == x and editor.shape(x) == editor.shape(one.output))
            return [node("rms_norm", (x,), one.output, eps=eps)]
    raise NoMatchError


def _inverse_root(editor: Editor, name: str | None, root: str) -> tuple[str, float]:
    """(x, eps) of a root of mean(x^2) + eps over the last axis."""
    total = _of_torch(editor.made_by(value_of(_of_torch(_root(editor, name, root))["self"]), "add"))
    eps = number_of(total["other"], editor.tensors)
    mean = _of_torch(editor.made_by(value_of(total["self"]), "mean"))
    square = editor.made_by(value_of(mean["self"]), "pow", "square", "mul")
    if eps is None or eps < 0 or total["alpha"] != 1 or mean["dim"] is None or mean["keepdim"] is not True:
        raise NoMatchError
    need(mean["dtype"] is None)
    if square.native:
        need(len(set(square.inputs)) == 1)
        x: str | None = square.inputs[0]
    else:
        need(base(square) != "mul" and (base(square) == "square" or arguments(square)["exponent"] == 2))
        x = value_of(arguments(square)["self"])
    shape = editor.shape(x or "") if x in editor.values else None
    if x is None or not shape or [axis % len(shape) for axis in mean["dim"]] != [len(shape) - 1]:
        raise NoMatchError
    return x, eps


def _of_torch(one: Node) -> Found:
    """The arguments of a torch node; `NoMatchError` for a native one."""
    need(not one.native)
    return arguments(one)


def _root(editor: Editor, name: str | None, root: str) -> Node:
    """The node that makes 1 / sqrt ("rsqrt") or sqrt, which may be written as a power."""
    found = editor.made_by(name, root, "pow")
    need(base(found) == root or _of_torch(found)["exponent"] == (-0.5 if root == "rsqrt" else 0.5))
    return found


def _weighted(editor: Editor, one: Node) -> list[Node]:
    """A norm's weight, which is multiplied behind it."""
    found = arguments(one)
    x, other = found["self"], found["other"]
    if value_of(x) is None:
        x, other = other, x
    norm = editor.sole(value_of(x) or "")
    name = tensor_of(other)
    if norm is None or norm.op != "rms_norm" or norm.weights or name is None or base(one) != "mul":
        raise NoMatchError
    weight = editor.tensors[name]
    width = (editor.shape(norm.output) or (0,))[-1]
    need(weight.numel() == width and weight.shape[-1] == width)
    need(str(weight.dtype) == f"torch.{editor.values[norm.output].dtype}")
    vector = name if weight.dim() == 1 else editor.tensor(f"{name}.vector", weight.flatten())
    return [replace(norm, output=one.output, weights={"weight": vector})]


# -- x * cos + cat(-upper half, lower half) * sin ----------------------------------------------------------------------


def _rotary(editor: Editor, one: Node) -> list[Node]:
    need(one.op == "add" and one.attrs["act"] is None and len(one.inputs) == 2)
    for straight, crossed in (one.inputs, one.inputs[::-1]):
        with contextlib.suppress(NoMatchError):
            x, cos = _product(editor, straight)
            turned, sin = _product(editor, crossed)
            half, signs = _halves(editor, turned, x)
            return [_rotated(editor, x, cos, sin * signs, half, one.output)]
    raise NoMatchError


def _product(editor: Editor, name: str) -> tuple[str, Tensor]:
    """(value, constant) that a torch node multiplies."""
    found = _of_torch(editor.made_by(name, "mul"))
    x, other = found["self"], found["other"]
    if is_constant(editor, x):
        x, other = other, x
    named = value_of(x)
    if named is None:
        raise NoMatchError
    return named, constant_of(editor, other, named)


def _halves(editor: Editor, name: str, x: str) -> tuple[int, Tensor]:
    """Of cat(-x[..., half:], x[..., :half]): half, and the signs [2 half]."""
    joined = editor.made_by(name, "concat")
    shape = editor.shape(x) or ()
    need(joined.native and len(joined.inputs) == 2 and joined.attrs["axis"] == len(shape) - 1)
    half = int(shape[-1] or 0) // 2
    signs = []
    for part, begin in zip(joined.inputs, (half, 0), strict=True):
        name, sign = part, 1.0
        maker = editor.makers.get(part)
        if maker is not None and not maker.native and base(maker) == "neg":
            name, sign = maker.inputs[0], -1.0
        cut = editor.made_by(name, "slice")
        need(cut.native and cut.inputs == (x,) and cut.attrs["axis"] == len(shape) - 1)
        need((cut.attrs["start"], cut.attrs["stop"]) == (begin, begin + half) and 2 * half == shape[-1])
        signs += [sign] * half
    return half, torch.tensor(signs, dtype=getattr(torch, editor.values[x].dtype))


def _rotated(editor: Editor, x: str, cos: Tensor, sin: Tensor, half: int, output: str) -> Node:
    width = (editor.shape(x) or (0,))[-1]
    size = (*(max(pair) for pair in zip(cos.shape[:-1], sin.shape[:-1], strict=True)), int(width or 0))
    weights = {
        role: editor.constant(f"{output}.{role}", tensor.expand(size)) for role, tensor in (("cos", cos), ("sin", sin))
    }
    return node("rotary", (x,), output, weights, half=half)


def _partial_rotary(editor: Editor, one: Node) -> list[Node]:
    """cat(rotary(x[..., :n]), x[..., n:])"""
    need(one.op == "concat" and len(one.inputs) == 2)
    turned, rest = (editor.made_by(name, op) for name, op in zip(one.inputs, ("rotary", "slice"), strict=True))
    cut = editor.made_by(turned.inputs[0], "slice")
    need(cut.native and rest.native and cut.inputs == rest.inputs)
    shape, axis = editor.shape(cut.inputs[0]) or (), len(editor.shape(one.output) or ()) - 1
    need(all(made.attrs["axis"] == axis for made in (one, cut, rest)) and cut.attrs["start"] == 0)
    need(cut.attrs["stop"] == rest.attrs["start"] and rest.attrs["stop"] == shape[axis])
    cos, sin = (editor.tensors[turned.weights[role]] for role in ("cos", "sin"))
    more = (*cos.shape[:-1], int(shape[axis] or 0) - cos.shape[-1])
    ones = torch.cat([cos, cos.new_ones(more)], -1)
    zeros = torch.cat([sin, sin.new_zeros(more)], -1)
    return [_rotated(editor, cut.inputs[0], ones, zeros, int(number(turned.attrs["half"])), one.output)]


# -- attention with fewer heads of keys and values than of queries -----------------------------------------------------


def _shared_heads(editor: Editor, one: Node) -> list[Node]:
    need(one.op == "attention")
    q, k, v = one.inputs
    fewer = [_repeated(editor, name) for name in (k, v)]
    need(editor.shape(fewer[0]) and (editor.shape(fewer[0]) or ())[1] == (editor.shape(fewer[1]) or ())[1])
    return [replace(one, inputs=(q, *fewer))]


def _repeated(editor: Editor, name: str) -> str:
    """The value [N, g, T, d] of which one with as many heads as the queries repeats each head."""
    joined = editor.made_by(name, "reshape", "repeat_interleave")
    if not joined.native and base(joined) == "repeat_interleave":
        found = arguments(joined)
        x = value_of(found["self"])
        need(found.get("dim") == 1 and type(found.get("repeats")) is int and x is not None)
        return str(x)
    spread = editor.made_by(joined.inputs[0], "expand")
    need(not spread.native)
    cut = editor.made_by(value_of(arguments(spread)["self"]), "reshape")
    x = cut.inputs[0]
    before, made = editor.shape(x) or (), editor.shape(spread.output) or ()
    need(len(before) == 4 and len(made) == 5 and (*made[:2], *made[3:]) == before)
    need((editor.shape(cut.output) or ()) == (*before[:2], 1, *before[2:]))
    return x
