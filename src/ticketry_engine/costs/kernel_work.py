"""Counts the work of planned kernels: features from which a machine's profile estimates seconds.

Features are read from the plan of a network, with the kernels, tiles and tables that would run: columns summed in each
tile, values loaded, multiplied and stored for them, bytes from each cache, and what is done once per row, tile and
operation. Nothing is compiled or run, except by `time_operations`, which times the same operations for calibration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import numpy as np
from torch import Tensor

from ticketry_engine.costs.masked_model import CHANNELS_LAST, PLANAR, MaskedModel
from ticketry_engine.ir import Graph, Node, Region
from ticketry_engine.ir.shape_claims import origins, parameters_of
from ticketry_engine.kernels.channels_last.group_conv import TILE_ARGS, ConvArg, GroupConv, Tile, count_accumulators
from ticketry_engine.kernels.jit import Library, title
from ticketry_engine.kernels.planar import taps
from ticketry_engine.kernels.planar.dots import Dots
from ticketry_engine.kernels.planar.elementwise import Elementwise
from ticketry_engine.kernels.planar.row_sums import SHAPES, RowSums, side_by_side
from ticketry_engine.kernels.planar.taps import Taps
from ticketry_engine.kernels.planar.unfold import Gather, PhaseSplit, Turn
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.kernels.target import NEAR, Target, foreign, near_inputs
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.plan.emission import Emission
from ticketry_engine.plan.partition import partition
from ticketry_engine.plan.region_programs import Native, Plan, digest_of
from ticketry_engine.plan.sketch import RegionTask
from ticketry_engine.plan.value_axes import UnsupportedError
from ticketry_engine.processor import cache_sizes

LIKE = {
    "taps": "sums",
    "taps of a position": "sums of a position",
    "dots of a position": "sums of a position",
    "planes collect": "planes elements",
    "pixels copies": "pixels move",
    "planes turn": "planes elementwise",
}
"""Kind of operation -> the kind whose coefficients estimate it if a profile is older than its kernel."""

LINE = 64
"""Bytes of a cache line."""

_SAMPLED_COLUMNS = 64
"""Columns from which the share of vectors across two cache lines is estimated."""

_SHARE_OF_LAST = 0.5
"""Share of the last-level cache that one core can rely on beside the others."""


@dataclass(frozen=True)
class Caches:
    """Bytes of a core's caches."""

    first: int
    second: int
    last: int
    """Part of the last-level cache that one core can rely on."""


@dataclass(frozen=True)
class Processor:
    """A processor for which kernels are planned; it need not be this one."""

    vectors: str
    """avx512, avx2, generic or aarch64."""
    lanes: int
    """float32 values per vector register."""
    registers: int
    """Number of vector registers."""
    bf16: bool
    caches: Caches

    @classmethod
    def here(cls, target: str = "host") -> Processor:
        """Return this processor, or the part of it that kernels of a target use. Raises `EngineError` without one."""
        found = find_target(target)
        first, second, last = cache_sizes()
        caches = Caches(first, second, int(_SHARE_OF_LAST * last))
        return cls(found.name, found.lanes, found.registers, found.bf16, caches)

    @property
    def target(self) -> Target:
        """The processor as planners see it."""
        near, near_of_few = near_inputs(self.caches.first) if self.vectors == "avx512" else (NEAR, NEAR)
        seen = replace(foreign(self.vectors), lanes=self.lanes, registers=self.registers, bf16=self.bf16)
        return replace(seen, near=near, near_of_few=near_of_few, second=self.caches.second)


@dataclass(frozen=True)
class Work:
    """Work of an operation."""

    label: str
    """Name of the layer."""
    kind: str
    """Kind of operation; each kind has separate coefficients."""
    features: dict[str, float]


@dataclass(frozen=True)
class PlannedWork:
    """Work of a call."""

    native: list[Work]
    """Operations in kernels, of all blocks together."""
    torch: list[tuple[str, set[str], dict[str, float]]]
    """Operation, its parameters and its features, for each node that runs in torch."""
    in_torch: set[str]
    """Parameters whose layers run in torch."""
    regions: int


