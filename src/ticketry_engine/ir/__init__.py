"""Represents networks as graphs of nodes, runs graphs in torch, binds arguments of calls, and reads model files.

Read the modules in this order: `native` (the kinds of nodes), `graph`, `reference`; `aten` has the nodes that torch
runs.
"""

from __future__ import annotations

from ticketry_engine.ir.graph import Graph, Region, last_uses, value_names, with_value_names
from ticketry_engine.ir.native import DTYPES, FLOATS, UNFILED, Json, Node, Value, native_node

__all__ = ["DTYPES", "FLOATS", "UNFILED", "Graph", "Json", "Node", "Region", "Value", "last_uses", "value_names"]
__all__ += ["native_node", "with_value_names"]
