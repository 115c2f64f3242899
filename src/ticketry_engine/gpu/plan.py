"""Chooses the kernel of each layer by estimated time: the group kernel, a 2:4 product, or a dense layer of torch.

The group kernel uses the inner layout (batch innermost), torch's layers the outer layout (channels_last or contiguous).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from ticketry_engine.gpu.tables import why_no_tables
from ticketry_engine.ir import Graph, Node
from ticketry_engine.support.row_groups import row_groups_by_convolution_group

LAYERS = ("conv2d", "linear")

FOLLOWS = frozenset({"act", "add", "mul", "affine", "max_pool2d", "avg_pool2d", "global_avg_pool", "concat", "slice"})
"""Operations that run in the inner or the outer layout; their outputs have the layout of their inputs."""


@dataclass(frozen=True)
class LayerChoice:
    """The kernel chosen for a layer, and the reason for the choice."""

    kernel: str
    """One of "group", "2:4" and "dense"."""
    why: str
    tile: int = 0
    """Rows of a tile, if the layer runs in the group kernel or could be switched to it."""


@dataclass(frozen=True)
class LayerFacts:
    """Properties of a layer's weight that do not depend on the input shape."""

    groups: list[tuple[int, int]]
    """Number of rows and number of retained columns, for each group of rows that retain the same columns."""
    two_four: bool
    unfit: str | None
    """Why the layer cannot run in the group kernel; None if it can."""


def layer_facts(graph: Graph) -> dict[str, LayerFacts]:
    """Return the `LayerFacts` of each convolution and linear layer, by the name of the layer's output."""
    found = {}
    for node in graph.nodes:
        if node.op in LAYERS:
            weight = graph.tensors[node.weights["weight"]]
            found_groups = row_groups_by_convolution_group(weight != 0, node.attrs.get("groups", 1))
            groups = [(len(one.rows), one.width) for one in found_groups]
            window = (
                {name: node.attrs[name] for name in ("groups", "padding", "dilation")} if node.op == "conv2d" else None
            )
            reason = None if window is None else why_no_tables(tuple(weight.shape), **window)
            found[node.output] = LayerFacts(groups, node.op == "linear" and is_two_four(weight), reason)
    return found


def choose_kernels(
    graph: Graph,
    batch: int,
    facts: Mapping[str, LayerFacts],
    dtype: torch.dtype,
    device: torch.device,
    *,
    rates: Rates | None = None,
    force: bool = False,
) -> dict[str, LayerChoice]:
    """Return the kernel choice of each layer, by the name of the layer's output.

    First, choose the fastest kernel for each layer alone. Then switch single layers between the sparse group kernel and
    torch's dense kernel as long as this lowers the estimated time of the whole network. The estimate includes copies
    between memory layouts: the group kernel stores the batch as the innermost axis, torch does not. Repeat the search
    from a start in which no layer uses the group kernel, and return the faster of the two choices.

    Args:
        rates: measured speeds of the device; None: the stored speeds (`RATES`).
        force: whether to use the group kernel wherever it can run.
    """
    rates = rates or RATES[dtype]
    works = work_by_layer(graph, batch, facts)
    found: dict[str, LayerChoice] = {}
    for name, fact in facts.items():
        if fact.unfit is not None:
            found[name] = LayerChoice("dense", fact.unfit)
        else:
            found[name] = _choose_kernel(
                works.get(name), fact.two_four and supports_two_four(device, dtype), rates, force
            )
    if force:
        return found
    dense = {name: _switch_kernel(choice) if choice.kernel == "group" else choice for name, choice in found.items()}
    starts = [_improve_choices(graph, batch, works, start, rates) for start in (found, dense)]
    return min(starts, key=lambda settled: estimate_seconds(graph, batch, works, settled, rates))