def plan_work(
    network: MaskedModel,
    keep: Mapping[str, Tensor] | None,
    processor: Processor,
    *,
    precision: str = "fp32",
    layout: str | None = None,
) -> PlannedWork:
    """Plan a network under a mask for a processor and return the work of a call. Nothing is compiled.

    Raises:
        UnsupportedError: if the layout cannot run the network.
    """
    graph, batch = network.masked_graph(keep), network.batch
    regions, nodes, _ = _plan_regions(graph, processor.target, precision, layout)
    works: list[Work] = []
    for native in regions:
        plan, emission = _emit(native, batch)
        times, found = _block_work(emission, plan, batch, processor.target, processor.caches)
        for one in found:
            works.append(Work(one.label, one.kind, {name: times * value for name, value in one.features.items()}))
    of = origins(graph, network.names)
    in_torch = set().union(*(parameters_of(node, of) for node in nodes))
    native_parameters = [parameters_of(node, of) for node in graph.nodes if node not in nodes]
    in_torch |= set(network.names).difference(*native_parameters)
    torch_work = [(node.op, parameters_of(node, of), _torch_features(graph, node, batch)) for node in nodes]
    return PlannedWork(works, torch_work, in_torch, len(regions))


@dataclass(frozen=True)
class TimedOperations:
    """Operations of a network under a mask, timed."""

    works: list[Work]
    """On one block."""
    blocks: float
    """Blocks of a call."""
    seconds: tuple[float, ...]
    """Seconds of each operation in a whole call."""
    whole: float
    """Seconds of the call."""


def time_operations(
    network: MaskedModel,
    keep: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    target: str,
    precision: str,
    layout: str,
) -> TimedOperations | None:
    """Compile a network under a mask and time each of its operations by the thread's processor time.

    Returns:
        None if the layout cannot run this batch.

    Raises:
        ValueError: if parts of the network run in torch.
    """
    found, caches = find_target(target), Processor.here(target).caches
    regions, nodes, reasons = _plan_regions(network.masked_graph(keep), found, precision, layout)
    if nodes or len(regions) != 1:
        raise ValueError(f"parts of the network do not run in kernels: {reasons}")
    (native,), batch = regions, len(inputs)
    try:
        plan, emission = _emit(native, batch)
    except UnsupportedError:
        return None
    blocks, works = _block_work(emission, plan, batch, found, caches)
    program = Program(emission.ops, plan.images, emission.bytes, native.library, plan.split, denormals=False)
    _, _, used, _ = native._bound([inputs])
    seconds, whole = _time_program(program, batch, [one.data_ptr() for one in used])
    return TimedOperations(works, blocks, tuple(seconds), whole)


_ROUNDS = 11
_MOST_CALLS = 20
_LEAST_SECONDS = 0.01
"""Least duration of all calls of a whole program together."""


def _time_program(program: Program, batch: int, addresses: Sequence[int]) -> tuple[list[float], float]:
    """Return the seconds of each operation and of a whole call: the second least of several samples."""
    clock = time.thread_time
    for _ in range(3):
        program.run(batch, addresses)
    several: list[float] = []
    each: list[list[float]] = []
    while len(each) < _ROUNDS or (len(several) < _MOST_CALLS and sum(several) < _LEAST_SECONDS):
        begin = clock()
        program.run(batch, addresses)
        several.append(clock() - begin)
        if len(each) < _ROUNDS:
            each.append(program.profile(batch, addresses, clock))
    seconds: list[float] = np.sort(np.array(each), axis=0)[1].tolist()
    return seconds, sorted(several)[1]


# -- plans -------------------------------------------------------------------------------------------------------------


def _plan_regions(
    graph: Graph, target: Target, precision: str, layout: str | None
) -> tuple[list[Native], list[Node], dict[str, str]]:
    """Return the engine's regions, the nodes that run in torch, and the reasons for those."""
    parts = partition(graph)
    library, known = Library(target), list[str]()

    def digest() -> str:
        if not known:
            known.append(digest_of(graph))
        return known[0]

    regions = [
        Native(graph, step, library, digest, layout, precision) for step in parts.steps if isinstance(step, Region)
    ]
    return regions, [step for step in parts.steps if isinstance(step, Node)], parts.reasons


def _emit(native: Native, batch: int) -> tuple[Plan, Emission]:
    """Return the plan of a batch on one thread, and the operations of a block."""
    plan = native.plan(batch, 1)
    return plan, native._emission(plan)


