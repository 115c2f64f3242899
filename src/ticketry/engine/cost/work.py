"""What an operation of the engine has to do, as numbers: of which a machine's profile makes seconds.

Read from the plan of a network, so that the kernel, its tiles and its tables are those that would run: how many columns
are added up in which tile, what is loaded, multiplied and stored for them, which bytes come from which cache, and what
is done once a row, a tile and an operation. Nothing is compiled or run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from ticketry.engine.cost.few_inputs import of_dots, of_taps
from ticketry_engine.kernels.channels_last.group_conv import TILE_ARGS, ConvArg, GroupConv, Tile, count_accumulators
from ticketry_engine.kernels.jit import title
from ticketry_engine.kernels.planar.dots import Dots
from ticketry_engine.kernels.planar.elementwise import Elementwise
from ticketry_engine.kernels.planar.row_sums import SHAPES, RowSums, side_by_side
from ticketry_engine.kernels.planar.taps import Taps
from ticketry_engine.kernels.planar.unfold import Gather, PhaseSplit, Turn
from ticketry_engine.kernels.program import Op
from ticketry_engine.kernels.target import Target
from ticketry_engine.plan.sketch import RegionTask

LINE = 64
"""Bytes of a cache line."""

_LOOKED_AT = 64
"""Columns by which it is told how many vectors lie across two lines."""


@dataclass(frozen=True)
class Caches:
    """Bytes that a core's caches hold."""

    first: int
    second: int
    last: int
    """What of it one core may count on."""


@dataclass(frozen=True)
class Setting:
    """What operations share."""

    target: Target
    caches: Caches
    images: int
    """Of a block."""
    tables: int
    """Bytes of the tables of all operations: what a call reads but for its values."""
    arena: int
    """Bytes of all values."""


@dataclass(frozen=True)
class Work:
    """An operation on one block."""

    label: str
    """Of the layer."""
    kind: str
    """Whose features have coefficients of their own."""
    features: dict[str, float]


def work_of(op: Op, task: RegionTask, setting: Setting) -> Work:
    """What an operation does."""
    kernel = op.kernel
    layout = "planes" if ".planar." in type(kernel).__module__ else "pixels"
    if isinstance(kernel, RowSums):
        kind, features = "sums" if kernel.rows == 1 else "shared sums", _sums(kernel, op, task, setting)
    elif isinstance(kernel, Taps | Dots):
        counts = of_taps(kernel, op) if isinstance(kernel, Taps) else of_dots(kernel, op)
        kind, features = (
            title(kernel),
            _added(counts, _cold(op, setting), _moved(counts, task, setting)),
        )
    elif isinstance(kernel, GroupConv):
        kind, features = "depthwise" if kernel.depthwise else "groups", _group_conv(kernel, op, task, setting)
    else:
        kind = f"{layout} {title(kernel)}"
        features = _other(op, task, setting, layout)
    if isinstance(kernel, RowSums | Taps | Dots | GroupConv) and task.output.pixels == (1, 1):
        kind += " of a position"  # a tile of images alone: columns and rows count for more
    features["op"] = 1.0
    act = getattr(kernel, "act", None)
    if act is not None and act != "relu":
        name = act if isinstance(act, str) else act[0]
        features[f"act {name}"] = features.get("store") or _vectors(task, setting, layout)
    return Work(op.label, kind, features)


def beyond(size: float, cache: float) -> float:
    """The share of what is gone through again and again that a cache does not keep."""
    return float(min(1.0, max(0.0, (size / cache - 0.6) / 0.6)))


def _from_farther(size: float, often: float, caches: Caches) -> dict[str, float]:
    """Bytes that come from the second cache and from the last one, of so many that are read so often."""
    return {
        "second": size * often * beyond(size, caches.first),
        "last": size * often * beyond(size, caches.second),
    }


def tables_of(op: Op) -> int:
    """Bytes of an operation's tables."""
    return sum(arg.nbytes for arg in op.args if isinstance(arg, np.ndarray))