def _choose_kernel(work: LayerWork | None, two_four: bool, rates: Rates, force: bool) -> LayerChoice:
    if work is None:
        return LayerChoice("dense", "the shape of its input is unknown")
    tile = best_tile(work, rates)
    if force:
        return LayerChoice("group", "it was asked for", tile)
    dense, group = dense_seconds(work, rates), group_kernel_seconds(work, tile, rates)
    if two_four and two_four_seconds(work, rates) < min(group, MARGIN * dense):
        return LayerChoice("2:4", _format_time_comparison(two_four_seconds(work, rates), dense))
    kept = sum(rows * columns for rows, columns in work.groups)
    if kept == work.rows * work.columns:
        return LayerChoice("dense", "no weight is removed")
    if retained_share_in_tiles(work) < LEAST_FILLED:
        return LayerChoice("dense", "too few rows share their columns to fill a tile of the tensor cores")
    if work.run < FEWEST_IMAGES:
        return LayerChoice("dense", f"{work.run} images or tokens are too few for vectors of 8")
    if group >= MARGIN * dense:
        return LayerChoice("dense", f"in the group kernel {_format_time_comparison(group, dense)}", tile)
    return LayerChoice("group", _format_time_comparison(group, dense), tile)


def _format_time_comparison(seconds: float, dense: float) -> str:
    return f"estimated {1e6 * seconds:.1f} us against {1e6 * dense:.1f} dense"


def work_by_layer(graph: Graph, batch: int, facts: Mapping[str, LayerFacts]) -> dict[str, LayerWork]:
    """Return the amount of work of each layer whose shapes are known, by the name of the layer's output."""
    found = {}
    for node in graph.nodes:
        if node.op not in LAYERS:
            continue
        x, made = graph.values[node.inputs[0]], graph.values[node.output]
        if x.shape is None or made.shape is None:
            continue
        weight, outputs = graph.tensors[node.weights["weight"]], made.numel(batch)
        run = batch if x.shape[0] is None else x.shape[0]
        pixels = outputs // max(1, weight.shape[0])
        found[node.output] = LayerWork(
            pixels=pixels,
            run=max(1, run if node.op == "conv2d" else pixels),
            rows=weight.shape[0],
            columns=weight[0].numel(),
            groups=facts[node.output].groups,
            inputs=x.numel(batch),
            outputs=outputs,
            residual=len(node.inputs) > 1,
            act=node.attrs["act"] is not None,
            linear=node.op == "linear",
        )
    return found


# -- the whole network -------------------------------------------------------------------------------------------------

_SWEEPS = 4


def _improve_choices(
    graph: Graph, batch: int, works: Mapping[str, LayerWork], start: Mapping[str, LayerChoice], rates: Rates
) -> dict[str, LayerChoice]:
    """Switch single layers between "group" and "dense" as long as the estimated time of the whole network falls."""
    found = dict(start)
    least = estimate_seconds(graph, batch, works, found, rates)
    for _ in range(_SWEEPS):
        before = least
        for name, old in start.items():
            if not old.tile:
                continue
            last, found[name] = found[name], old if found[name] is not old else _switch_kernel(old)
            total = estimate_seconds(graph, batch, works, found, rates)
            if total < least * (1 - 1e-9):
                least = total
            else:
                found[name] = last
        if least == before:
            break
    return found


def _switch_kernel(choice: LayerChoice) -> LayerChoice:
    other = "dense" if choice.kernel == "group" else "group"
    return LayerChoice(other, f"{choice.why}, but for the changes of layout", choice.tile)


def estimate_seconds(
    graph: Graph, batch: int, works: Mapping[str, LayerWork], choices: Mapping[str, LayerChoice], rates: Rates
) -> float:
    """Estimate the seconds of all layers, and of copies between torch's memory layout and that of the group kernel.

    Other operations are left out, because `choices` does not affect them.
    """
    layers = sum(_choice_seconds(work, choices[name], rates) for name, work in works.items())
    return layers + all_layout_changes_seconds(graph, batch, choices, rates)