def _block_work(emission: Emission, plan: Plan, batch: int, target: Target, caches: Caches) -> tuple[float, list[Work]]:
    """Return the number of blocks in a call, and the work of each operation on one of them."""
    tables = sum(_table_bytes(op) for op in emission.ops)
    planar = plan.layout == PLANAR
    images = plan.images if planar else min(plan.images, batch)  # planar vectors hold all images of a block
    blocks = ceil(batch / images) if planar else batch / images
    setting = _Setting(target, caches, images, tables, emission.bytes)
    return blocks, [_work(op, task, setting) for op, task in zip(emission.ops, emission.tasks, strict=True)]


def _torch_features(graph: Graph, node: Node, batch: int) -> dict[str, float]:
    """Return the features of a node that runs in torch: bytes, and multiplications by its weights."""
    numbers = sum(graph.values[name].numel(batch) for name in (*node.inputs, node.output))
    made = graph.values[node.output].shape
    outputs = graph.values[node.output].numel(batch) if made else 0
    largest = max((graph.tensors[name].numel() for name in node.weights.values() if name in graph.tensors), default=0)
    channels = int(made[1] or 1) if made and len(made) > 1 else 1
    return {"op": 1.0, "bytes": 4.0 * numbers, "multiplications": largest * outputs / max(1, channels)}


# -- features of kernels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """Settings that all operations of a block share."""

    target: Target
    caches: Caches
    images: int
    """Images in a block."""
    tables: int
    """Bytes of the tables of all operations."""
    arena: int
    """Bytes of all values."""


def _work(op: Op, task: RegionTask, setting: _Setting) -> Work:
    """Return the work of an operation."""
    kernel = op.kernel
    layout = PLANAR if ".planar." in type(kernel).__module__ else CHANNELS_LAST
    if isinstance(kernel, RowSums):
        kind, features = "sums" if kernel.rows == 1 else "shared sums", _sums(kernel, op, task, setting)
    elif isinstance(kernel, Taps | Dots):
        counts = _count_taps(kernel, op) if isinstance(kernel, Taps) else _count_dots(kernel, op)
        kind, features = title(kernel), _add(counts, _cold(op, setting), _moved(counts, task, setting))
    elif isinstance(kernel, GroupConv):
        kind, features = "depthwise" if kernel.depthwise else "groups", _group_conv(kernel, op, task, setting)
    else:
        kind = f"{layout} {title(kernel)}"
        features = _other(op, task, setting, layout)
    if isinstance(kernel, RowSums | Taps | Dots | GroupConv) and task.output.pixels == (1, 1):
        kind += " of a position"  # tiles over images only have a higher cost per column and row
    features["op"] = 1.0
    act = getattr(kernel, "act", None)
    if act is not None and act != "relu":
        name = act if isinstance(act, str) else act[0]
        features[f"act {name}"] = features.get("store") or _vectors(task, setting, layout)
    return Work(op.label, kind, features)


def _missed(size: float, cache: float) -> float:
    """Return the share of repeatedly read data that does not stay in a cache."""
    return float(min(1.0, max(0.0, (size / cache - 0.6) / 0.6)))


def _from_farther(size: float, often: float, caches: Caches) -> dict[str, float]:
    """Return the bytes that come from the second and the last cache when `size` bytes are read `often` times."""
    return {
        "second": size * often * _missed(size, caches.first),
        "last": size * often * _missed(size, caches.second),
    }


def _table_bytes(op: Op) -> int:
    """Return the bytes of an operation's tables."""
    return sum(arg.nbytes for arg in op.args if isinstance(arg, np.ndarray))


