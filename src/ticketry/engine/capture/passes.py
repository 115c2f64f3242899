"""The passes that make a captured graph small, in their order."""

from __future__ import annotations

from ticketry.engine.capture.attention import recognise_attention
from ticketry.engine.capture.composites import recognise_acts
from ticketry.engine.capture.constants import compute_constants
from ticketry.engine.capture.convert import Converted
from ticketry.engine.capture.editor import without_unused
from ticketry.engine.capture.fold_norm import fold_norms
from ticketry.engine.capture.fuse import fuse
from ticketry.engine.capture.lower import lower
from ticketry.engine.capture.pads import fold_pads
from ticketry.engine.capture.rows import straighten
from ticketry.engine.capture.shuffle import tidy_shapes
from ticketry.engine.graph import Graph


def simplify(converted: Converted) -> Graph:
    """The graph with native nodes, norms folded and activations fused, wherever the operations allow it."""
    graph = compute_constants(without_unused(converted.graph))
    graph = lower(graph, converted.sizes)
    graph = straighten(graph, converted.sizes)
    for change in (recognise_acts, recognise_attention, fold_pads, fold_norms, tidy_shapes, fuse):
        graph = change(graph)
    return graph