def all_layout_changes_seconds(graph: Graph, batch: int, choices: Mapping[str, LayerChoice], rates: Rates) -> float:
    """Estimate the seconds to convert values between torch's layout and the group kernel's layout (batch innermost)."""
    total = 0.0
    held: dict[str, set[str]] = {name: {"outer"} for name in graph.inputs}

    def change_layout_seconds(name: str) -> float:
        return layout_change_seconds(graph.values[name].numel(batch), rates)

    def add_change_unless_held(name: str, layout: str) -> None:
        nonlocal total
        if layout not in held[name]:
            total += change_layout_seconds(name)
            held[name].add(layout)

    wanted = find_batch_last_values(graph, choices)
    for node in graph.nodes:
        reads = made = "outer"
        if uses_group_kernel(node, choices):
            reads = "inner"
            made = "outer" if _is_linear_on_image(graph, node) else "inner"
        elif node.op == "layer_norm":
            made = "inner" if node.output in wanted else "outer"
        elif runs_on_batch_last_inputs(graph, node):
            reads = made = "outer" if "outer" in held[node.inputs[0]] else "inner"
        for name in node.inputs:
            add_change_unless_held(name, reads)
        if (reads, made) == ("inner", "outer"):  # a linear layer on the last axis of an image
            total += change_layout_seconds(node.output)
        held[node.output] = {made}
    for name in graph.output_names:
        add_change_unless_held(name, "outer")
    return total


def _choice_seconds(work: LayerWork, choice: LayerChoice, rates: Rates) -> float:
    if choice.kernel == "group":
        return group_kernel_seconds(work, choice.tile, rates)
    if choice.kernel == "2:4":
        return two_four_seconds(work, rates)
    return dense_seconds(work, rates)


def uses_group_kernel(node: Node, choices: Mapping[str, LayerChoice]) -> bool:
    """Return whether a node is a layer that runs in the group kernel."""
    return node.op in LAYERS and choices[node.output].kernel == "group"


def find_batch_last_values(graph: Graph, choices: Mapping[str, LayerChoice]) -> set[str]:
    """Return the names of the values that at least one node prefers to read with the batch as innermost axis."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if uses_group_kernel(node, choices):
            if not _is_linear_on_image(graph, node):
                wanted.update(node.inputs)
        elif runs_on_batch_last_inputs(graph, node) and node.output in wanted:
            wanted.update(node.inputs)
    return {name for name in wanted if not _is_last_axis_result(graph, name)}


def _is_linear_on_image(graph: Graph, node: Node) -> bool:
    """Return whether a node is a linear layer over the last axis of an image.

    The result of such a layer is stored as torch stores it, not with the batch as innermost axis.
    """
    return node.op == "linear" and len(graph.values[node.inputs[0]].shape or ()) == 4


def _is_last_axis_result(graph: Graph, name: str) -> bool:
    """Return whether a value is the result of a linear layer or layer norm over the last axis of an image."""
    maker = graph.node_by_output.get(name)
    shape = graph.values[name].shape or ()
    return maker is not None and maker.op in ("linear", "layer_norm") and len(shape) not in (2, 3)


def runs_on_batch_last_inputs(graph: Graph, node: Node) -> bool:
    """Return whether a node can read and write tensors that are stored with the batch as innermost axis."""
    if node.op not in FOLLOWS:
        return False
    shapes = [graph.values[name].shape for name in node.inputs]
    if any(shape is None for shape in shapes):
        return False
    if all(len(shape or ()) == 4 for shape in shapes):
        return bool(node.attrs.get("axis", 1) == 1)
    return node.op in ("act", "add", "mul") and len(set(shapes)) == 1 and len(shapes[0] or ()) in (2, 3)


_ROWS, _COLUMNS = 32, 64
"""The sizes of torch's semi-structured 16-bit tensors must be multiples of these numbers."""