def _add(*several: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in several:
        for name, value in one.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _cold(op: Op, setting: _Setting) -> dict[str, float]:
    """Return the bytes of tables that were evicted from the second or the last cache since the last block."""
    size, everything = _table_bytes(op), setting.tables + setting.arena
    return {
        "cold last": size * _missed(everything, setting.caches.second),
        "cold memory": size * _missed(everything, setting.caches.last),
    }


def _values(task: RegionTask, setting: _Setting) -> dict[str, float]:
    """Return the bytes of values that the first and the second cache do not hold between layers."""
    size = sum(4.0 * form.channels * prod(form.pixels) for form in (*task.inputs, task.output)) * setting.images
    return {
        "values second": size * _missed(size, setting.caches.first),
        "values last": size * _missed(size, setting.caches.second),
    }


def _moved(found: dict[str, float], task: RegionTask, setting: _Setting) -> dict[str, float]:
    """Return `_values` of a product, and the part that its sums do not hide.

    A vector to or from the second cache takes the time of about `_SECOND` sums, from the last cache of `_LAST`. RowSums
    hide as much of it as they take themselves.
    """
    x = task.inputs[0]
    written = LINE * found["store"] + LINE * found["residual"]
    size = 4.0 * x.channels * prod(x.pixels) * setting.images + written
    second, last = _missed(size, setting.caches.first), _missed(size, setting.caches.second)
    exposed = {"written": found["store"] + found["residual"], "moved": size / LINE}
    return {
        "values second": size * second,
        "values last": size * last,
        **{f"{name} second": second * max(0.0, _SECOND * lines - found["most"]) for name, lines in exposed.items()},
        **{f"{name} last": last * max(0.0, _LAST * lines - found["most"]) for name, lines in exposed.items()},
    }


_SECOND, _LAST = 8, 16


# -- sums of rows, planar ----------------------------------------------------------------------------------------------


def _sums(kernel: RowSums, op: Op, task: RegionTask, setting: _Setting) -> dict[str, float]:
    segments, columns, weights, _, chunks, *_ = op.args
    assert isinstance(segments, np.ndarray)
    assert isinstance(columns, np.ndarray)
    assert isinstance(weights, np.ndarray)
    assert isinstance(chunks, int)
    rows, lanes = kernel.rows, setting.target.lanes
    entries = weights.size / rows
    count = segments.size * 4 // kernel.segment_bytes
    tables = segments.nbytes + columns.nbytes + weights.nbytes
    channels = sum(form.channels for form in task.inputs[:1])
    found: dict[str, float] = {}
    for number, shape in enumerate(kernel.shapes):
        places, tiles, _ = op.args[SHAPES + 3 * number : SHAPES + 3 * number + 3]
        assert isinstance(tiles, int)
        vectors = len(shape.x)
        sets = side_by_side(rows, vectors)
        several = rows == 1 and sets > 1
        loads = vectors * (1 + _across(kernel, segments, columns, shape.x, places, lanes))
        lookups = 0.4 if several else rows + 1
        sums = float(rows * vectors)
        turn = entries * tiles
        store = float(count * tiles * rows * vectors)
        # Inputs of a group's columns stay in the first cache if they are few; else each group reads them again.
        touched = (channels if rows == 1 else min(channels * 3, entries / max(1, count))) * vectors * LINE
        again = tiles if rows == 1 else tiles * max(1.0, count / 2)
        found = _add(
            found,
            {
                "load": turn * (loads + lookups / 2),
                "sum": turn * sums,
                "most": turn * max(loads + lookups / 2, sums),
                "column": turn,
                "turn": turn if sets == 1 else turn / 4,
                "latency": turn * max(0.0, 4 / sets - max(loads, sums)),
                "segment": float(count * tiles),
                "store": store,
                "unit": float(tiles * chunks),
                "residual": store if kernel.residual else 0.0,
                "blocked": store if kernel.blocked else 0.0,
                "masked": store if kernel.masked[number] else 0.0,
            },
            {f"tables {name}": value for name, value in _from_farther(tables, tiles, setting.caches).items()},
            {f"inputs {name}": value for name, value in _from_farther(touched, again, setting.caches).items()},
            {"inputs": float(again * channels * vectors * LINE)},
        )
    return _add(found, _cold(op, setting), _moved(found, task, setting))


def _across(kernel: RowSums, segments: Any, columns: Any, offsets: Any, places: Any, lanes: int) -> float:
    """Return the share of a tile's vectors that cross a cache line."""
    if not columns.size:
        return 0.0
    words = segments.reshape(-1, kernel.segment_bytes // 4)
    first = int(words[0, 0]) >> 2
    some = columns[: max(1, min(first, _SAMPLED_COLUMNS))].astype(np.int64) * kernel.unit + int(words[0, 1])
    begins = some[:, None] + np.array(offsets) + int(places[0, 0])
    return float((begins % LINE + lanes * 4 > LINE).mean())


# -- groups of rows, channels-last -------------------------------------------------------------------------------------


def _group_conv(kernel: GroupConv, op: Op, task: RegionTask, setting: _Setting) -> dict[str, float]:
    args, lanes, images = op.args, setting.target.lanes, setting.images
    groups, together = args[ConvArg.GROUPS], args[ConvArg.GROUPS_PER_PASS]
    assert isinstance(groups, int)
    assert isinstance(together, int)
    whole = images // kernel.tile.images
    shapes: list[tuple[Tile, int, int]] = [(kernel.tile, int(ConvArg.TILES), whole)]
    if kernel.rest is not None:
        shapes.append((kernel.rest, ConvArg.TILES + TILE_ARGS, images - whole * kernel.tile.images))
    vectors = kernel.vectors
    found: dict[str, float] = {}
    for tile, at, times in shapes:
        count, entries, classes, begins, runs = args[at : at + TILE_ARGS]
        assert isinstance(count, int)
        assert isinstance(classes, int)
        columns, parts = _columns(entries, classes, begins, runs, groups)
        turn, tiles = float(columns * times), float(count * times)
        units, pixels = tiles * groups, tile.pixels
        loads = vectors + pixels * (1.0 if kernel.depthwise else 0.5)
        several = count_accumulators(vectors, tile, setting.target)
        weights = turn / max(tiles, 1) * vectors * lanes * 4 * min(1.0, together / max(1, groups))
        passes = tiles * max(1.0, groups / together)
        touched = float(task.inputs[0].channels * 4 * pixels * 2)
        found = _add(
            found,
            {
                "load": turn * loads,
                "sum": turn * vectors * pixels,
                "most": turn * max(loads, vectors * pixels),
                "column": turn,
                "latency": turn * max(0.0, 4 - vectors * pixels * several) / several,
                "unit": units,
                "tile": tiles,
                "run": float(parts * times),
                "store": units * vectors * pixels,
                "residual": units * vectors * pixels if kernel.residual else 0.0,
                "partial": units * pixels if kernel.partial_vector else 0.0,
            },
            {f"tables {name}": value for name, value in _from_farther(weights, passes, setting.caches).items()},
            {f"inputs {name}": value for name, value in _from_farther(touched, units, setting.caches).items()},
        )
    return _add(found, _cold(op, setting), _moved(found, task, setting))


def _columns(entries: Any, classes: int, begins: Any, runs: Any, groups: int) -> tuple[int, int]:
    """Return the number of columns and of runs of columns, over all tiles of an image and all groups."""
    tiles = np.bincount(entries[:, 3], minlength=classes)
    lengths = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])]) if len(runs) else np.zeros(1, np.int64)
    each = np.diff(lengths[begins]).reshape(groups, classes).sum(axis=0)
    parts = np.diff(begins).reshape(groups, classes).sum(axis=0)
    return int((each * tiles).sum()), int((parts * tiles).sum())


