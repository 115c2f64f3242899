"""What depends on weights alone is computed once, when the model is captured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ticketry.engine import aten
from ticketry.engine.capture.editor import with_arguments, without_unused
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
        one = with_arguments(old, known) if known else old
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
