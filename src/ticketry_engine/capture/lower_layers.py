"""Layers: convolutions, linear ones, norms, attention, activations, sums, and what does nothing in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ticketry_engine.capture.editor import (
    Editor,
    Found,
    Lowering,
    NoMatchError,
    arguments,
    base,
    need,
    number,
    number_of,
    tensor_of,
    value_of,
)
from ticketry_engine.capture.lower_pools import adaptive, in_a_picture, mean, pair, pool
from ticketry_engine.capture.same_rows import rows_of
from ticketry_engine.ir import DTYPES, Json, Node, node
from ticketry_engine.ir.attribute_kinds import is_act


def weights_of(editor: Editor, found: Mapping[str, Json]) -> dict[str, str]:
    """Weight and bias by role, where they are weights of the model and not computed."""
    given = {role: tensor_of(found.get(role)) for role in ("weight", "bias") if found.get(role) is not None}
    named = {role: name for role, name in given.items() if name is not None}
    need(named.keys() == given.keys() and "weight" in named)
    need(len({editor.tensors[name].dtype for name in named.values()}) == 1)
    return named


def _conv2d(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), weights = editor.floats(one, found["input"], axes=4), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]]
    need(weight.dim() == 4 and not found.get("transposed"))
    stride, dilation = pair(found["stride"]), pair(found["dilation"])
    padding = _padding(found["padding"], weight.shape[2:], dilation)
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": found["groups"]}
    return [node("conv2d", (x,), one.output, weights, **setting)]


def _padding(padding: Json, kernel: torch.Size, dilation: list[int]) -> list[int]:
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        need(not any(total % 2 for total in both))
        return [total // 2 for total in both]
    return pair(padding)


def _conv1d(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A convolution over one axis is one over pictures of height 1."""
    (x,), weights = editor.floats(one, found["input"], axes=3), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]].unsqueeze(2)
    stride, dilation = pair(found["stride"])[1], pair(found["dilation"])[1]
    padding = _padding(found["padding"], torch.Size((1, weight.shape[3])), [1, dilation])[1]
    weights = {**weights, "weight": editor.tensor(f"{weights['weight']}.2d", weight)}
    setting = {"stride": [1, stride], "padding": [0, padding], "dilation": [1, dilation], "groups": found["groups"]}
    return in_a_picture(editor, one, x, "conv2d", weights, **setting)


def linear_input(found: Found) -> Json:
    """The argument of a linear layer, or of a product with a weight [in, out], that is no weight."""
    return found.get("input", found.get("mat1", found.get("self")))


def linear_weights(editor: Editor, one: Node, found: Found) -> dict[str, str]:
    """The weights of such an operation by role, as a linear layer has them.

    Raises:
        NoMatchError: they are none of the model's, or have other shapes than those of a linear layer.
    """
    if base(one) == "linear":
        named = weights_of(editor, found)
    else:
        named = {"weight": tensor_of(found.get("mat2", found.get("other"))) or ""}
        if base(one) == "addmm":  # bias + x weight
            named["bias"] = tensor_of(found["self"]) or ""
            need(found["beta"] == found["alpha"] == 1)
    need(all(name and editor.tensors[name].dim() == {"weight": 2, "bias": 1}[role] for role, name in named.items()))
    rows = editor.tensors[named["weight"]].shape[0 if base(one) == "linear" else 1]
    need("bias" not in named or editor.tensors[named["bias"]].shape == (rows,))
    if base(one) != "linear":
        weight = named["weight"]
        named["weight"] = editor.tensor(f"{weight}.T", editor.tensors[weight].t().contiguous())
    return named


def _linear(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,) = editor.floats(one, linear_input(found))
    need(len(editor.shape(x) or ()) >= 2)
    return [node("linear", (x,), one.output, linear_weights(editor, one, found))]


def _batch_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    """In evaluation mode a batch norm is a scale and a shift of each channel."""
    named = [tensor_of(found[role]) for role in ("weight", "bias", "running_mean", "running_var")]
    (x,) = editor.floats(one, found["input"])
    need(not found.get("training") and len(editor.shape(x) or ()) >= 2)
    weight, bias, mean, var = (None if name is None else editor.tensors[name].double() for name in named)
    if mean is None or var is None:
        raise NoMatchError
    scale = torch.rsqrt(var + number(found["eps"]))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    dtype = getattr(torch, editor.values[x].dtype)
    prefix = str(named[2]).removesuffix("running_mean")
    weights = {
        role: editor.tensor(f"{prefix}{role}", made.to(dtype)) for role, made in (("scale", scale), ("shift", shift))
    }
    return [node("affine", (x,), one.output, weights)]


