"""What a compiled model does, layer by layer, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.engine.cpu.jit import title
from ticketry.engine.graph import Graph, Node

if TYPE_CHECKING:
    from ticketry.engine.plan.region import Native


FP32 = "fp32: rows that differ gain nothing by bf16"
"""Why a layer computes in float32 all the same: its region runs over planes."""


@dataclass(frozen=True)
class Layer:
    """One operation of a compiled model."""

    name: str
    """The module whose weights it has, else the name of the value it makes."""
    kind: str
    """The operation."""
    where: str
    """"engine" or "torch"."""
    kernel: str
    """The kernels it runs in, empty before the first call."""
    density: float | None
    """Weights kept / all weights of the layer; None for what has no weights."""
    kept: int | None
    """Weights kept."""
    rows: str
    """Output rows that share their columns: "1" where all differ, "2-16" for a spread; empty without weights."""
    seconds: float | None
    """Of one call, once it was profiled."""
    share: float | None
    """Of the whole call's time."""
    why: str
    """Why it is in torch; "fp32: ..." for why it computes in float32 though the model is compiled for bf16."""


def describe(
    graph: Graph, reasons: Mapping[str, str], natives: Iterable[Native], seconds: Mapping[str, float]
) -> list[Layer]:
    """A row for each node, and for what is loaded into and stored from the engine's layout."""
    kernels: dict[str, dict[str, None]] = {}
    why = dict(reasons)
    for native in natives:
        for plan, program in native.programs.items():
            for op in program.ops:
                kernels.setdefault(op.label, {})[title(op.kernel)] = None
                if plan.precision != native.precision:
                    why[op.label] = FP32
    total = sum(seconds.values())
    rows = []
    for name in ("load", "store"):
        if name in kernels:
            rows.append(_row(name, name, "engine", kernels[name], seconds.get(name), total))
    for node in graph.nodes:
        where = "torch" if node.output in reasons else "engine"
        if where == "engine" and kernels and node.output not in kernels:
            continue  # another view of the same planes: nothing runs
        weights = weights_of(graph, node)
        rows.append(
            _row(
                weights[0] or node.output,
                node.op,
                where,
                kernels.get(node.output, {}),
                seconds.get(node.output),
                total,
                weights[1],
                why.get(node.output, ""),
            )
        )
    return rows


def _row(
    name: str,
    kind: str,
    where: str,
    kernels: Iterable[str],
    seconds: float | None,
    total: float,
    weights: tuple[float, int, str] | None = None,
    why: str = "",
) -> Layer:
    density, kept, rows = weights or (None, None, "")
    share = seconds / total if seconds is not None and total else None
    return Layer(name, kind, where, ", ".join(kernels), density, kept, rows, seconds, share, why)


def weights_of(graph: Graph, node: Node) -> tuple[str, tuple[float, int, str] | None]:
    """The layer's name, and density, weights kept, and rows a group of its weight."""
    name = node.weights.get("weight")
    if name is None or node.op not in ("conv2d", "linear"):
        return "", None
    from ticketry.core.structure.groups import row_groups

    weight = graph.tensors[name]
    kept = int(weight.count_nonzero())
    sizes = sorted(len(group.rows) for group in row_groups(weight != 0) if group.width)
    spread = "" if not sizes else str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]}-{sizes[-1]}"
    return name.removesuffix(".weight"), (kept / max(1, weight.numel()), kept, spread)


def table(layers: Sequence[Layer], target: str) -> str:
    """The rows as text, with the sum of what is known."""
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
    return "\n".join([f"Compiled for {target}", *lines])