def _added(*several: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in several:
        for name, value in one.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _cold(op: Op, setting: Setting) -> dict[str, float]:
    """Bytes of tables that have left the second or the last cache since the last block."""
    size, everything = tables_of(op), setting.tables + setting.arena
    return {
        "cold last": size * beyond(everything, setting.caches.second),
        "cold memory": size * beyond(everything, setting.caches.last),
    }


def _values(task: RegionTask, setting: Setting) -> dict[str, float]:
    """Bytes of the values read and written that the first and the second cache do not keep between layers."""
    size = sum(4.0 * form.channels * prod(form.pixels) for form in (*task.inputs, task.output)) * setting.images
    return {
        "values second": size * beyond(size, setting.caches.first),
        "values last": size * beyond(size, setting.caches.second),
    }


def _moved(found: dict[str, float], task: RegionTask, setting: Setting) -> dict[str, float]:
    """The same of a product, which writes a part of the output; and what of it its sums do not hide.

    A vector that comes from the second cache or goes there takes about `_SECOND` sums' time, beside the sums if there
    are as many; from the last cache `_LAST`.
    """
    x = task.inputs[0]
    written = LINE * found["store"] + LINE * found["residual"]
    size = 4.0 * x.channels * prod(x.pixels) * setting.images + written
    second, last = beyond(size, setting.caches.first), beyond(size, setting.caches.second)
    exposed = {"written": found["store"] + found["residual"], "moved": size / LINE}
    return {
        "values second": size * second,
        "values last": size * last,
        **{f"{name} second": second * max(0.0, _SECOND * lines - found["most"]) for name, lines in exposed.items()},
        **{f"{name} last": last * max(0.0, _LAST * lines - found["most"]) for name, lines in exposed.items()},
    }


_SECOND, _LAST = 8, 16


# -- sums of rows over planes ------------------------------------------------------------------------------------------


def _sums(kernel: RowSums, op: Op, task: RegionTask, setting: Setting) -> dict[str, float]:
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
        looked_up = 0.4 if several else rows + 1
        sums = float(rows * vectors)
        turn = entries * tiles
        store = float(count * tiles * rows * vectors)
        # What a group's columns read stays in the first cache if it is small enough; else each group fetches it anew.
        touched = (channels if rows == 1 else min(channels * 3, entries / max(1, count))) * vectors * LINE
        again = tiles if rows == 1 else tiles * max(1.0, count / 2)
        found = _added(
            found,
            {
                "load": turn * (loads + looked_up / 2),
                "sum": turn * sums,
                "most": turn * max(loads + looked_up / 2, sums),
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
    return _added(found, _cold(op, setting), _moved(found, task, setting))


def _across(kernel: RowSums, segments: Any, columns: Any, offsets: Any, places: Any, lanes: int) -> float:
    """The share of a tile's vectors that lie across two cache lines."""
    if not columns.size:
        return 0.0
    words = segments.reshape(-1, kernel.segment_bytes // 4)
    first = int(words[0, 0]) >> 2
    some = columns[: max(1, min(first, _LOOKED_AT))].astype(np.int64) * kernel.unit + int(words[0, 1])
    begins = some[:, None] + np.array(offsets) + int(places[0, 0])
    return float((begins % LINE + lanes * 4 > LINE).mean())


# -- groups of rows over pixels ----------------------------------------------------------------------------------------


def _group_conv(kernel: GroupConv, op: Op, task: RegionTask, setting: Setting) -> dict[str, float]:
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
        found = _added(
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
    return _added(found, _cold(op, setting), _moved(found, task, setting))


def _columns(entries: Any, classes: int, begins: Any, runs: Any, groups: int) -> tuple[int, int]:
    """Of all tiles of an image and all groups: columns, and runs of them."""
    tiles = np.bincount(entries[:, 3], minlength=classes)
    lengths = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])]) if len(runs) else np.zeros(1, np.int64)
    each = np.diff(lengths[begins]).reshape(groups, classes).sum(axis=0)
    parts = np.diff(begins).reshape(groups, classes).sum(axis=0)
    return int((each * tiles).sum()), int((parts * tiles).sum())


# -- everything else ---------------------------------------------------------------------------------------------------


def _vectors(task: RegionTask, setting: Setting, layout: str) -> float:
    """Vectors that a task's output takes."""
    channels, positions, lanes = task.output.channels, prod(task.output.pixels), setting.target.lanes
    if layout == "pixels":
        return float(ceil(channels / lanes) * positions * setting.images)
    return float(channels * ceil(positions * setting.images / lanes))


def _taps(task: RegionTask) -> float:
    attrs = task.node.attrs
    return float(prod(attrs["kernel"])) if task.kind in ("max_pool2d", "avg_pool2d") else 1.0


def _other(op: Op, task: RegionTask, setting: Setting, layout: str) -> dict[str, float]:
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
    return _added(found, _values(task, setting))


def _elementwise(op: Op, setting: Setting) -> dict[str, float]:
    channels, count, floats = (int(arg) for arg in op.args[:3])
    return {
        "vectors": float(channels * count * ceil(floats / setting.target.lanes)),
        "lines": float(channels * count),
    }


def _gather(op: Op, setting: Setting) -> dict[str, float]:
    places, pieces = op.args[0], op.args[2]
    assert isinstance(places, np.ndarray)
    assert isinstance(pieces, np.ndarray)
    vectors = float((places[:, 3] - places[:, 2]).sum())
    return {"vectors": vectors, "taps": vectors * pieces.shape[1], "lines": float(len(places))}


def _turn(op: Op, setting: Setting) -> dict[str, float]:
    kernel = op.kernel
    assert isinstance(kernel, Turn)
    planes, rows = (int(op.args[index]) for index in (1, 5))
    copies = planes * len(kernel.shifts)
    return {"vectors": float(copies * rows * kernel.row), "lines": float(copies)}


def _split(op: Op, setting: Setting) -> dict[str, float]:
    kernel = op.kernel
    assert isinstance(kernel, PhaseSplit)
    count, rows, each = (int(op.args[index]) for index in (1, 2, 6))
    vectors = float(count * rows * each)
    return {"vectors": vectors * len(kernel.phases), "read": vectors * kernel.stride, "lines": float(count * rows)}


_COUNTED: dict[type, Callable[[Op, Setting], dict[str, float]]] = {
    Elementwise: _elementwise,
    Gather: _gather,
    PhaseSplit: _split,
    Turn: _turn,
}
"""Kernels whose tables tell more than the shapes of values."""