def _layer_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), size = editor.floats(one, found["input"]), found["normalized_shape"]
    named = {role: tensor_of(found[role]) for role in ("weight", "bias")}
    need(len(size) == 1 and len(editor.shape(x) or ()) >= 2)
    need(all((name is None) == (found[role] is None) for role, name in named.items()))
    dtype = getattr(torch, editor.values[x].dtype)
    weights = {}
    if any(named.values()):
        neutral = {"weight": torch.ones(size, dtype=dtype), "bias": torch.zeros(size, dtype=dtype)}
        for role, name in named.items():
            weights[role] = editor.tensor(f"{one.output}.{role}", neutral[role]) if name is None else name
    need(all(editor.tensors[name].dtype == dtype for name in weights.values()))
    return [node("layer_norm", (x,), one.output, weights, eps=number(found["eps"]))]


def _softmax(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,) = editor.floats(one, found["self"])
    axis = int(found["dim"]) % len(editor.shape(x) or ())
    need(axis)
    return [node("softmax", (x,), one.output, axis=axis)]


def _rms_norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), size = editor.floats(one, found["input"]), found["normalized_shape"]
    name = tensor_of(found["weight"])
    dtype = getattr(torch, editor.values[x].dtype)
    need(len(size) == 1 and len(editor.shape(x) or ()) >= 2 and (name is None) == (found["weight"] is None))
    need(name is None or editor.tensors[name].dtype == dtype)
    eps = torch.finfo(dtype).eps if found["eps"] is None else number(found["eps"])
    return [node("rms_norm", (x,), one.output, {} if name is None else {"weight": name}, eps=eps)]


def _attention(editor: Editor, one: Node, found: Found) -> list[Node]:
    q, k, v = editor.floats(one, *(found[role] for role in ("query", "key", "value")), axes=4)
    need(not found["dropout_p"] and len({(editor.shape(name) or ())[:1] for name in (q, k, v)}) == 1)
    heads, groups = ((editor.shape(name) or ())[1] for name in (q, k))
    need(heads and groups and not heads % groups)  # queries that are broadcast are left to torch
    return [masked_attention(editor, (q, k, v), one.output, found["attn_mask"], found["scale"], found["is_causal"])]


def masked_attention(
    editor: Editor, inputs: tuple[str, str, str], output: str, mask: Json, scale: Json, causal: bool = False
) -> Node:
    """An attention whose mask is the same for every example, and leaves each query a key.

    Raises:
        NoMatchError: the mask is another one.
    """
    bias = None if mask is None else _bias_of(editor, mask, inputs)
    if bias is not None and not causal:
        # A mask that hides what follows is no matter of numbers.
        hidden = torch.ones(bias.shape[1:], dtype=torch.bool).triu(1)
        if bool((bias == torch.zeros_like(bias[0]).masked_fill(hidden, float("-inf"))).all()):
            bias, causal = None, True
    weights = {}
    if bias is not None and bool(bias.any()):
        need(bool(bias.isfinite().any(-1).all()))  # torch's rows without a key are 0, a quotient's are NaN
        weights["bias"] = editor.constant(f"{output}.bias", bias)
    return node("attention", inputs, output, weights, scale=scale, causal=causal)


def _bias_of(editor: Editor, mask: Json, inputs: Sequence[str]) -> torch.Tensor:
    """What a mask adds to the scores: [heads or 1, T, S]."""
    heads, queries = (editor.shape(inputs[0]) or ())[1:3]
    keys = (editor.shape(inputs[1]) or ())[2]
    name = tensor_of(mask)
    known = editor.tensors[name] if name is not None else rows_of(editor.makers, editor.tensors, value_of(mask))
    if known is None or known.dim() > 4:
        raise NoMatchError
    known = known.reshape((1,) * (4 - known.dim()) + tuple(known.shape))
    need(known.shape[0] == 1 and known.shape[1] in (1, heads))
    dtype = getattr(torch, editor.values[inputs[0]].dtype)
    if known.dtype == torch.bool:
        known = torch.zeros(known.shape, dtype=dtype).masked_fill(~known, float("-inf"))
    need(known.dtype == dtype and not bool((known.isnan() | (known == float("inf"))).any()))
    need(known.shape[2] in (1, queries) and known.shape[3] in (1, keys))
    return known[0].expand(-1, int(queries or 0), int(keys or 0))


# -- activations, sums, products, and operations that do nothing in evaluation mode ------------------------------------

_PLAIN = ("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid")


