"""Results with memory of their own, where the model's have that: whoever calls a model may write to what it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from ticketry_engine.capture.editor import arguments, base, free_name, packet, tensor_of, value_of
from ticketry_engine.ir import Graph, Node, aten, leaves, with_leaves

_Root: TypeAlias = "tuple[str, str]"
"""Whose memory a value lies in: ("weight", name), or ("value", name) of an input or of what a node makes anew."""

_VIEWS = ("reshape", "flatten", "slice", "transpose")
"""Native nodes whose result may be their input's memory."""

_GIVE_BACK = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
"""Operations of torch that do so in evaluation mode, though their schemas do not say it."""


def with_own_results(graph: Graph, captured: Graph) -> Graph:
    """The graph with a copy of each result that lies in a constant, an input or another result, unless it also did so
    in the graph as it was captured. A weight is never given away.

    Passes leave out copies that change no number, and compute once what is the same for every example.
    """
    before, after = _roots(captured), _roots(graph)
    known = {("value", name): ("value", name) for name in graph.inputs}
    """Memory that is taken -> whose it was as captured."""
    values, nodes, names = dict(graph.values), list(graph.nodes), []
    for old, name in zip(leaves(captured.outputs), leaves(graph.outputs), strict=True):
        root = after[name]
        if root[0] == "weight" or (root in known and known[root] != before[old]):
            copy = free_name(f"{name}.own", values)
            values[copy] = replace(values[name], name=copy)
            args = {"args": [{"value": name}], "kwargs": {}}
            nodes.append(Node("aten.clone.default", (name,), copy, args, {}))
            name = copy
        else:
            known.setdefault(root, before[old])
        names.append(name)
    if len(nodes) == len(graph.nodes):
        return graph
    given = iter(names)
    outputs = with_leaves(graph.outputs, lambda _: next(given))
    return replace(graph, values=values, nodes=tuple(nodes), outputs=outputs)


def _roots(graph: Graph) -> dict[str, _Root]:
    """Value -> whose memory it lies in."""
    roots: dict[str, _Root] = {name: ("value", name) for name in graph.inputs}
    for one in graph.nodes:
        kind, source = _source(one)
        roots[one.output] = ("weight", source) if kind == "weight" else roots.get(source, ("value", one.output))
    return roots


def _source(one: Node) -> tuple[str, str]:
    """The weight or value that a node may give a view of; ("value", "") where what it makes is new."""
    if one.native:
        return "value", one.inputs[0] if one.op in _VIEWS else ""
    if one.op.startswith("operator."):
        return "value", one.inputs[0] if base(one) == "getitem" and one.inputs else ""
    found = arguments(one)
    for known in aten.find(one.op, trusted=True)._schema.arguments:
        alias = known.alias_info
        if (alias is not None and not alias.is_write) or (packet(one) in _GIVE_BACK and known.name == "input"):
            if (name := tensor_of(found[known.name])) is not None:
                return "weight", name
            return "value", value_of(found[known.name]) or ""
    return "value", ""
