"""Convolutions, linear layers, norms, poolings, softmax and attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ticketry.engine.capture.editor import Editor, Rule, arguments, base, tensor_of, value_of
from ticketry.engine.graph import Json, Node, node


def _pair(value: Json) -> list[int] | None:
    """A setting of one or two axes for both."""
    if isinstance(value, int):
        return [value, value]
    if isinstance(value, list) and len(value) in (1, 2) and all(type(size) is int for size in value):
        return [value[0], value[-1]]
    return None


def _weights(editor: Editor, found: Mapping[str, Json]) -> dict[str, str] | None:
    """Weight and bias by role, where they are weights of the model and not computed."""
    weight, bias = tensor_of(found["weight"]), tensor_of(found.get("bias"))
    if weight is None or (bias is None and found.get("bias") is not None):
        return None
    kinds = {editor.tensors[name].dtype for name in (weight, bias) if name is not None}
    if len(kinds) != 1:
        return None
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


def _conv2d(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found["input"])
    weights = _weights(editor, found)
    if x is None or weights is None or found.get("transposed") or not editor.floating(x, one.output):
        return None
    weight = editor.tensors[weights["weight"]]
    if weight.dim() != 4 or len(editor.shape(x) or ()) != 4:
        return None
    stride, dilation = _pair(found["stride"]), _pair(found["dilation"])
    padding = _padding(found["padding"], weight.shape[2:], dilation)
    if stride is None or dilation is None or padding is None:
        return None
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": found["groups"]}
    return [node("conv2d", (x,), one.output, weights, **setting)]


def _padding(padding: Json, kernel: torch.Size, dilation: list[int] | None) -> list[int] | None:
    if padding == "valid":
        return [0, 0]
    if padding == "same" and dilation is not None:
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [total // 2 for total in both] if not any(total % 2 for total in both) else None
    return _pair(padding)


def _conv1d(editor: Editor, one: Node) -> list[Node] | None:
    """A convolution over one axis is one over pictures of height 1."""
    found = arguments(one)
    x, weights = value_of(found["input"]), _weights(editor, found)
    if x is None or weights is None or not editor.floating(x, one.output):
        return None
    shape, made = editor.shape(x), editor.shape(one.output)
    if shape is None or made is None or len(shape) != 3:
        return None
    weight = editor.tensors[weights["weight"]].unsqueeze(2)
    ends = [_pair(found[role]) for role in ("stride", "dilation")]
    padding = _padding(found["padding"], torch.Size((1, weight.shape[3])), ends[1] and [1, ends[1][1]])
    if ends[0] is None or ends[1] is None or padding is None:
        return None
    weights = {**weights, "weight": editor.tensor(f"{weights['weight']}.2d", weight)}
    picture = editor.make("reshape", (x,), one.output, shape=[*shape[:2], 1, shape[2]])
    conv = editor.make(
        "conv2d",
        (picture.output,),
        one.output,
        weights,
        stride=[1, ends[0][1]],
        padding=[0, padding[1]],
        dilation=[1, ends[1][1]],
        groups=found["groups"],
    )
    return [picture, conv, node("reshape", (conv.output,), one.output, shape=list(made))]


def _linear(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x, weights = value_of(found["input"]), _weights(editor, found)
    if x is None or weights is None or not editor.floating(x, one.output) or len(editor.shape(x) or ()) < 2:
        return None
    return [node("linear", (x,), one.output, weights)]


def _matmul(editor: Editor, one: Node) -> list[Node] | None:
    """A product with a weight [in, out] is a linear layer."""
    found = arguments(one)
    x, weight = value_of(found.get("self", found.get("mat1"))), tensor_of(found.get("other", found.get("mat2")))
    bias = tensor_of(found["self"]) if "mat1" in found else None
    if "mat1" in found:  # addmm: bias + x weight
        x = value_of(found["mat1"])
        if bias is None or found["beta"] != 1 or found["alpha"] != 1 or editor.tensors[bias].dim() != 1:
            return None
    if x is None or weight is None or editor.tensors[weight].dim() != 2 or not editor.floating(x, one.output):
        return None
    if len(editor.shape(x) or ()) < 2:
        return None
    turned = editor.tensor(f"{weight}.T", editor.tensors[weight].t().contiguous())
    return [node("linear", (x,), one.output, {"weight": turned} | ({} if bias is None else {"bias": bias}))]


def _batch_norm(editor: Editor, one: Node) -> list[Node] | str | None:
    """In evaluation mode a batch norm is a scale and a shift of each channel."""
    found = arguments(one)
    x = value_of(found["input"])
    roles = ("weight", "bias", "running_mean", "running_var")
    named = [tensor_of(found[role]) for role in roles]
    if x is None or found.get("training") or named[2] is None or named[3] is None:
        return None
    if not editor.floating(x, one.output) or len(editor.shape(x) or ()) < 2:
        return None
    weight, bias, mean, var = (None if name is None else editor.tensors[name].double() for name in named)
    assert mean is not None and var is not None  # noqa: PT018
    scale = torch.rsqrt(var + float(found["eps"]))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    dtype = getattr(torch, editor.values[x].dtype)
    prefix = named[2].removesuffix("running_mean")
    weights = {
        role: editor.tensor(f"{prefix}{role}", made.to(dtype)) for role, made in (("scale", scale), ("shift", shift))
    }
    return [node("affine", (x,), one.output, weights)]


def _layer_norm(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found["input"])
    if x is None or len(found["normalized_shape"]) != 1 or not editor.floating(x, one.output):
        return None
    given = [found["weight"], found["bias"]]
    named = [tensor_of(arg) for arg in given]
    if any(name is None and arg is not None for name, arg in zip(named, given, strict=True)):
        return None
    if len(editor.shape(x) or ()) < 2:
        return None
    dtype = getattr(torch, editor.values[x].dtype)
    weights = {}
    if named[0] is not None or named[1] is not None:
        width = found["normalized_shape"][0]
        made = {"weight": torch.ones(width, dtype=dtype), "bias": torch.zeros(width, dtype=dtype)}
        for role, name in zip(("weight", "bias"), named, strict=True):
            weights[role] = name if name is not None else editor.tensor(f"{one.output}.{role}", made[role])
    if any(editor.tensors[name].dtype != dtype for name in weights.values()):
        return None
    return [node("layer_norm", (x,), one.output, weights, eps=float(found["eps"]))]


def _pool(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found["self"])
    if x is None or not editor.floating(x, one.output) or len(editor.shape(x) or ()) != 4:
        return None
    kernel, padding = _pair(found["kernel_size"]), _pair(found["padding"])
    stride = _pair(found["stride"] or found["kernel_size"])
    if kernel is None or stride is None or padding is None:
        return None
    window: dict[str, Json] = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": found["ceil_mode"]}
    if "dilation" in found:
        dilation = _pair(found["dilation"])
        return None if dilation is None else [node("max_pool2d", (x,), one.output, **window, dilation=dilation)]
    if found["divisor_override"] is not None:
        return None
    made, shape = editor.shape(one.output) or (), editor.shape(x) or ()
    covers = all(size >= int(side or 0) for size, side in zip(kernel, shape[2:], strict=True))
    if made[2:] == (1, 1) and covers and padding == [0, 0]:
        return [node("global_avg_pool", (x,), one.output, keepdim=True)]
    return [node("avg_pool2d", (x,), one.output, **window, count_include_pad=found["count_include_pad"])]


def _adaptive(editor: Editor, one: Node) -> list[Node] | str | None:
    x = value_of(arguments(one)["self"])
    if x is None or not editor.floating(x, one.output):
        return None
    before, after = editor.shape(x) or (), editor.shape(one.output) or ()
    if len(before) != 4:
        return None
    if before == after:
        return x
    if after[2:] == (1, 1):
        return [node("global_avg_pool", (x,), one.output, keepdim=True)]
    sizes = [(int(old or 0), int(new or 0)) for old, new in zip(before[2:], after[2:], strict=True)]
    if any(not new or old % new for old, new in sizes):
        return None
    kernel = [old // new for old, new in sizes]
    return [node("avg_pool2d", (x,), one.output, kernel=kernel, stride=kernel)]


def _mean(editor: Editor, one: Node) -> list[Node] | None:
    """A mean over height and width."""
    found = arguments(one)
    x = value_of(found["self"])
    if x is None or not isinstance(found.get("dim"), list) or not editor.floating(x, one.output):
        return None
    rank = len(editor.shape(x) or ())
    if rank != 4 or sorted(axis % rank for axis in found["dim"]) != [2, 3]:
        return None
    return [node("global_avg_pool", (x,), one.output, keepdim=found["keepdim"])]


def _softmax(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found["self"])
    if x is None or not editor.floating(x, one.output):
        return None
    axis = int(found["dim"]) % max(len(editor.shape(x) or ()), 1)
    return [node("softmax", (x,), one.output, axis=axis)] if axis else None


def _hides_nothing(editor: Editor, mask: Json) -> bool:
    """Whether an attention mask is None, or a constant that lets everything be seen, perhaps expanded."""
    if mask is None:
        return True
    name, maker = tensor_of(mask), editor.makers.get(value_of(mask) or "")
    if maker is not None and base(maker) == "expand":
        name = tensor_of(arguments(maker)["self"])
    if name is None:
        return False
    known = editor.tensors[name]
    return bool(known.all()) if known.dtype == torch.bool else not bool(known.any())


def _attention(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    names = [value_of(found[role]) for role in ("query", "key", "value")]
    if None in names or found["dropout_p"] or found["enable_gqa"] or not _hides_nothing(editor, found["attn_mask"]):
        return None
    q, k, v = (str(name) for name in names)
    shapes = [editor.shape(name) or () for name in (q, k, v)]
    if not editor.floating(q, k, v, one.output) or any(len(shape) != 4 for shape in shapes):
        return None
    if not shapes[0][:2] == shapes[1][:2] == shapes[2][:2]:
        return None
    setting = {"scale": found["scale"], "causal": found["is_causal"]}
    return [node("attention", (q, k, v), one.output, **setting)]


def getitem_of(editor: Editor, one: Node, maker: Node) -> list[Node] | None:
    """The first entry of a list that an operation with several results made."""
    rule = _FIRST_OF.get(base(maker))
    if rule is None or one.attrs["args"][1] != 0:
        return None
    made = rule(editor, replace(maker, output=one.output))
    return made if isinstance(made, list) else None


_FIRST_OF: Mapping[str, Rule] = {
    "max_pool2d_with_indices": _pool,
    "_native_batch_norm_legit_no_training": _batch_norm,
}

RULES: Mapping[str, Rule] = {
    "conv2d": _conv2d,
    "convolution": _conv2d,
    "conv1d": _conv1d,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _matmul,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "softmax": _softmax,
    "_softmax": _softmax,
    "scaled_dot_product_attention": _attention,
}
