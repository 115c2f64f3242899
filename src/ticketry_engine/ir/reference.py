"""Runs nodes in torch: nodes for which the engine has no kernels, and whole graphs in tests of kernels.

Arguments are looked up when a node is prepared, not in each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.errors import EngineError, GraphError
from ticketry_engine.ir.aten import prepare as prepare_torch_node
from ticketry_engine.ir.aten import replace_objects
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.native import FLOATS, NATIVE, OTHERS, Function, Node, Value, dtype_name


def prepare(node: Node, tensors: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> Function:
    """Return a torch function from the node's inputs, in order, to its output."""
    if not node.native:
        return prepare_torch_node(node, tensors, device)
    weights = {role: tensors[name] for role, name in node.weights.items()}
    return NATIVE[node.op].compute(node.attrs, weights, len(node.inputs))


def torch_step(graph: Graph, node: Node) -> Function:
    """Return a torch function from the node's inputs to its output that checks the output's shape and dtype."""
    function = prepare(node, graph.tensors)
    return function if node.native else check_output(function, graph.values[node.output], node)


class Cast:
    """Converts tensors, values and nodes of a graph from its main floating-point dtype to another dtype.

    The main dtype is that of most weight elements.

    Args:
        graph: the graph.
        precision: name of the new dtype; None: nothing is converted.
    """

    def __init__(self, graph: Graph, precision: str | None) -> None:
        if precision is not None and precision not in FLOATS:
            raise EngineError(f"there is no precision {precision!r}: choose one of {sorted(FLOATS)}")
        self.to = None if precision is None else getattr(torch, precision)
        counts: dict[torch.dtype, int] = {}
        for tensor in graph.tensors.values():
            if tensor.is_floating_point():
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        self.own = max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor if self.to is None or tensor.dtype != self.own else tensor.to(self.to)

    def value(self, value: Value) -> Value:
        if self.to is None or value.dtype != dtype_name(self.own):
            return value
        return replace(value, dtype=dtype_name(self.to))

    def node(self, node: Node) -> Node:
        if self.to is None or node.native:
            return node
        own, to = ({"dtype": dtype_name(dtype)} for dtype in (self.own, self.to))
        attrs = replace_objects(node.attrs, lambda kind, content: to if {kind: content} == own else {kind: content})
        return replace(node, attrs=attrs)


def check_output(function: Function, value: Value, node: Node) -> Function:
    """Return a function that calls `function`; it raises `GraphError` if the output does not fit `value`.

    The output must have the dtype and shape of `value`. `node` is named in the message.
    """
    if value.dtype in OTHERS:
        return function
    dtype = getattr(torch, value.dtype)
    shape = value.shape
    dynamic = bool(shape) and shape is not None and shape[0] is None

    def checked(*inputs: Any) -> Any:
        made = function(*inputs)
        fits = isinstance(made, Tensor) and made.dtype == dtype
        if fits and shape is not None:
            found = made.shape
            fits = len(found) == len(shape) and found[dynamic:] == shape[dynamic:]
        if not fits:
            was = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise GraphError(f"{node.op} -> {node.output}: it made {was}, not the {value.dtype} {shape} of the graph")
        return made

    return checked
