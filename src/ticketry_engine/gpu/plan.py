"""Chooses the kernel of each layer at one input shape: the group kernel, a 2:4 product, or a dense layer of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ticketry_engine.gpu import cost
from ticketry_engine.gpu.cost import LayerWork, Rates
from ticketry_engine.gpu.tables import why_no_tables
from ticketry_engine.ir import Graph, Node
from ticketry_engine.support.row_groups import row_groups

LAYERS = ("conv2d", "linear")

FOLLOWS = frozenset({"act", "add", "mul", "affine", "max_pool2d", "avg_pool2d", "global_avg_pool", "concat", "slice"})
"""Operations that run in either layout and do not change it."""


@dataclass(frozen=True)
class Choice:
    """The kernel of one layer, and the reason."""

    kernel: str
    """"group", "2:4" or "dense"."""
    why: str
    tile: int = 0
    """Rows of a tile, if the kernel is "group"."""


@dataclass(frozen=True)
class LayerFacts:
    """Facts about a layer's weight that do not depend on the input shape."""

    groups: list[tuple[int, int]]
    """(rows, retained columns) of each group of rows that share their columns."""
    two_four: bool
    unfit: str | None
    """Why the layer cannot run in the group kernel; None if it can."""


def layer_facts(graph: Graph) -> dict[str, LayerFacts]:
    """Return the facts of each convolution and linear layer, by the name of its output."""
    found = {}
    for node in graph.nodes:
        if node.op in LAYERS:
            weight = graph.tensors[node.weights["weight"]]
            parts = torch.split(weight, len(weight) // node.attrs.get("groups", 1))
            groups = [(len(one.rows), one.width) for part in parts for one in row_groups(part != 0)]
            window = (
                {name: node.attrs[name] for name in ("groups", "padding", "dilation")} if node.op == "conv2d" else None
            )
            reason = None if window is None else why_no_tables(tuple(weight.shape), **window)
            found[node.output] = LayerFacts(groups, node.op == "linear" and is_two_four(weight), reason)
    return found


def plan(
    graph: Graph,
    batch: int,
    facts: Mapping[str, LayerFacts],
    dtype: torch.dtype,
    device: torch.device,
    *,
    rates: Rates | None = None,
    force: bool = False,
) -> dict[str, Choice]:
    """Return the choice of each layer, by the name of its output.

    Each layer is first chosen alone. Then single layers are switched between the group kernel and dense while that
    lowers the estimate of the whole network, because changes of layout cost time. The search also starts from all
    layers dense, and the cheaper result is returned.

    Args:
        rates: rates of the device; None for the constants of `cost`.
        force: use the group kernel wherever it can run, for tests and calibration.
    """
    rates = rates or cost.RATES[dtype]
    works = layer_works(graph, batch, facts)
    found: dict[str, Choice] = {}
    for name, fact in facts.items():
        if fact.unfit is not None:
            found[name] = Choice("dense", fact.unfit)
        else:
            found[name] = _choose_kernel(works.get(name), fact.two_four and can_run(device, dtype), rates, force)
    if force:
        return found
    dense = {name: _switch_kernel(choice) if choice.kernel == "group" else choice for name, choice in found.items()}
    starts = [_improve_choices(graph, batch, works, start, rates) for start in (found, dense)]
    return min(starts, key=lambda settled: estimate(graph, batch, works, settled, rates))


def _choose_kernel(work: LayerWork | None, two_four: bool, rates: Rates, force: bool) -> Choice:
    if work is None:
        return Choice("dense", "the shape of its input is unknown")
    tile = cost.best_tile(work, rates)
    if force:
        return Choice("group", "it was asked for", tile)
    dense, group = cost.dense_seconds(work, rates), cost.group_seconds(work, tile, rates)
    if two_four and cost.two_four_seconds(work, rates) < min(group, cost.MARGIN * dense):
        return Choice("2:4", _compare_times(cost.two_four_seconds(work, rates), dense))
    kept = sum(rows * columns for rows, columns in work.groups)
    if kept == work.rows * work.columns:
        return Choice("dense", "no weight is removed")
    if cost.tile_fill(work) < cost.LEAST_FILLED:
        return Choice("dense", "too few rows share their columns to fill a tile of the tensor cores")
    if work.run < cost.FEWEST_IMAGES:
        return Choice("dense", f"{work.run} images or tokens are too few for vectors of 8")
    if group >= cost.MARGIN * dense:
        return Choice("dense", f"in the group kernel {_compare_times(group, dense)}", tile)
    return Choice("group", _compare_times(group, dense), tile)


def _compare_times(seconds: float, dense: float) -> str:
    return f"estimated {1e6 * seconds:.1f} us against {1e6 * dense:.1f} dense"


def layer_works(graph: Graph, batch: int, facts: Mapping[str, LayerFacts]) -> dict[str, LayerWork]:
    """Return the work of each layer with known shapes, by the name of its output."""
    made = {
        node.output: _work(graph, node, batch, facts[node.output].groups) for node in graph.nodes if node.op in LAYERS
    }
    return {name: work for name, work in made.items() if work is not None}


def _work(graph: Graph, node: Node, batch: int, groups: list[tuple[int, int]]) -> LayerWork | None:
    x, made = graph.values[node.inputs[0]], graph.values[node.output]
    if x.shape is None or made.shape is None:
        return None
    inputs, outputs = x.numel(batch), made.numel(batch)
    weight = graph.tensors[node.weights["weight"]]
    run = batch if x.shape[0] is None else x.shape[0]
    pixels = outputs // max(1, weight.shape[0])
    return LayerWork(
        pixels=pixels,
        run=max(1, run if node.op == "conv2d" else pixels),
        rows=weight.shape[0],
        columns=weight[0].numel(),
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        residual=len(node.inputs) > 1,
        act=node.attrs["act"] is not None,
        linear=node.op == "linear",
    )


# -- the whole network -------------------------------------------------------------------------------------------------

_SWEEPS = 4


def _improve_choices(
    graph: Graph, batch: int, works: Mapping[str, LayerWork], start: Mapping[str, Choice], rates: Rates
) -> dict[str, Choice]:
    """Switch single layers between "group" and "dense" as long as the estimate of the whole network falls."""
    found = dict(start)
    least = estimate(graph, batch, works, found, rates)
    for _ in range(_SWEEPS):
        before = least
        for name, old in start.items():
            if not old.tile:
                continue
            last, found[name] = found[name], old if found[name] is not old else _switch_kernel(old)
            total = estimate(graph, batch, works, found, rates)
            if total < least * (1 - 1e-9):
                least = total
            else:
                found[name] = last
        if least == before:
            break
    return found


def _switch_kernel(choice: Choice) -> Choice:
    other = "dense" if choice.kernel == "group" else "group"
    return Choice(other, f"{choice.why}, but for the changes of layout", choice.tile)


def estimate(
    graph: Graph, batch: int, works: Mapping[str, LayerWork], choices: Mapping[str, Choice], rates: Rates
) -> float:
    """Estimate the seconds of all layers and of the changes of layout; other operations are the same in any plan."""
    layers = sum(_seconds(work, choices[name], rates) for name, work in works.items())
    return layers + all_layout_changes_seconds(graph, batch, choices, rates)


def all_layout_changes_seconds(graph: Graph, batch: int, choices: Mapping[str, Choice], rates: Rates) -> float:
    """Estimate the seconds of all changes of layout."""
    total = 0.0
    held: dict[str, set[str]] = {name: {"outer"} for name in graph.inputs}

    def turned(name: str) -> float:
        return cost.layout_change_seconds(graph.values[name].numel(batch), rates)

    def need(name: str, layout: str) -> None:
        nonlocal total
        if layout not in held[name]:
            total += turned(name)
            held[name].add(layout)

    wanted = wanted_inner(graph, choices)
    for node in graph.nodes:
        reads = made = "outer"
        if is_group(node, choices):
            reads = "inner"
            made = "outer" if _is_grid(graph, node) else "inner"
        elif node.op == "layer_norm":
            made = "inner" if node.output in wanted else "outer"
        elif follows(graph, node):
            reads = made = "outer" if "outer" in held[node.inputs[0]] else "inner"
        for name in node.inputs:
            need(name, reads)
        if (
            reads == "inner" and made == "outer"
        ):  # a linear layer on the last axis of an image: its result is converted back
            total += turned(node.output)
        held[node.output] = {made}
    for name in graph.results:
        need(name, "outer")
    return total


def _seconds(work: LayerWork, choice: Choice, rates: Rates) -> float:
    if choice.kernel == "group":
        return cost.group_seconds(work, choice.tile, rates)
    if choice.kernel == "2:4":
        return cost.two_four_seconds(work, rates)
    return cost.dense_seconds(work, rates)


def is_group(node: Node, choices: Mapping[str, Choice]) -> bool:
    """Return whether a node is a layer in the group kernel."""
    return node.op in LAYERS and choices[node.output].kernel == "group"


def wanted_inner(graph: Graph, choices: Mapping[str, Choice]) -> set[str]:
    """Return the values with a reader that prefers the inner layout; layer norms write these inner."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if is_group(node, choices):
            if not _is_grid(graph, node):
                wanted.update(node.inputs)
        elif follows(graph, node) and node.output in wanted:
            wanted.update(node.inputs)
    return {name for name in wanted if not _is_grid_result(graph, name)}


def _is_grid(graph: Graph, node: Node) -> bool:
    """Return whether a linear layer works on the last axis of an image, which the inner layout does not support."""
    return node.op == "linear" and len(graph.values[node.inputs[0]].shape or ()) == 4


def _is_grid_result(graph: Graph, name: str) -> bool:
    """Return whether a value is the result of a linear layer or layer norm on the last axis of an image."""
    maker = graph.makers.get(name)
    shape = graph.values[name].shape or ()
    return maker is not None and maker.op in ("linear", "layer_norm") and len(shape) not in (2, 3)


def follows(graph: Graph, node: Node) -> bool:
    """Return whether a node can run on inner inputs: images of one shape, or feature rows of one shape."""
    if node.op not in FOLLOWS:
        return False
    shapes = [graph.values[name].shape for name in node.inputs]
    if any(shape is None for shape in shapes):
        return False
    if all(len(shape or ()) == 4 for shape in shapes):
        return bool(node.attrs.get("axis", 1) == 1)
    return node.op in ("act", "add", "mul") and len(set(shapes)) == 1 and len(shapes[0] or ()) in (2, 3)


_ROWS, _COLUMNS = 32, 64
"""torch's semi-structured 16-bit tensors need multiples of these sizes."""


def is_two_four(weight: Tensor) -> bool:
    """Return whether every four neighbouring columns of a weight [O, I] retain at most two."""
    if weight.dim() != 2 or weight.shape[0] % _ROWS or weight.shape[1] % _COLUMNS:
        return False
    return bool(((weight != 0).reshape(len(weight), -1, 4).sum(2) <= 2).all())


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the device supports 2:4 products with this dtype."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
