"""Which of a model's parameters the tensors of its graph are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.nodes import Node
from ticketry_engine.support.modules import normal_name

COMPUTED = ".computed"
"""Behind the name of the tensor of the same shape that a tensor was computed of: weights under a parametrisation."""

_FORMS = r"2d|T|padded|phases|computed"
"""What passes add to the name of a weight that they bring into another form."""

_FORM = re.compile(rf"(\.({_FORMS}))+$|\.parametrizations(?=\.)|(?<=weight)\.original\d?(?=$|\.)")
_ADDED = re.compile(rf"\.({_FORMS}|\d+)$")
"""The same, and numbers, which tell several of one apart."""


def layer_name(weight: str) -> str:
    """What the layer of a weight of the graph is called: as its module."""
    return _FORM.sub("", weight).removesuffix(".weight")


def origins(graph: Graph, parameters: Iterable[str]) -> dict[str, str]:
    """Tensor of the graph -> the parameter, of those, that it is, or is made of."""
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
    """The parameters that a node holds, by the `origins` of its graph."""
    return {of[weight] for weight in node.weights.values() if weight in of}
