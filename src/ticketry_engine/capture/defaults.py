"""What the arguments of a model are when a call leaves them out."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import nn

from ticketry_engine.ir import Graph, Json
from ticketry_engine.ir.binding import is_constant


def with_defaults(graph: Graph, model: nn.Module) -> Graph:
    """The graph whose signature has the defaults that are not what it was captured with (`graph.OF_SIGNATURES`)."""
    signature = graph.signature
    captured = {**dict(zip(signature["names"], signature["args"], strict=False)), **signature["kwargs"]}
    found: dict[str, Json] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        default = parameter.default
        if default is parameter.empty or _is(captured.get(name, {"constant": None}), default):
            continue
        plain = default is None or isinstance(default, (bool, int, float, str))
        found[name] = {"constant": default} if plain else None
    return replace(graph, signature={**signature, "defaults": found}) if found else graph


def _is(tree: Json, default: Any) -> bool:
    """Whether a tree of a signature is an argument's default; one of tensors never is, but has to be given anyway."""
    if isinstance(tree, str) or "constant" not in tree:
        return False
    return type(tree["constant"]) is type(default) and is_constant(tree["constant"], default)
