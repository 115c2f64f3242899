"""Maps the tensors of a graph to the model parameters they were computed from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.nodes import Node
from ticketry_engine.support.modules import normal_name

COMPUTED = ".computed"
"""Suffix of a tensor computed from a parameter of the same shape, such as a parametrised weight."""

_FORMS = r"2d|T|padded|phases|computed"
"""Suffixes that passes add to the name of a weight that they transform."""

_FORM = re.compile(rf"(\.({_FORMS}))+$|\.parametrizations(?=\.)|(?<=weight)\.original\d?(?=$|\.)")
_ADDED = re.compile(rf"\.({_FORMS}|\d+)$")
"""The same suffixes, or a number that distinguishes several tensors of one parameter."""


def layer_name(weight: str) -> str:
    """Return the module name of a weight's layer."""
    return _FORM.sub("", weight).removesuffix(".weight")


def origins(graph: Graph, parameters: Iterable[str]) -> dict[str, str]:
    """Return tensor of the graph -> the parameter that it equals or was computed from."""
    own = {normal_name(name): name for name in parameters}
    found: dict[str, str] = {}
    for tensor in graph.tensors:
        name = tensor
        while name not in own and _ADDED.search(name):
            name = _ADDED.sub("", name)
        if name in own:
            found[tensor] = own[name]
    return found


def held(node: Node, of: Mapping[str, str]) -> set[str]:
    """Return the parameters that a node's weights were computed from, by the `origins` of its graph."""
    return {of[weight] for weight in node.weights.values() if weight in of}
