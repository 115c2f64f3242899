"""Finds values that are the same for every example, such as position numbers and causal masks, and computes them once.

Such a value depends only on the number of examples. The pass computes the value for one example, and an ``expand``
repeats it for the others. An operation qualifies if equal rows in all inputs give equal rows in the output. Each
value is checked by computing it for two and for three examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    NoMatchError,
    aten_name,
    bind_arguments,
    name_without_overload,
    require_match,
    value_name,
    without_unused_nodes,
)
from ticketry_engine.ir import DTYPES, Graph, Node, aten
from ticketry_engine.ir.native import dtype_name

_SIZED = frozenset({"ones", "zeros", "full", "arange", "expand", "repeat", "view", "reshape"})
"""Operations that may have the number of examples as an argument, as a size."""

_FOLLOWED_NAMES = """
__and__ __or__ __xor__ where masked_fill expand slice select
diff cumsum cumprod unsqueeze squeeze transpose permute cat stack index embedding to _to_copy
clone contiguous detach alias view reshape sum mean amax amin any all softmax triu tril flip roll pad
constant_pad_nd flatten unflatten lift_fresh_copy repeat repeat_interleave gather
"""
_FOLLOWED = frozenset(_FOLLOWED_NAMES.split())
"""Operations, besides pointwise ones, that may compute a value which is the same for every example."""

_TRIANGLES = ("triu", "tril")
"""Operations whose result depends on the row number."""

_EXAMPLES = (2, 3)
_NO_END = 2**63 - 1
"""End of the slice ``x[:]``."""
_LARGEST = 1 << 22
"""Maximum number of elements of one example."""


@dataclass
class _EqualRows:
    """Finds the values of a graph that are the same for every example."""

    graph: Graph
    numbers: dict[str, str] = field(default_factory=dict)
    """Name of a value that is the number of examples -> name of the tensor value with that size of axis 0."""
    orders: dict[str, list[Any]] = field(default_factory=dict)
    """Name of an ``arange`` over the examples, used as an index -> the tensors for each number in `_EXAMPLES`."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Name of a value -> the row [1, ...] that is the same for every example."""

    def evaluate_node(self, node: Node) -> None:
        """Compute the output of a torch operation and store it; raise `NoMatchError` if it differs between examples."""
        name = name_without_overload(node)
        if node.op == "aten.sym_size.int":
            x, axis = node.attrs["args"][:2]
            shape = self.graph.values[x["value"]].shape
            require_match(axis == 0 and shape and shape[0] is None)
            self.numbers[node.output] = x["value"]
            return
        require_match(node.op.startswith("aten.") and self._can_evaluate(node, name))
        shape = self.graph.values[node.output].shape  # two and three examples cannot distinguish `x[:5]`
        require_match(shape and shape[0] is None and (name not in _TRIANGLES or len(shape) > 2))
        made = [self._evaluate_for_examples(node, examples) for examples in _EXAMPLES]
        require_match(all(isinstance(tensor, Tensor) for tensor in made))
        require_match(all(tensor.dim() and tensor.shape[0] == n for tensor, n in zip(made, _EXAMPLES, strict=True)))
        if name == "arange" or any(value in self.orders for value in node.inputs if name != "index"):
            require_match(all(torch.equal(tensor.flatten(), torch.arange(len(tensor))) for tensor in made))
            self.orders[node.output] = made
            return
        row = made[0][:1]
        require_match(row.numel() <= _LARGEST and dtype_name(row.dtype) in DTYPES)
        require_match(all(tensor.shape[1:] == row.shape[1:] for tensor in made))
        same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
        require_match(all(same(tensor, row.expand_as(tensor)) for tensor in made))
        self.rows[node.output] = row.clone()

    def _can_evaluate(self, node: Node, name: str) -> bool:
        tags = aten.find_operation(node.op, trusted=True).tags
        known = self.numbers.keys() | self.orders.keys() | self.rows.keys()
        if torch.Tag.nondeterministic_seeded in tags or not known.issuperset(node.inputs):
            return False
        if any(value in self.numbers for value in node.inputs) and name not in _SIZED:
            return False
        rows = any(value in self.rows for value in node.inputs)
        if any(value in self.orders for value in node.inputs):  # good for picking examples, which are all alike
            picks = name == "index" and value_name(bind_arguments(node)["self"]) in self.rows
            whole = (
                name == "slice" and bind_arguments(node)["end"] in (None, _NO_END) and not bind_arguments(node)["start"]
            )
            return picks or (not rows and (whole or name in ("unsqueeze", "view", "reshape")))
        if rows:
            return name in _FOLLOWED or torch.Tag.pointwise in tags
        return any(value in self.numbers for value in node.inputs) and self._has_batch_as_first_size(node, name)

    def _has_batch_as_first_size(self, node: Node, name: str) -> bool:
        """Return whether `node` uses a number of examples only as size 0 of its output.

        `name` is the name of the node's operation, such as "arange".
        """
        found = bind_arguments(node)
        if name == "arange":
            return value_name(found["end"]) in self.numbers and found.get("start", 0) == 0 and found.get("step", 1) == 1
        size = found.get("size", found.get("repeats"))
        fills = [value for value in found.values() if value is not size and value_name(value) is not None]
        return (
            isinstance(size, list)
            and value_name(size[0]) in self.numbers
            and not fills
            and all(type(part) is int for part in size[1:])
        )

    def _evaluate_for_examples(self, node: Node, examples: int) -> Any:
        inputs: list[Any] = []
        for name in node.inputs:
            if name in self.rows:
                row = self.rows[name]
                inputs.append(row.expand(examples, *row.shape[1:]))
            elif name in self.orders:
                inputs.append(self.orders[name][_EXAMPLES.index(examples)])
            else:
                inputs.append(examples)
        try:
            with torch.no_grad():
                return aten.bind_torch_node(node, self.graph.tensors, "cpu")(*inputs)
        except (RuntimeError, IndexError, TypeError, ValueError):
            raise NoMatchError from None


