"""Blocks under `torch.no_grad` or a disabled `torch.autocast` become part of the program around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ticketry.errors import CaptureError

_ARGUMENTS_BEFORE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Name of the operation -> number of arguments before the block."""


def inline(program: torch.export.ExportedProgram) -> None:
    """Replace every such block by its operations, in place.

    Raises:
        CaptureError: if a block runs under an enabled autocast, whose types are chosen while it runs.
    """
    module, graph = program.graph_module, program.graph
    for one in list(graph.nodes):
        kind = getattr(one.target, "_name", getattr(one.target, "__name__", ""))
        if one.op != "call_function" or kind not in _ARGUMENTS_BEFORE:
            continue
        before = _ARGUMENTS_BEFORE[kind]
        if kind == "wrap_with_autocast" and one.args[2]:
            raise CaptureError(
                "the model opens torch.autocast in its forward: call it without, and choose the precision when it is"
                " compiled"
            )
        block = one.args[before]
        assert isinstance(block, fx.Node)
        body: Any = module.get_submodule(str(block.target))
        inner_names = [node for node in body.graph.nodes if node.op == "placeholder"]
        mapping = dict(zip(inner_names, one.args[before + 1 :], strict=True))
        with graph.inserting_before(one):
            made: Any = graph.graph_copy(body.graph, mapping)
        _give(graph, one, made)
        for inner, outer in mapping.items():
            if isinstance(outer, fx.Node) and "val" not in outer.meta:
                outer.meta["val"] = inner.meta.get("val")


def _give(graph: fx.Graph, one: fx.Node, made: Any) -> None:
    """Put the block's outputs in the place of the node that ran it, which made a tuple of them."""
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    for user in list(one.users):
        if user.op != "call_function" or getattr(user.target, "__name__", "") != "getitem":
            raise CaptureError("a block under torch.no_grad or torch.autocast cannot be taken apart")
        user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(one)
