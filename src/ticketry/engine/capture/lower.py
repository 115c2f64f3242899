"""Torch nodes that say the same as a native operation become that."""

from __future__ import annotations

from collections.abc import Mapping

from ticketry.engine.capture import lower_layers, lower_pointwise, lower_shapes
from ticketry.engine.capture.convert import Sizes
from ticketry.engine.capture.editor import Editor, Rule, base, rewrite
from ticketry.engine.graph import Graph, Node

_RULES: Mapping[str, Rule] = {**lower_layers.RULES, **lower_pointwise.RULES, **lower_shapes.RULES}
"""Name of an ATen operation, or of one on numbers -> rule"""


def lower(graph: Graph, sizes: Mapping[str, Sizes]) -> Graph:
    """The graph with as many native nodes as its operations allow one by one."""
    return rewrite(graph, _lower, sizes)


def _lower(editor: Editor, one: Node) -> list[Node] | str | None:
    if one.native or not one.op.startswith(("aten.", "operator.getitem")):
        return None
    rule = _RULES.get(base(one))
    return rule(editor, one) if rule is not None else None