def replace_equal_rows(graph: Graph) -> Graph:
    """Return the graph with values that are the same for every example replaced by an ``expand`` of a constant."""
    known = _EqualRows(graph)
    for one in graph.nodes:
        if not one.native:
            with contextlib.suppress(NoMatchError):
                known.evaluate_node(one)
    if not known.rows:
        return graph
    tensors = dict(graph.tensors)
    read = {name for one in graph.nodes if one.output not in known.rows for name in one.inputs} | set(
        graph.output_names
    )
    number = ""
    nodes: list[Node] = []
    for one in graph.nodes:
        number = number or (one.output if one.output in known.numbers else "")
        if one.output not in known.rows:
            nodes.append(one)
        elif one.output in read and number:
            weight, row = f"{one.output}.row", known.rows[one.output]
            tensors[weight] = row.contiguous()
            args = [{"tensor": weight}, [{"value": number}, *row.shape[1:]]]
            attrs = {"args": args, "kwargs": {}}
            nodes.append(Node("aten.expand.default", (number,), one.output, attrs, {weight: weight}))
    return without_unused_nodes(replace(graph, tensors=tensors).with_nodes(nodes, tensors=tensors))


def expanded_row(made_by: Mapping[str, Node], tensors: Mapping[str, Tensor], name: str | None) -> Tensor | None:
    """Return the row [1, ...] that an ``expand`` repeats to make the value `name`; None if no ``expand`` makes it.

    `made_by` has the node that computes each value, by value name, and `tensors` are the weights.
    """
    maker = made_by.get(name or "")
    if maker is None or aten_name(maker) != "expand" or len(maker.weights) != 1:
        return None
    (weight,) = maker.weights
    sizes = maker.attrs["args"][1]
    row = tensors[weight]
    if value_name(sizes[0]) is None or len(sizes) != row.dim() or row.shape[0] != 1:
        return None
    wanted = [own if size == -1 else size for own, size in zip(row.shape[1:], sizes[1:], strict=True)]
    return row.expand(1, *wanted) if all(type(size) is int for size in wanted) else None
