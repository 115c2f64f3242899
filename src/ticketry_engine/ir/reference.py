"""Runs nodes in torch: nodes for which the engine has no kernels, whole graphs in tests, and the nodes of files.

Arguments are looked up when a node is prepared, not in each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.errors import EngineError, GraphError
from ticketry_engine.ir.aten import bind_torch_node, find_operation, replace_objects
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.native import FLOATS, NATIVE, OTHERS, Function, Node, Value, dtype_name
from ticketry_engine.support.files import one_line


def bind_node(node: Node, tensors: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> Function:
    """Return a function that computes the node's output with torch, from the node's inputs in order.

    `tensors` are the weights by name.
    """
    if not node.native:
        return bind_torch_node(node, tensors, device)
    weights = {role: tensors[name] for role, name in node.weights.items()}
    return NATIVE[node.op].compute(node.attrs, weights, len(node.inputs))


def bind_checked_node(graph: Graph, node: Node) -> Function:
    """Return a function that computes the node's output with torch, and checks the output's shape and dtype."""
    function = bind_node(node, graph.tensors)
    return function if node.native else with_output_check(function, graph.values[node.output], node)


class Cast:
    """Converts a graph's tensors and nodes to `precision`, from the dtype that most of the weights have."""

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

    def convert_value(self, value: Value) -> Value:
        if self.to is None or value.dtype != dtype_name(self.own):
            return value
        return replace(value, dtype=dtype_name(self.to))

    def convert_node(self, node: Node) -> Node:
        if self.to is None or node.native:
            return node
        own, to = ({"dtype": dtype_name(dtype)} for dtype in (self.own, self.to))
        attrs = replace_objects(node.attrs, lambda kind, content: to if {kind: content} == own else {kind: content})
        return replace(node, attrs=attrs)


def with_output_check(function: Function, value: Value, node: Node) -> Function:
    """Return `function` with a check that raises `GraphError` unless the output has the dtype and shape of `value`."""
    if value.dtype in OTHERS:
        return function
    dtype = getattr(torch, value.dtype)
    shape = value.shape
    dynamic = bool(shape) and shape is not None and shape[0] is None

    def call_and_check(*inputs: Any) -> Any:
        made = function(*inputs)
        fits = isinstance(made, Tensor) and made.dtype == dtype
        if fits and shape is not None:
            found = made.shape
            fits = len(found) == len(shape) and found[dynamic:] == shape[dynamic:]
        if not fits:
            was = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise GraphError(f"{node.op} -> {node.output}: it made {was}, not the {value.dtype} {shape} of the graph")
        return made

    return call_and_check


# -- output shapes that a file states for its torch nodes, checked without computing data ------------------------------

# The output shapes of native nodes follow from their inputs (`ir.native`). For torch nodes, a file may state any shape:
# a node whose stated output has ten elements could create 2^40. Therefore each node of a graph from a file is run once
# on the meta device. A tensor on the meta device also takes some memory, so the number of tensors that a node creates
# is limited before.


BATCH = 2
_LARGEST = 1 << 36
"""Maximum number of elements of a node's output for two examples, for any graph."""
_SMALL, _FOR_EACH = 1 << 30, 1 << 10
"""Lower limits for small graphs: the larger of `_SMALL` and `_FOR_EACH` times the elements of all weights and inputs.

The first number allows a mask for 32,768 tokens, the second a thousand channels from an image with one channel.
"""
_ONE_BY_ONE = 1 << 17
"""Maximum number of tensors in lists, and of time steps, over all nodes; two per node are allowed in addition."""


def check_stated_outputs(graph: Graph) -> Graph:
    """Return the graph itself if its torch operations give outputs of the shapes and dtypes in `Graph.values`.

    Operations whose output shape depends on data are not checked. Raise `GraphError` if an operation does not accept
    its arguments, or if its output is too large or differs.
    """
    weights = {name: tensor.to("meta") for name, tensor in graph.tensors.items()}
    made: dict[str, Any] = {name: _meta_input(graph.values[name]) for name in graph.inputs}
    given = sum(tensor.numel() for tensor in [*weights.values(), *made.values()])
    most, left = min(_LARGEST, max(_SMALL, _FOR_EACH * given)), _ONE_BY_ONE + 2 * len(graph.nodes)
    with torch.no_grad():
        for one in graph.nodes:
            value = graph.values[one.output]
            if one.native:
                made[one.output] = _meta_input(value)
                _check_output_size(one, made[one.output], most)
                continue
            known = all(name in made for name in one.inputs)
            left -= _most_created_tensors(one, weights, made) if known else 0
            if left < 0:
                raise GraphError(f"{one.op} -> {one.output}: it makes too many tensors, or takes too many steps")
            found = _run_on_meta(one, weights, made) if known else None
            if found is None:  # it depends on data, or on what does
                if value.shape is not None:
                    made[one.output] = _meta_input(value)
                continue
            for part in found if isinstance(found, (tuple, list)) else [found]:
                _check_output_size(one, part, most)
            _check_stated_output(one, value, found)
            made[one.output] = found
    return graph