# -- rows with few inputs ----------------------------------------------------------------------------------------------

_GATHER_LOADS = 16
"""Loads that take about as long as a gathered vector."""


def _count_taps(kernel: Taps, op: Op) -> dict[str, float]:
    """Count the work of `Taps`: a vector of a column takes a load of its mask and one or two of its values."""
    (segments,) = _arrays(op, taps.SEGMENTS)
    rows, found = len(segments), dict.fromkeys(_COUNTS, 0.0)
    for number, shape in enumerate(kernel.shapes):
        at = taps.SHAPES + taps.SHAPE_ARGS * number
        tiles, vectors = int(op.args[at + 1]), len(shape.x)
        turn = float(int(segments[:, 0].sum()) * tiles)
        loads, store = vectors * (1 + 1.9 * kernel.stride) + 3, float(rows * tiles * vectors)
        found["load"] += turn * loads
        found["sum"] += turn * vectors
        found["most"] += turn * loads
        found["column"] += turn
        found["turn"] += turn
        found["segment"] += float(rows * tiles)
        found["store"] += store
        found["residual"] += store if kernel.residual else 0.0
        found["masked"] += store if kernel.masked[number] else 0.0
    return found


def _count_dots(kernel: Dots, op: Op) -> dict[str, float]:
    """Count the work of `Dots`: a chunk of columns is gathered once for all rows that share it."""
    groups, chunks = _arrays(op, 0, 3)
    turn, rows = float(len(chunks) - 1), float(len(groups) * kernel.rows)
    loads = _GATHER_LOADS + kernel.rows
    found = dict.fromkeys(_COUNTS, 0.0)
    found |= {
        "load": turn * loads,
        "sum": turn * kernel.rows,
        "most": turn * loads,
        "column": turn,
        "turn": turn,
        "segment": rows,
        "store": rows,
        "residual": rows if kernel.residual else 0.0,
    }
    return found