def is_two_four(weight: Tensor) -> bool:
    """Return whether a weight [O, I] retains at most two of every four neighbouring columns."""
    if weight.dim() != 2 or weight.shape[0] % _ROWS or weight.shape[1] % _COLUMNS:
        return False
    return bool(((weight != 0).reshape(len(weight), -1, 4).sum(2) <= 2).all())


def supports_two_four(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch can multiply semi-structured (2:4) weights of this dtype on the device."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


# -- cost --------------------------------------------------------------------------------------------------------------

#     time = launch + max(arithmetic / its rate, bytes / bandwidth [, steps of the longest tile x time of a step])
#
# The constants below were measured on an H100 SXM by ``python benchmarks/engine_gpu.py --calibrate``.


TILES = (16, 32, 64, 128)
"""Numbers of rows that a tile of the group kernel may have."""

MARGIN = 0.95
"""Share of the dense time that a sparse kernel must stay below to be chosen, because estimates are not exact."""

FEWEST_IMAGES = 4
"""Minimum number of images (or tokens) of a sparse layer: with fewer, its vectors of 8 would be mostly padding."""


LEAST_FILLED = 0.5
"""Minimum share of retained weights in tiles of 16 rows, the smallest; with a lower share, a layer stays dense.

Unstructured masks fill 1/16 of a tile; they are assumed to be slower than dense at any density (not measured).
"""


@dataclass(frozen=True)
class Rates:
    """Measured speeds of a device for one number format, from which the seconds of layers are estimated."""

    conv: float
    """FLOP/s of cuDNN on a large convolution."""
    linear: float
    """FLOP/s of cuBLAS on a large linear layer."""
    group: Mapping[int, float]
    """FLOP/s of the group kernel by the rows of a tile, including padding; gathers from L2 limit small tiles."""
    two_four: float
    """FLOP/s of torch's semi-structured product, where FLOP are those of the dense layer."""
    bandwidth: float
    """Bytes/s of a copy."""
    turned: float
    """Bytes/s of a change of layout, where bytes read and bytes written are added."""
    launch: float
    """Seconds between two kernels of a CUDA graph."""
    step: float
    """Seconds that a program of the group kernel, alone on its multiprocessor, takes for 64 columns."""
    program: float
    """Constant overhead in seconds of a program, divided by the number of multiprocessors; fitted to timings."""
    row: float
    """Overhead in seconds per row of a program's tile, divided by the number of multiprocessors; fitted to timings."""
    bytes: int
    """Bytes of one number."""


_H100 = Rates(
    conv=750e12,
    linear=720e12,
    group={16: 94e12, 32: 175e12, 64: 287e12, 128: 373e12},
    two_four=820e12,
    bandwidth=2.75e12,
    turned=2.55e12,
    launch=1.25e-6,
    step=0.31e-6,
    program=0.33e-6 / 132,
    row=1.01e-6 / 64 / 132,
    bytes=2,
)

RATES: Mapping[torch.dtype, Rates] = {
    torch.bfloat16: _H100,
    torch.float16: _H100,
    # With TF32 the gathered inputs are transposed element by element on the way into shared memory.
    torch.float32: replace(
        _H100,
        conv=420e12,
        linear=410e12,
        group={16: 10e12, 32: 19e12, 64: 34e12, 128: 69e12},
        two_four=0.0,
        bandwidth=2.9e12,
        turned=2.75e12,
        step=0.61e-6,
        bytes=4,
    ),
}


@dataclass(frozen=True)
class LayerWork:
    """The amount of work of one layer for one input shape."""

    pixels: int
    """Outputs per output channel: images x height x width, or tokens."""
    run: int
    """Number of images or tokens, which form the innermost axis of the inner layout."""
    rows: int
    columns: int
    """Columns of the dense weight: input channels of a convolution group x taps."""
    groups: Sequence[tuple[int, int]]
    """Number of rows and number of retained columns, for each group of rows that retain the same columns."""
    inputs: int
    """Number of input numbers that are read."""
    outputs: int
    """Number of output numbers that are written."""
    residual: bool
    act: bool
    linear: bool = False

    @property
    def padded_pixels(self) -> int:
        """Number of outputs per output channel, with the number of images padded to a multiple of 8."""
        return self.pixels // self.run * -(-self.run // 8) * 8


def dense_seconds(work: LayerWork, rates: Rates) -> float:
    """Estimate the seconds of a dense layer in torch, including separate passes for a residual and an activation."""
    return _dense_product_seconds(work, rates, rates.linear if work.linear else rates.conv, 1.0)


def two_four_seconds(work: LayerWork, rates: Rates) -> float:
    """Estimate the seconds of a layer as a semi-structured (2:4) product in torch."""
    return _dense_product_seconds(work, rates, rates.two_four, 0.6)


def _dense_product_seconds(work: LayerWork, rates: Rates, rate: float, stored: float) -> float:
    """Estimate the seconds of a product at `rate` FLOP/s that reads the share `stored` of the dense weight's bytes."""
    product = 2.0 * work.pixels * work.rows * work.columns / rate
    bytes_ = rates.bytes * (work.inputs + work.outputs + stored * work.rows * work.columns)
    made = rates.bytes * work.outputs / rates.bandwidth
    beside = (rates.launch + 3 * made) * work.residual + (rates.launch + 2 * made) * work.act
    return rates.launch + max(product, bytes_ / rates.bandwidth) + beside


def group_kernel_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate a layer's seconds in the group kernel with `tile` rows per tile, with bias, residual and activation."""
    product, weights = group_product_seconds(work, tile, rates), _padded_weights(work, tile)
    moved = work.inputs + work.outputs * (1 + work.residual) + weights
    longest = max((columns for _, columns in work.groups), default=0)
    return rates.launch + max(product, rates.bytes * moved / rates.bandwidth, -(-longest // 64) * rates.step)


def group_product_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate the seconds of the group kernel's arithmetic alone, including the arithmetic on padding."""
    return 2.0 * work.padded_pixels * _padded_weights(work, tile) / rates.group[tile]


def _padded_weights(work: LayerWork, tile: int) -> int:
    return sum(-(-rows // tile) * tile * -(-columns // 64) * 64 for rows, columns in work.groups)


def retained_share_in_tiles(work: LayerWork) -> float:
    """Return the share of retained weights among all that tiles of the smallest size store; 1 if none is retained."""
    tiles = sum(-(-rows // TILES[0]) * TILES[0] * columns for rows, columns in work.groups)
    return sum(rows * columns for rows, columns in work.groups) / tiles if tiles else 1.0


def layout_change_seconds(numbers: int, rates: Rates) -> float:
    """Estimate the seconds to convert a tensor of `numbers` elements between torch's and the group kernel's layout."""
    return rates.launch + 2.0 * rates.bytes * numbers / rates.turned


def best_tile(work: LayerWork, rates: Rates) -> int:
    """Return the number of rows per tile for which the group kernel has the least estimated time."""
    return min(
        TILES, key=lambda tile: group_product_seconds(work, tile, rates) + gpu_programs_seconds(work, tile, rates)
    )


_PIXELS = 128
"""Outputs of a channel that a program computes; some configurations compute twice as many."""


def gpu_programs_seconds(work: LayerWork, tile: int, rates: Rates) -> float:
    """Estimate the seconds that the Triton programs of the group kernel take in addition to their arithmetic."""
    count = sum(-(-rows // tile) for rows, _ in work.groups) * -(-work.padded_pixels // _PIXELS)
    return count * (rates.program + tile * rates.row)


# -- launch parameters, by timing --------------------------------------------------------------------------------------

# A few candidates are timed at the first call with a shape on a GPU, never while a CUDA graph is recorded; the result
# is cached in the process. On a CPU the first candidate is used.


@dataclass(frozen=True)
class Config:
    """Launch parameters of the sparse group kernel, such as block sizes and warps."""

    pixels: int
    """Output pixels that a program computes."""
    columns: int
    """Retained columns that a program processes per step: 32 or 64, because tables are padded to 64."""
    warps: int
    stages: int
    """Number of steps whose inputs are in shared memory at the same time (pipeline stages)."""


T = TypeVar("T")

ROUNDS = 7
"""Number of timed runs of each candidate; candidates alternate."""

_FILL = 132 * 2
"""Minimum number of programs, two per multiprocessor of an H100; if there are fewer, smaller tiles are tried."""

_log = logging.getLogger(__name__)

_found: dict[Hashable, Config] = {}
_lock = threading.Lock()


def candidate_configs(tile: int, outputs: int, tiles: int) -> list[Config]:
    """Return the launch parameters to try for tiles of `tile` rows, the most promising first."""
    found = {
        16: [Config(256, 64, 4, 3), Config(128, 64, 4, 4), Config(64, 64, 4, 5)],
        32: [Config(256, 64, 8, 3), Config(128, 64, 4, 4), Config(64, 64, 4, 5)],
        64: [Config(128, 64, 4, 3), Config(256, 64, 8, 4), Config(128, 64, 8, 4), Config(64, 64, 4, 4)],
        128: [Config(128, 64, 8, 3), Config(256, 64, 8, 4), Config(256, 32, 8, 4), Config(64, 64, 4, 4)],
    }[tile]
    few = [one for one in found if tiles * -(-outputs // one.pixels) < _FILL]
    if few and len(few) == len(found):  # too few programs with any candidate: use the smallest tiles
        return [*sorted(found, key=lambda one: one.pixels)[:2], Config(32, 64, 4, 5)]
    return [one for one in found if one not in few] + few[:1]


def choose_config(
    key: Hashable, tile: int, outputs: int, tiles: int, x: Tensor, run: Callable[[Config], None]
) -> Config:
    """Return the fastest launch parameters of a product, from the cache under `key` or by timing candidates.

    The function `run` runs the product with given parameters.

    Where timing is impossible (on a CPU, or while a CUDA graph is recorded), return the first candidate.
    """
    candidates = candidate_configs(tile, outputs, tiles)
    if x.device.type != "cuda":
        config = candidates[0]  # with fewer pixels, to save time in Triton's interpreter
        while config.pixels > 16 and config.pixels // 2 >= outputs:
            config = replace(config, pixels=config.pixels // 2)
        return config
    key = (torch.cuda.get_device_name(x.device), key)
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        with _lock:
            if key not in _found:
                _found[key] = find_fastest(candidates, run, _mean_seconds_of_four_calls)
    return _found[key]


def find_fastest(
    candidates: list[Config], run: Callable[[Config], None], seconds: Callable[[Callable[[], None]], float]
) -> Config:
    """Time candidates alternately, and return the one with the least median time; skip candidates that cannot run."""
    times: dict[Config, list[float]] = {}
    errors: list[Exception] = []
    for config in candidates:
        try:
            run(config)  # compiles it, and shows whether it fits
        except Exception as error:  # out of shared memory or registers on a smaller GPU
            _log.info("%s is left out: %s", config, error)
            errors.append(error)
        else:
            times[config] = []
    if not times:
        raise errors[-1]
    for _ in range(ROUNDS):
        for config, taken in times.items():
            taken.append(seconds(lambda config=config: run(config)))  # type: ignore[misc]
    return min(times, key=lambda config: median(times[config]))


def time_on_gpu(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and the seconds that it took on the current GPU, measured by CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    made = call()
    end.record()
    end.synchronize()
    return made, float(begin.elapsed_time(end)) / 1e3


def _mean_seconds_of_four_calls(call: Callable[[], None]) -> float:
    def call_four_times() -> None:
        for _ in range(4):
            call()

    return time_on_gpu(call_four_times)[1] / 4