def _meta_input(value: Value) -> Tensor:
    sizes = [BATCH if size is None else size for size in value.shape or ()]
    return torch.empty(sizes, dtype=getattr(torch, value.dtype), device="meta")


_RECURRENCES = ("gru", "lstm", "rnn_relu", "rnn_tanh")
_BY_AXIS = ("split", "unbind", "unsafe_split")
"""Operations that return a list of tensors, one for each fixed number of entries along an axis."""
_BY_COUNT = ("chunk", "diff", "dsplit", "hsplit", "split_with_sizes", "tensor_split", "unsafe_chunk", "vsplit")
_COUNTS = ("chunks", "indices", "n", "sections", "split_size", "split_sizes")
"""Names of arguments that contain the number, sizes or positions of the parts."""


def _most_created_tensors(node: Node, weights: Mapping[str, Tensor], made: Mapping[str, Any]) -> int:
    """Return the largest number of tensors that `node`, a recurrent layer or a node that returns a list, may create.

    The number is 0 for other nodes. `weights` and `made` are the weights and the inputs by name.
    """
    family = node.op.split(".")[1]
    if family not in (*_RECURRENCES, *_BY_AXIS, *_BY_COUNT) or node.op.startswith("operator."):
        return 0
    known = {"value": made, "tensor": weights}
    attrs = replace_objects(node.attrs, lambda kind, content: known.get(kind, {}).get(content))
    arguments = find_operation(node.op)._schema.arguments
    given = {each.name: each.default_value for each in arguments if each.has_default_value()}
    given |= {**dict(zip((each.name for each in arguments), attrs["args"], strict=False)), **attrs["kwargs"]}
    if family in _RECURRENCES:  # steps or layers, in either order of the axes
        first, states = given.get("input"), given.get("hx")
        several = states if isinstance(states, (list, tuple)) else [states]
        tensors = [x for x in (first, *several) if isinstance(x, Tensor)]
        return max((size for x in tensors for size in x.shape[:2]), default=0)
    count = next((given[name] for name in _COUNTS if name in given), 1)
    if isinstance(count, list):
        return len(count) + 1
    x, axis = given["self"], given.get("dim", 0)
    if not all(isinstance(number, int) for number in (count, axis)) or not isinstance(x, Tensor):
        return 0  # torch does not take it
    if family in _BY_COUNT:
        return max(0, count)
    return -(-x.shape[axis] // max(1, count)) if -x.dim() <= axis < x.dim() else 0


def _run_on_meta(node: Node, weights: dict[str, Tensor], made: dict[str, Any]) -> Any:
    """Return the node's output on the meta device; None if its shape depends on data.

    `weights` and `made` are the weights and the inputs by name.
    """
    try:
        return bind_torch_node(_with_device_argument(node), weights, "meta")(*(made[name] for name in node.inputs))
    except NotImplementedError:
        return None
    except GraphError:
        raise
    except Exception as error:  # torch raises what it likes on arguments that do not fit
        if "meta" in str(error).lower():
            return None
        reason = one_line((str(error).splitlines() or [""])[0][:200])
        raise GraphError(f"{node.op} -> {node.output}: torch does not take its arguments: {reason}") from None


def _with_device_argument(node: Node) -> Node:
    """Return the node with the device argument "own" (the graph's device), if its operation has a device argument."""
    if node.op.startswith("operator."):
        return node
    names = [known.name for known in find_operation(node.op)._schema.arguments]
    if "device" not in names[len(node.attrs["args"]) :]:
        return node
    kwargs = {**node.attrs["kwargs"], "device": {"device": "own"}}
    return replace(node, attrs={"args": node.attrs["args"], "kwargs": kwargs})


def _check_output_size(node: Node, made: Any, most_elements: int) -> None:
    if isinstance(made, Tensor) and made.numel() > most_elements:
        raise GraphError(
            f"{node.op} -> {node.output}: it makes {made.numel():,} numbers of two examples: too many for these weights"
            " and inputs"
        )


def _check_stated_output(node: Node, value: Value, found: Any) -> None:
    where = f"{node.op} -> {node.output}"
    if not isinstance(found, Tensor):
        kind = "list" if isinstance(found, (tuple, list)) else "number"
        if value.dtype != kind:
            raise GraphError(f"{where}: it makes a {kind}, not {value.dtype} {value.shape}")
        return
    dtype = dtype_name(found.dtype)
    shape = None if value.shape is None else [BATCH if size is None else size for size in value.shape]
    if value.dtype in OTHERS or dtype != value.dtype or (shape is not None and list(found.shape) != shape):
        raise GraphError(f"{where}: it makes {dtype} {list(found.shape)}, not {value.dtype} {value.shape}")
