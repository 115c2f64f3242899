"""Damages valid files in every way and loads them. Runs in a separate process:
PYTHONPATH=src:tests python tests/engine/ir/fuzz_model_file.py COUNT SEED.

Whatever a file says, loading it gives a graph or `ModelFileError`; a graph that is given can be run, where it is small,
without harm to the process. The process has a limit of memory and an alarm.
"""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from math import prod
from operator import getitem
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from engine.ir.graphs import small
from interpreter import Program
from ticketry.errors import ModelFileError, TicketryError
from ticketry_engine.ir import Graph
from ticketry_engine.ir.model_file import KIND, dumps, loads

MEMORY = 6 << 30
SECONDS_EACH = 20
CHECKS = list(HealthCheck)

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 64, -(1 << 63), 10**400),
    *(0.5, 1e308),
    *("", "x", "y", "a", "relu", "float32", "float64", "int64", "aten.zeros.default", "aten.set_.source_Tensor"),
    *("aten.from_file.default", "operator.mul", "conv2d", "aten.repeat.default", "__class__", "\x00", "n" * 600),
    *([], {}, [[]], {"value": "x"}, {"value": "y"}, {"tensor": "conv.weight"}, {"dtype": "float16"}, {"float": "nan"}),
    *([None, 3, 6, 6], [1 << 40, 1 << 40], [0, 0], [-1], {"constant": None}, {"tuple": ["y"]}, {"leaky_relu": 1e400}),
]

counts: Counter[str] = Counter()


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document, the outer ones first."""
    yield path
    if isinstance(document, dict):
        for key, part in document.items():
            yield from places(part, (*path, key))
    elif isinstance(document, list):
        for index, part in enumerate(document):
            yield from places(part, (*path, index))


def edit(document: Any, where: int, what: int, value: Any, other: int) -> Any:
    """The document with one change: replace, remove, repeat, rename, swap."""
    value = copy.deepcopy(value)
    known = list(places(document))
    path = known[where % len(known)]
    if not path:
        return value if what == 0 else document
    holder, key = reduce(getitem, path[:-1], document), path[-1]
    if what == 0:
        holder[key] = value
    elif what == 1:
        del holder[key]
    elif what == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif what == 2:
        holder[str(value)[:20]] = holder[key]
    elif what == 3 and isinstance(holder, dict):
        holder[str(value)[:20]] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(reduce(getitem, known[other % len(known)], document))
    return document


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of safetensors, and what follows it."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def with_header(data: bytes, header: Any) -> bytes:
    made = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + split_header(data)[1]


def with_text(data: bytes, text: str) -> bytes:
    return with_header(data, {**split_header(data)[0], "__metadata__": {KIND: text}})


_EDIT = st.tuples(st.integers(0, 1 << 12), st.integers(0, 4), st.sampled_from(HOSTILE), st.integers(0, 1 << 12))
_EDITS = st.lists(_EDIT, min_size=1, max_size=3)
_BYTES = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 4), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6
)
_PIECES = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 3000 + "]" * 3000, '{"a":1,"a":2}', '"', "}", ","]
_TEXT = st.tuples(st.integers(0, 1 << 14), st.sampled_from([*_PIECES, "\\ud800"]))
_WAYS = {"json": _EDITS, "json again": _EDITS, "header": _EDITS, "bytes": _BYTES, "text": _TEXT}
_KINDS = st.one_of([st.tuples(st.just(kind), how) for kind, how in _WAYS.items()])


def damaged(data: bytes, text: str, kind: str, how: Any) -> bytes:
    if kind == "bytes":
        made = bytearray(data)
        for where, what, piece in how:
            where %= max(len(made), 1)
            if what == 0:
                made[where : where + len(piece)] = piece
            elif what == 1:
                del made[where : where + len(piece)]
            elif what == 2:
                made[where:where] = piece
            elif what == 3:
                del made[where:]
            else:
                made[:8] = piece[:8].ljust(8, b"\0")
        return bytes(made)
    if kind == "text":
        where, piece = how
        where %= len(text)
        return with_text(data, text[:where] + piece + text[where + 1 :])

    def change(document: Any) -> Any:
        for one in how:
            with contextlib.suppress(KeyError, IndexError, TypeError):
                document = edit(document, *one)
        return document

    if kind == "header":
        return with_header(data, change(split_header(data)[0]))
    return with_text(data, json.dumps(change(json.loads(text))))


def run_if_small(graph: Graph) -> None:
    sizes = [prod(size or 2 for size in value.shape) for value in graph.values.values() if value.shape is not None]
    if max(sizes, default=0) > 1 << 16:
        counts["large"] += 1
        return
    inputs = [graph.values[name] for name in graph.inputs]
    zeros = [torch.zeros([2 if size is None else size for size in one.shape or ()]) for one in inputs]
    try:
        Program(graph).values([x.to(getattr(torch, one.dtype)) for x, one in zip(zeros, inputs, strict=True)])
        counts["ran"] += 1
    except TicketryError:
        counts["refused when run"] += 1
    except (RuntimeError, TypeError, IndexError, ValueError) as error:  # what torch says of arguments that do not fit
        counts[f"torch: {type(error).__name__}"] += 1


def load_damaged_files(count: int, seed_number: int, seconds_each: int = 0) -> Counter[str]:
    """What became of so many damaged files; a signal ends the process if one takes longer than the given seconds."""
    data = dumps(small(), {"ticket": "t", "list": [1, 2.5]})
    text = split_header(data)[0]["__metadata__"][KIND]

    @seed(seed_number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=CHECKS)
    @given(_KINDS)
    def fuzz(chosen: tuple[str, Any]) -> None:
        made = damaged(data, text, *chosen)
        counts["inputs"] += 1
        if seconds_each:
            signal.alarm(seconds_each)
        try:
            graph, _ = loads(made)
        except ModelFileError:
            counts["refused"] += 1
        else:
            counts["loaded"] += 1
            run_if_small(graph)
        if seconds_each:
            signal.alarm(0)

    fuzz()
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(load_damaged_files(int(sys.argv[1]), int(sys.argv[2]), SECONDS_EACH), sys.stdout)
