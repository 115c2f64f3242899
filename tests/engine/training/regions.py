"""Regions of training steps, written node by node."""

from __future__ import annotations

from typing import Any

from torch import nn

from ticketry_engine.ir import Node, native_node
from ticketry_engine.training.capture import weight_shape
from ticketry_engine.training.plan import TrainingRegion


def layer(x: str, y: str, name: str, module: nn.Conv2d | nn.Linear) -> Node:
    """A convolution or linear layer."""
    weights = {role: f"{name}.{role}" for role, _ in module.named_parameters()}
    if isinstance(module, nn.Linear):
        return native_node("linear", (x,), y, weights)
    attrs: dict[str, Any] = {role: getattr(module, role) for role in ("stride", "padding", "dilation", "groups")}
    return native_node("conv2d", (x,), y, weights, **attrs)


def batch_norm(x: str, y: str, name: str, residual: str | None = None, act: str | None = None) -> Node:
    inputs = (x,) if residual is None else (x, residual)
    return native_node("batch_norm", inputs, y, {role: f"{name}.{role}" for role in ("weight", "bias")}, act=act)


def layer_norm(x: str, y: str, name: str, module: nn.LayerNorm) -> Node:
    return native_node(
        "layer_norm", (x,), y, {role: f"{name}.{role}" for role, _ in module.named_parameters()}, eps=module.eps
    )


def act(x: str, y: str, name: str) -> Node:
    return native_node("act", (x,), y, act=name)


def max_pool(x: str, y: str, kernel: Any, stride: Any = None, padding: Any = (0, 0), *, ceil: bool = False) -> Node:
    return native_node("max_pool2d", (x,), y, kernel=kernel, stride=stride or kernel, padding=padding, ceil=ceil)


def region(model: nn.Module, *nodes: Node, tokens: bool = False) -> TrainingRegion:
    """A region from the value ``x`` to the output of the last node."""
    layers = {name: one for name, one in model.named_modules() if isinstance(one, (nn.Conv2d, nn.Linear))}
    weights = {f"{name}.weight": weight_shape(one) for name, one in layers.items()}
    return TrainingRegion(("x",), (nodes[-1].output,), nodes, weights, tokens=tokens)
