"""Activations, sums, products, and operations that do nothing in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ticketry.engine.capture.editor import Editor, Rule, arguments, number_of, tensor_of, value_of
from ticketry.engine.graph import Json, Node, node

_PLAIN = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
}


def act_of(name: str, found: Mapping[str, Any]) -> Json:
    """The act that an ATen operation with these arguments is, or None."""
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "gelu":
        return "gelu_tanh" if found["approximate"] == "tanh" else "gelu"
    if name == "leaky_relu" and isinstance(found["negative_slope"], (int, float)):
        return {"leaky_relu": float(found["negative_slope"])}
    if name == "hardtanh":
        return _clamp(found["min_val"], found["max_val"])
    if name == "clamp":
        return _clamp(found["min"], found["max"])
    if name == "clamp_min":
        return _clamp(found["min"], None)
    if name == "threshold":
        return "relu" if found["threshold"] == 0 and found["value"] == 0 else None
    return None


def _clamp(least: Json, most: Json) -> str | None:
    if isinstance(least, (int, float)) and least == 0:
        return "relu" if most is None else "relu6" if most == 6 else None
    return None


def _act(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found["self"])
    if x is None or not editor.floating(x, one.output):
        return None
    act = act_of(one.op.split(".")[1], found)
    return None if act is None else [node("act", (x,), one.output, act=act)]


def _pairwise(editor: Editor, one: Node) -> list[Node] | None:
    """A sum or product of two values; of [N, C, H, W] and [N, C, 1, 1] the larger comes first."""
    found = arguments(one)
    if found.get("alpha", 1) != 1:
        return None
    pair = [value_of(found["self"]), value_of(found["other"])]
    if pair[0] is None or pair[1] is None or not editor.floating(pair[0], pair[1], one.output):
        return None
    shapes = [editor.shape(pair[0]), editor.shape(pair[1])]
    made = editor.shape(one.output)
    if not made:
        return None
    gate = (*made[:2], 1, 1) if len(made) == 4 else None
    if shapes[0] != made:
        pair.reverse()
        shapes.reverse()
    if shapes[0] != made or shapes[1] not in (made, gate):
        return None
    return [node(one.op.split(".")[1], (str(pair[0]), str(pair[1])), one.output)]


def _same(editor: Editor, one: Node) -> str | None:
    """The argument itself, if the operation changes neither its shape nor its data type."""
    found = arguments(one)
    x = value_of(found.get("self", found.get("input")))
    if x is None or found.get("train") is True or found.get("training") is True:
        return None
    before, after = editor.values[x], editor.values[one.output]
    alike = before.dtype == after.dtype and editor.size(x) == editor.size(one.output)
    return x if alike and editor.size(x) is not None else None


def _neutral(editor: Editor, one: Node) -> list[Node] | str | None:
    """x * 1, x / 1, x + 0; else a sum or product."""
    found = arguments(one)
    name = one.op.split(".")[1]
    number = number_of(found["other"], editor.tensors)
    if number == (0 if name in ("add", "sub") else 1) and found.get("rounding_mode") is None:
        return _same(editor, one)
    if name not in ("add", "mul"):
        return None
    return _by_channel(editor, one) or _pairwise(editor, one)


def _by_channel(editor: Editor, one: Node) -> list[Node] | None:
    """A weight for each channel, that is added or a factor."""
    found = arguments(one)
    pair = (found["self"], found["other"])
    x, weight = (
        (value_of(pair[0]), tensor_of(pair[1])) if value_of(pair[0]) else (value_of(pair[1]), tensor_of(pair[0]))
    )
    if x is None or weight is None or found.get("alpha", 1) != 1 or not editor.floating(x, one.output):
        return None
    shape, tensor = editor.shape(x) or (), editor.tensors[weight]
    channels = shape[1:2] + (1,) * (len(shape) - 2)
    alike = len(shape) > 1 and tuple(tensor.shape) in (channels, (1, *channels)) and shape == editor.shape(one.output)
    if not alike or str(tensor.dtype) != f"torch.{editor.values[x].dtype}":
        return None
    vector, name = tensor.flatten(), one.op.split(".")[1]
    factor = vector if name == "mul" else torch.ones_like(vector)
    term = vector if name == "add" else torch.zeros_like(vector)
    weights = {role: editor.tensor(f"{weight}.{role}", made) for role, made in (("scale", factor), ("shift", term))}
    return [node("affine", (x,), one.output, weights)]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*_PLAIN, "gelu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "threshold"), _act),
    **dict.fromkeys(("add", "sub", "mul", "div"), _neutral),
    **dict.fromkeys(
        (
            *(
                "dropout",
                "feature_dropout",
                "alpha_dropout",
                "contiguous",
                "clone",
                "detach",
                "alias",
                "to",
                "_to_copy",
            ),
            *("type_as", "lift_fresh_copy", "positive", "expand_as"),
        ),
        _same,
    ),
}
