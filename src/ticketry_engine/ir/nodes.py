"""The parts of a graph: values, and nodes with one output each.

A *native* node is one of a few operations with exact shape rules (`ir.native`), which kernels may run. Any other node
is a *torch node* ``aten.NAME.OVERLOAD`` or ``operator.NAME``, which runs in torch (`ir.aten`).
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
"""Most elements of a tensor, or of one example of a value: a bound for untrusted files."""

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
DTYPES = FLOATS | {"int64", "int32", "int16", "int8", "uint8", "bool"}
_FLOAT8 = {"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
UNFILED = frozenset(_FLOAT8 | {"complex32", "complex64", "complex128", "uint16", "uint32", "uint64"})
"""Further dtypes of torch nodes in a graph captured in this process; files do not store them."""
OTHERS = frozenset({"number", "list"})
"""Results of torch nodes other than tensors: single numbers such as sizes; tuples and lists."""


@dataclass(frozen=True)
class Value:
    """The result of a node, or an input of the graph."""

    name: str
    shape: Shape | None
    """Sizes; None at axis 0 is the batch. The whole shape is None if it depends on the batch otherwise, such as N*T;
    only torch nodes use such values."""
    dtype: str = "float32"
    """Name of a torch dtype without ``torch.``, or "number" or "list"."""

    def numel(self, batch: int) -> int:
        """Return the number of elements at a batch size; 0 if the shape is unknown."""
        return 0 if self.shape is None else prod(batch if size is None else int(size) for size in self.shape)


@dataclass(frozen=True)
class Node:
    """One operation. `ir.native` lists the native ones with their attributes and weights."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    """Role ("weight", "bias", "scale", "shift") -> name in `Graph.tensors`; for a torch node name -> the same name."""

    @property
    def native(self) -> bool:
        """Whether the operation is native."""
        return self.op in NATIVE


def node(
    op: str, inputs: tuple[str, ...], output: str, weights: Mapping[str, str] | None = None, **attrs: Json
) -> Node:
    """Return a native node with defaults for attributes not given; raise GraphError for an unknown operation."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op!r}")
    whole = {**NATIVE[op].defaults, **attrs}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}
    return Node(op, tuple(inputs), output, lists, dict(weights or {}))