def act_of(name: str, found: Mapping[str, Any]) -> Json:
    """The act that an ATen operation with these arguments is, or None."""
    if name in _PLAIN:
        return name
    if name == "gelu":
        return "gelu_tanh" if found["approximate"] == "tanh" else "gelu"
    if name == "leaky_relu" and is_act(act := {"leaky_relu": found["negative_slope"]}):
        return act
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


def _act(editor: Editor, one: Node, found: Found) -> list[Node]:
    (x,), act = editor.floats(one, found["self"]), act_of(base(one), found)
    need(act)
    return [node("act", (x,), one.output, act=act)]


def _pairwise(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A sum or product of two values; of [N, C, H, W] and [N, C, 1, 1] the larger comes first."""
    need(found.get("alpha", 1) == 1)
    need(all(rows_of(editor.makers, editor.tensors, value_of(found[role])) is None for role in ("self", "other")))
    pair = editor.floats(one, found["self"], found["other"])
    made = editor.shape(one.output)
    if not made:
        raise NoMatchError
    if editor.shape(pair[0]) != made:
        pair.reverse()
    gate = (*made[:2], 1, 1) if len(made) == 4 else None
    need(editor.shape(pair[0]) == made and editor.shape(pair[1]) in (made, gate))
    return [node(base(one), tuple(pair), one.output)]


def _same(editor: Editor, one: Node, found: Found) -> str:
    """The argument itself, if the operation changes neither its shape nor its data type."""
    x = value_of(found.get("self", found.get("input")))
    if x is None or found.get("train") is True or found.get("training") is True:
        raise NoMatchError
    need(editor.values[x].dtype == editor.values[one.output].dtype and editor.same_size(x, one.output))
    need(editor.values[x].dtype in DTYPES)  # a copy of a complex tensor computes its lazy conjugate
    return x


def _neutral(editor: Editor, one: Node, found: Found) -> list[Node] | str:
    """x * 1, x / 1, x + 0; else a sum or product."""
    name = base(one)
    number = number_of(found["other"], editor.tensors)
    if number == (0 if name in ("add", "sub") else 1):
        return _same(editor, one, found)
    need(name in ("add", "mul"))
    if value_of(found["self"]) and value_of(found["other"]):
        return _pairwise(editor, one, found)
    return _by_channel(editor, one, found)


def _by_channel(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A weight for each channel, that is added or a factor."""
    name = base(one)
    arg, other = (found["self"], found["other"]) if value_of(found["self"]) else (found["other"], found["self"])
    (x,), weight = editor.floats(one, arg), tensor_of(other)
    if weight is None or found.get("alpha", 1) != 1:
        raise NoMatchError
    shape, tensor = editor.shape(x) or (), editor.tensors[weight]
    channels = shape[1:2] + (1,) * (len(shape) - 2)
    need(len(shape) > 1 and tuple(tensor.shape) in (channels, (1, *channels)) and shape == editor.shape(one.output))
    need(str(tensor.dtype) == f"torch.{editor.values[x].dtype}")
    vector = tensor.flatten()
    factor = vector if name == "mul" else torch.ones_like(vector)
    term = vector if name == "add" else torch.zeros_like(vector)
    weights = {role: editor.tensor(f"{weight}.{role}", made) for role, made in (("scale", factor), ("shift", term))}
    return [node("affine", (x,), one.output, weights)]


_NOTHING_TO_DO = (
    *("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"),
    *("type_as", "lift_fresh_copy", "positive", "expand_as"),
)
"""In evaluation mode, where shape and data type stay."""


def getitem_of(editor: Editor, one: Node, maker: Node) -> list[Node]:
    """The first entry of a list that an operation with several results made."""
    rule = _FIRST_OF.get(base(maker))
    if rule is None or one.attrs["args"][1] != 0:
        raise NoMatchError
    return rule(editor, replace(maker, output=one.output), arguments(maker))


_FIRST_OF: Mapping[str, Callable[[Editor, Node, Found], list[Node]]] = {
    "max_pool2d_with_indices": pool,
    "_native_batch_norm_legit_no_training": _batch_norm,
}

RULES: Mapping[str, Lowering] = {
    **dict.fromkeys(("conv2d", "convolution"), _conv2d),
    "conv1d": _conv1d,
    **dict.fromkeys(("linear", "matmul", "mm", "addmm"), _linear),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), pool),
    **dict.fromkeys(("max_pool1d", "avg_pool1d"), partial(pool, axes=1)),
    "adaptive_avg_pool1d": partial(adaptive, axes=1),
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), adaptive),
    "mean": mean,
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys((*_PLAIN, "gelu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "threshold"), _act),
    **dict.fromkeys(("add", "sub", "mul", "div"), _neutral),
    **dict.fromkeys(_NOTHING_TO_DO, _same),
}
