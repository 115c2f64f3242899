"""Networks as graphs: nodes with their rules, a reference interpreter in torch, argument binding, and model files.

Reading order: `nodes`, `native` (the node kinds), `graph`, `reference`; `aten` has the nodes that run in torch.
"""

from __future__ import annotations

from ticketry_engine.ir.graph import Graph, Region, last_uses, leaves, with_leaves
from ticketry_engine.ir.native import DTYPES, FLOATS, UNFILED, Json, Node, Value, node

__all__ = [
    "DTYPES",
    "FLOATS",
    "UNFILED",
    "Graph",
    "Json",
    "Node",
    "Region",
    "Value",
    "last_uses",
    "leaves",
    "node",
    "with_leaves",
]
