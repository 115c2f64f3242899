"""What depends on weights alone is computed once, when the model is captured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ticketry.engine import aten
from ticketry.engine.capture.editor import arguments, base, with_arguments, without_unused
from ticketry.engine.graph import DTYPES, Graph, Node

_LARGEST = 1 << 20
"""Elements that a result may have beyond those of the weights it is made of: a mask of ones is not worth its space."""


def compute_constants(graph: Graph) -> Graph:
    """The graph in which no torch node has weights and numbers as its only arguments."""
    constants: dict[str, Any] = {}
    tensors = dict(graph.tensors)
    nodes: list[Node] = []
    kept = set(graph.results)
    for old in graph.nodes:
        known = {name: _as_argument(name, constants[name]) for name in old.inputs if name in constants}
        one = _new(graph, with_arguments(old, known) if known else old)
        if one.inputs or not _is_function_of_weights(one):
            nodes.append(one)
            continue
        with torch.no_grad():
            made = aten.prepare(one, tensors, "cpu")()
        size = sum(tensors[name].numel() for name in one.weights)
        if one.output in kept or not _can_be_held(made, size + _LARGEST):
            nodes.append(one)
            continue
        constants[one.output] = made
        if isinstance(made, Tensor):
            tensors[one.output] = made.contiguous() if made.numel() else made
        elif isinstance(made, (tuple, list)):
            nodes.append(one)  # its entries are taken by later nodes
            del constants[one.output]
    return without_unused(replace(graph, tensors=tensors).with_nodes(nodes, tensors=tensors))


_NEW = {"new_zeros": "zeros", "new_ones": "ones", "new_full": "full"}


def _new(graph: Graph, one: Node) -> Node:
    """A tensor of fixed size that is new, but for the data type of another one, needs the other one no more."""
    op = _NEW.get(base(one))
    if op is None:
        return one
    found = arguments(one)
    if not all(type(size) is int for size in found["size"]):
        return one
    args = [found["size"], *([found["fill_value"]] if op == "full" else [])]
    kwargs = {"dtype": {"dtype": graph.values[one.output].dtype}}
    return with_arguments(Node(f"aten.{op}.default", (), one.output, {"args": args, "kwargs": kwargs}, {}), {})


def _is_function_of_weights(one: Node) -> bool:
    if one.native:
        return False
    if one.op.startswith("operator."):
        return True
    return torch.Tag.nondeterministic_seeded not in aten.find(one.op, trusted=True).tags


def _can_be_held(made: Any, most: int) -> bool:
    if isinstance(made, Tensor):
        return made.numel() <= most and str(made.dtype).removeprefix("torch.") in DTYPES
    return isinstance(made, (bool, int, float, tuple, list))


def _as_argument(name: str, made: Any) -> Any:
    return {"tensor": name} if isinstance(made, Tensor) else made