_COUNTS = ("load", "sum", "most", "column", "turn", "segment", "store", "residual", "masked")


def _arrays(op: Op, *numbers: int) -> list[Any]:
    found = [op.args[number] for number in numbers]
    assert all(isinstance(one, np.ndarray) for one in found)
    return found


# -- everything else ---------------------------------------------------------------------------------------------------


def _vectors(task: RegionTask, setting: _Setting, layout: str) -> float:
    """Return the number of vectors in a task's output."""
    channels, positions, lanes = task.output.channels, prod(task.output.pixels), setting.target.lanes
    if layout == CHANNELS_LAST:
        return float(ceil(channels / lanes) * positions * setting.images)
    return float(channels * ceil(positions * setting.images / lanes))


def _taps(task: RegionTask) -> float:
    attrs = task.node.attrs
    return float(prod(attrs["kernel"])) if task.kind in ("max_pool2d", "avg_pool2d") else 1.0


def _other(op: Op, task: RegionTask, setting: _Setting, layout: str) -> dict[str, float]:
    counted = _COUNTED.get(type(op.kernel))
    if counted is not None:
        found = counted(op, setting)
    elif "attention" in task.kind:
        q, k, v = (form for form in task.inputs[:3])
        pairs = prod(q.pixels) * prod(k.pixels) * setting.images
        found = {"pairs": pairs * len(q.planes), "products": pairs * (q.channels + v.channels) / setting.target.lanes}
    else:
        form, vectors = task.output, _vectors(task, setting, layout)
        inputs = sum(one.channels * prod(one.pixels) for one in task.inputs) * setting.images
        found = {
            "vectors": vectors,
            "taps": vectors * _taps(task),
            "read": inputs / setting.target.lanes,
            "lines": float(form.channels * form.pixels[0]),
            "positions": float(prod(form.pixels) * setting.images),
        }
    return _add(found, _values(task, setting))


def _elementwise(op: Op, setting: _Setting) -> dict[str, float]:
    channels, count, floats = (int(arg) for arg in op.args[:3])
    return {
        "vectors": float(channels * count * ceil(floats / setting.target.lanes)),
        "lines": float(channels * count),
    }


def _gather(op: Op, setting: _Setting) -> dict[str, float]:
    places, pieces = op.args[0], op.args[2]
    assert isinstance(places, np.ndarray)
    assert isinstance(pieces, np.ndarray)
    vectors = float((places[:, 3] - places[:, 2]).sum())
    return {"vectors": vectors, "taps": vectors * pieces.shape[1], "lines": float(len(places))}


def _turn(op: Op, setting: _Setting) -> dict[str, float]:
    kernel = op.kernel
    assert isinstance(kernel, Turn)
    planes, rows = (int(op.args[index]) for index in (1, 5))
    copies = planes * len(kernel.shifts)
    return {"vectors": float(copies * rows * kernel.row), "lines": float(copies)}


def _split(op: Op, setting: _Setting) -> dict[str, float]:
    kernel = op.kernel
    assert isinstance(kernel, PhaseSplit)
    count, rows, each = (int(op.args[index]) for index in (1, 2, 6))
    vectors = float(count * rows * each)
    return {"vectors": vectors * len(kernel.phases), "read": vectors * kernel.stride, "lines": float(count * rows)}


_COUNTED: dict[type, Callable[[Op, _Setting], dict[str, float]]] = {
    Elementwise: _elementwise,
    Gather: _gather,
    PhaseSplit: _split,
    Turn: _turn,
}
"""Kernels whose tables are counted; others are counted by the shapes of their values."""
