"""Makes the table of a compiled model's layers, and defines the base class of compiled models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import Self

from ticketry_engine.errors import EngineError
from ticketry_engine.ir import Graph, Node
from ticketry_engine.ir.graph import layer_name
from ticketry_engine.kernels.jit import title
from ticketry_engine.plan.region_programs import Native
from ticketry_engine.results import Layer, Place
from ticketry_engine.support.row_groups import row_groups

FP32 = "fp32: rows that differ gain nothing by bf16"
"""Reason in the table for a layer in float32 of a model compiled in bf16: its region uses the planar layout."""


def describe_layers(
    graph: Graph, reasons: Mapping[str, str], natives: Iterable[Native], seconds: Mapping[str, float]
) -> list[Layer]:
    """Return a row for each node of a graph, and rows for loading inputs of kernels and storing their outputs.

    `reasons` maps a node's output to the reason why the node runs in torch. `seconds` maps a layer's label to its time,
    and is empty if layers were not timed.
    """
    kernels: dict[str, dict[str, None]] = {}
    why = dict(reasons)
    for native in natives:
        for plan, program in native.programs.items():
            for op in program.ops:
                kernels.setdefault(op.label, {})[title(op.kernel)] = None
                if plan.precision != native.precision:
                    why[op.label] = FP32
    rows = [
        Layer(name, name, "engine", ", ".join(kernels[name]), None, None, "", *_seconds_and_share(name, seconds), "")
        for name in ("load", "store")
        if name in kernels
    ]
    for node in graph.nodes:
        where: Place = "torch" if node.output in reasons else "engine"
        if where == "engine" and kernels and node.output not in kernels:
            continue  # another view of the same planes: nothing runs
        kernel = ", ".join(kernels.get(node.output, {}))
        rows.append(describe_layer(graph, node, where, kernel, seconds, why.get(node.output, "")))
    return rows


def describe_layer(
    graph: Graph, node: Node, where: Place, kernel: str, seconds: Mapping[str, float], why: str = ""
) -> Layer:
    """Return the row of a node; `why` is the reason why the node runs in torch, or in float32."""
    name, facts = _layer_name_and_density(graph, node)
    density, kept, rows = facts or (None, None, "")
    spent, share = _seconds_and_share(node.output, seconds)
    return Layer(name or node.output, node.op, where, kernel, density, kept, rows, spent, share, why)


def _seconds_and_share(name: str, seconds: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return (seconds of a layer, share of the total seconds), or (None, None) if the layer was not timed."""
    spent, total = seconds.get(name), sum(seconds.values())
    return spent, spent / total if spent is not None and total else None


def _layer_name_and_density(graph: Graph, node: Node) -> tuple[str, tuple[float, int, str] | None]:
    """Return (layer name, (density, retained weights, rows per group)) of a layer; ("", None) for any other node."""
    name = node.weights.get("weight")
    if name is None or node.op not in ("conv2d", "linear"):
        return "", None

    weight = graph.tensors[name]
    kept = int(weight.count_nonzero())
    sizes = sorted(len(group.rows) for group in row_groups(weight != 0) if group.width)
    spread = "" if not sizes else str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]}-{sizes[-1]}"
    return layer_name(name), (kept / max(1, weight.numel()), kept, spread)


class ForInference(nn.Module):
    """Base class of compiled models, which cannot be trained, moved to another device or converted to another dtype."""

    stays: str
    """Text that names the number format and device of the compiled model in messages."""

    def train(self, mode: bool = True) -> Self:
        """Raise `EngineError` if `mode` is True, because a compiled model is for inference only."""
        if mode:
            raise EngineError("a compiled model is for inference: train the model that it was compiled from")
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        raise EngineError(f"a compiled model stays {self.stays}: move or convert the model before it is compiled")


def median_seconds(sample: Callable[[], Mapping[str, float]], rounds: int) -> dict[str, float]:
    """Call `sample` `rounds` times, at least once, and return the median seconds of each layer."""
    found: dict[str, list[float]] = {}
    for _ in range(max(1, rounds)):
        for name, spent in sample().items():
            found.setdefault(name, []).append(spent)
    return {name: sorted(several)[len(several) // 2] for name, several in found.items()}


def warn_of_graph_notes(graph: Graph, *, stacklevel: int) -> None:
    """Issue each of the graph's notes as a warning, for example that the graph accepts only one number of examples."""
    for note in graph.notes:
        warnings.warn(f"compiled with a limit: {note}", stacklevel=stacklevel + 1)


def layer_table(layers: Sequence[Layer], title: str, notes: Sequence[str] = ()) -> str:
    """Return the rows as a text table with the title `title`, and with `notes` below the table."""
    head = ("layer", "kind", "kernel", "density", "rows", "ms", "share", "why")
    cells = [head]
    for layer in layers:
        cells.append(
            (
                layer.name,
                layer.kind,
                layer.kernel if layer.where == "engine" else "torch",
                "" if layer.density is None else f"{layer.density:.3f}",
                layer.rows,
                "" if layer.seconds is None else f"{1e3 * layer.seconds:.3f}",
                "" if layer.share is None else f"{100 * layer.share:.1f} %",
                layer.why,
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([title, *lines, *(f"note: {note}" for note in notes)])
