"""What the nodes of a traced graph are for the kernels: modules and functions that they know."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ticketry_engine.kernels.window import Window
from ticketry_engine.training.nodes import Act, Conv, LayerNorm, Node, Norm, Pool, Relu, Sum


class Unknown(Exception):
    """The reason why a node runs in torch."""


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a value; None of what is no tensor."""
    found = getattr(node.meta.get("tensor_meta"), "shape", None)
    return found if isinstance(found, torch.Size) else None


def _images(node: fx.Node) -> torch.Size:
    shape = shape_of(node)
    if shape is None or len(shape) != 4:
        raise Unknown(f"reads {None if shape is None else tuple(shape)}, not images x channels x rows x columns")
    return shape


def _conv(node: fx.Node, x: fx.Node, module: nn.Conv2d) -> Node:
    _images(x)
    padding: Any = module.padding  # torch reads it at each call; what it once made of it, for other modes alone
    reach = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding_mode != "zeros" or (padding == "same" and any(size % 2 for size in reach)):
        raise Unknown(f"padding {padding!r} of the mode {module.padding_mode!r}")
    if isinstance(padding, str):
        padding = [size // 2 for size in reach] if padding == "same" else (0, 0)
    pairs = [(int(a), int(b)) for a, b in (module.kernel_size, module.stride, padding, module.dilation)]
    return Conv(
        x.name,
        node.name,
        str(node.target),
        module.in_channels,
        module.out_channels,
        Window(*pairs),
        module.groups,
        module.bias is not None,
    )


def _linear(node: fx.Node, x: fx.Node, module: nn.Linear) -> Node:
    shape = shape_of(x)
    if shape is None or len(shape) < 2:
        raise Unknown(f"reads {None if shape is None else tuple(shape)}, not examples x features")
    bias = module.bias is not None
    return Conv(x.name, node.name, str(node.target), module.in_features, module.out_features, Window(), 1, bias)


def _norm(node: fx.Node, x: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> Node:
    shape = shape_of(x)
    if not module.training:
        raise Unknown("a batch norm in evaluation mode")
    if not module.affine or shape is None or len(shape) not in (2, 4):
        raise Unknown("a batch norm without scale and shift, or over sequences")
    return Norm(x.name, node.name, str(node.target))


def _layer_norm(node: fx.Node, x: fx.Node, module: nn.LayerNorm) -> Node:
    shape = shape_of(x)
    if shape is None or len(shape) < 2 or tuple(module.normalized_shape) != tuple(shape[-1:]):
        raise Unknown("a layer norm over more than the last dimension")
    scale, shift = module.elementwise_affine, module.elementwise_affine and module.bias is not None
    return LayerNorm(x.name, node.name, str(node.target), module.eps, scale, shift)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _side_by_side(node: fx.Node, x: fx.Node, size: Any, stride: Any, padding: Any, other: bool) -> Node:
    _images(x)
    size = _pair(size)
    if _pair(stride or size) != size or _pair(padding) != (0, 0) or other:
        raise Unknown("means of windows that do not lie side by side")
    return Pool(x.name, node.name, size, False)


def _largest(node: fx.Node, x: fx.Node, size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Node:
    _images(x)
    size, padding = _pair(size), _pair(padding)
    stride = _pair(stride or size)
    if _pair(dilation) != (1, 1):
        raise Unknown("dilated windows")
    if stride == size and padding == (0, 0) and not ceil:
        return Pool(x.name, node.name, size, True)
    return Pool(x.name, node.name, size, True, stride, padding, bool(ceil))


def _max_pool(node: fx.Node, x: fx.Node, m: nn.MaxPool2d) -> Node:
    if m.return_indices:
        raise Unknown("places of the largest values")
    return _largest(node, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def _avg_pool(node: fx.Node, x: fx.Node, m: nn.AvgPool2d) -> Node:
    return _side_by_side(node, x, m.kernel_size, m.stride, m.padding, bool(m.ceil_mode or m.divisor_override))


def _whole(node: fx.Node, x: fx.Node, size: Any) -> Node:
    _images(x)
    if size not in (1, (1, 1), [1, 1]):
        raise Unknown("an adaptive pooling to more than one pixel")
    return Pool(x.name, node.name, None, False)


def _flat(node: fx.Node, x: fx.Node) -> None:
    """A view without pixels of a value that has one."""
    before, after = shape_of(x), shape_of(node)
    if before is None or after is None or len(after) != 2 or tuple(before[2:]) not in ((), (1, 1)):
        raise Unknown("another shape")
    if tuple(before[:2]) != tuple(after):
        raise Unknown("another shape")


def _nothing(node: fx.Node, x: fx.Node, module: nn.Module) -> None:
    return None


def _dropout(node: fx.Node, x: fx.Node, module: nn.Dropout) -> None:
    if module.p:
        raise Unknown("dropout")


def _act(act: str) -> Callable[[fx.Node, fx.Node, Any], Node]:
    return lambda node, x, module: Act(x.name, node.name, act)


def _gelu(node: fx.Node, x: fx.Node, module: nn.GELU) -> Node:
    return Act(x.name, node.name, _GELU[module.approximate])


_GELU = {"none": "gelu", "tanh": "gelu_tanh"}

_MODULES: dict[type[nn.Module], Callable[[fx.Node, fx.Node, Any], Node | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm1d: _norm,
    nn.LayerNorm: _layer_norm,
    nn.ReLU: lambda node, x, module: Relu(x.name, node.name),
    nn.ReLU6: _act("relu6"),
    nn.SiLU: _act("silu"),
    nn.GELU: _gelu,
    nn.Hardswish: _act("hardswish"),
    nn.Hardsigmoid: _act("hardsigmoid"),
    nn.Sigmoid: _act("sigmoid"),
    nn.Tanh: _act("tanh"),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda node, x, module: _whole(node, x, module.output_size),
    nn.Flatten: lambda node, x, module: _flat(node, x),
    nn.Identity: _nothing,
    nn.Dropout: _dropout,
}


def _arguments(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    """What a function is called with behind its first argument, by name.

    Raises:
        Unknown: an argument that is not among these.
    """
    found = dict(defaults)
    if len(node.args) - 1 > len(defaults) or set(node.kwargs) - set(defaults):
        raise Unknown("unknown arguments")
    found.update(zip(defaults, node.args[1:], strict=False))
    found.update(node.kwargs)
    return found


def _input(node: fx.Node) -> fx.Node:
    if not node.args or not isinstance(node.args[0], fx.Node):
        raise Unknown("no tensor comes in")
    return node.args[0]


def _function_relu(node: fx.Node) -> Node:
    _arguments(node, inplace=False)
    return Relu(_input(node).name, node.name)


def _function_act(act: str) -> Callable[[fx.Node], Node]:
    def lowered(node: fx.Node) -> Node:
        _arguments(node, inplace=False)
        return Act(_input(node).name, node.name, act)

    return lowered


def _function_gelu(node: fx.Node) -> Node:
    return Act(_input(node).name, node.name, _GELU[_arguments(node, approximate="none")["approximate"]])


def _function_sum(node: fx.Node) -> Node:
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, fx.Node) for one in node.args):
        raise Unknown("no sum of two values")
    one, other = node.args
    assert isinstance(one, fx.Node)
    assert isinstance(other, fx.Node)
    if shape_of(one) is None or shape_of(one) != shape_of(other) or len(shape_of(one) or ()) < 2:
        raise Unknown("values of different shapes")
    return Sum(one.name, other.name, node.name)


def _function_flat(node: fx.Node) -> None:
    _flat(node, _input(node))


def _function_whole(node: fx.Node) -> Node:
    return _whole(node, _input(node), _arguments(node, output_size=None)["output_size"])


def _function_max_pool(node: fx.Node) -> Node:
    a = _arguments(node, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    if a.pop("return_indices"):
        raise Unknown("places of the largest values")
    return _largest(node, _input(node), *a.values())


def _function_avg_pool(node: fx.Node) -> Node:
    a = _arguments(node, kernel_size=None, stride=None, padding=0, ceil_mode=False)
    return _side_by_side(node, _input(node), *a.values())


_FUNCTIONS: dict[Any, Callable[[fx.Node], Node | None]] = {
    F.relu: _function_relu,
    torch.relu: _function_relu,
    "relu": _function_relu,
    F.relu6: _function_act("relu6"),
    F.silu: _function_act("silu"),
    F.gelu: _function_gelu,
    F.hardswish: _function_act("hardswish"),
    F.hardsigmoid: _function_act("hardsigmoid"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _function_act("sigmoid")),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _function_act("tanh")),
    operator.add: _function_sum,
    operator.iadd: _function_sum,
    torch.add: _function_sum,
    torch.flatten: _function_flat,
    "flatten": _function_flat,
    F.adaptive_avg_pool2d: _function_whole,
    F.max_pool2d: _function_max_pool,
    F.avg_pool2d: _function_avg_pool,
}
"""Functions, and names of methods."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of torch's whose code a module of a class derived from it runs; else its own class."""
    own = type(module)
    for base in own.__mro__:
        same = base in _MODULES and own.forward is base.forward
        if same and getattr(own, "_conv_forward", None) is getattr(base, "_conv_forward", None):
            return base
    return own


def lowered_module(node: fx.Node, module: nn.Module) -> Node | None:
    """What a call of a module is for the kernels; None: another name for its input.

    Raises:
        Unknown: nothing.
    """
    lower = _MODULES.get(kind_of(module))
    if lower is None or len(node.all_input_nodes) != 1:
        raise Unknown(f"no kernels for {type(module).__name__}")
    return lower(node, node.all_input_nodes[0], module)


def lowered_function(node: fx.Node) -> Node | None:
    """What a call of a function or method is for the kernels: as of `lowered_module`."""
    function = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    if function is None:
        raise Unknown("no kernels")
    return function(node)


_DRAWING = re.compile(
    "drop|rand|bernoulli|multinomial|normal|uniform|exponential|gumbel|rrelu|poisson|cauchy|geometric"
)


def draws(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may draw random numbers: such nodes run in the order of the model's code."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = kind_of(module) in _MODULES and not isinstance(module, nn.Dropout)
        return bool(module._forward_hooks or module._forward_pre_hooks) or not known
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    attends = "attention" in str(name) and ("dropout_p" in node.kwargs or len(node.args) > 4)
    return attends or bool(_DRAWING.search(str(name)))


def layouts(node: fx.Node, made: Node | None, *, linear: bool) -> set[bool]:
    """In which regions a node may be: in those of tokens (True), of images (False).

    A linear layer over examples x features is one over images without pixels.
    """
    sizes = {len(shape_of(read) or ()) for read in node.all_input_nodes}
    if made is None and shape_of(node) != shape_of(node.all_input_nodes[0]):
        return {False}
    if linear:
        return {False} if sizes == {2} else {True}
    if isinstance(made, (Conv, Norm, Pool)):
        return {False}
    if isinstance(made, LayerNorm):
        return {True}
    return {True, False} if sizes <= {2, 4} else {True}
