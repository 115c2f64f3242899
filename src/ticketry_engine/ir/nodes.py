"""The parts of a graph: values, and nodes, each with one output.

A *native* node is one of a few operations with exact rules for shapes (`graph.native`); any other is a *torch node*
``aten.NAME.OVERLOAD`` or ``operator.NAME``, which runs in torch at that place (`graph.aten`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

from ticketry_engine.errors import GraphError
from ticketry_engine.ir.native import NATIVE
from ticketry_engine.ir.native_shapes import Size

Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or string-keyed dict of these."""

Shape: TypeAlias = "tuple[Size, ...]"

MOST_NODES = 1 << 20
MOST_DIMENSIONS = 16
LONGEST_NAME = 512
LARGEST_SIZE = 1 << 40
"""Elements of one tensor, and examples aside of one value: beyond any network's."""

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
DTYPES = FLOATS | {"int64", "int32", "int16", "int8", "uint8", "bool"}
_FLOAT8 = {"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
UNFILED = frozenset(_FLOAT8 | {"complex32", "complex64", "complex128", "uint16", "uint32", "uint64"})
"""Data types that torch nodes have besides, in a graph that was captured in this process: files do not hold them."""
OTHERS = frozenset({"number", "list"})
"""What torch nodes may make besides tensors: sizes and other single numbers; tuples and lists."""


@dataclass(frozen=True)
class Value:
    """What a node makes, or an input of the graph."""

    name: str
    shape: Shape | None
    """None at axis 0 is the batch. A shape that holds the batch in any other way, as N*T, is None as a whole: only
    torch nodes touch such values."""
    dtype: str = "float32"
    """A name of torch's without its ``torch.``, or "number" or "list"."""

    def numel(self, batch: int) -> int:
        """Elements at a batch of that size; 0 where the shape is not known."""
        return 0 if self.shape is None else prod(batch if size is None else int(size) for size in self.shape)


@dataclass(frozen=True)
class Node:
    """One operation. `engine.graph.native` lists the native ones with their attributes and weights."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    """Role ("weight", "bias", "scale", "shift") -> name in `Graph.tensors`; of a torch node name -> the same name."""

    @property
    def native(self) -> bool:
        return self.op in NATIVE


def node(
    op: str, inputs: tuple[str, ...], output: str, weights: Mapping[str, str] | None = None, **attrs: Json
) -> Node:
    """A native node, with the default of every attribute that is not given; `GraphError` for an unknown operation."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op!r}")
    whole = {**NATIVE[op].defaults, **attrs}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}
    return Node(op, tuple(inputs), output, lists, dict(weights or {}))
