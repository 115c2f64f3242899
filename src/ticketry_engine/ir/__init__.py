"""Networks as graphs: nodes and their rules, what each means in torch, how a call binds to one, and the file of one."""

from __future__ import annotations

from ticketry_engine.ir.graph import Graph, last_uses, leaves, with_leaves
from ticketry_engine.ir.nodes import DTYPES, FLOATS, UNFILED, Json, Node, Value, node

__all__ = [
    "DTYPES",
    "FLOATS",
    "UNFILED",
    "Graph",
    "Json",
    "Node",
    "Value",
    "last_uses",
    "leaves",
    "node",
    "with_leaves",
]
