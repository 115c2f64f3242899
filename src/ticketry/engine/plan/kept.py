"""Plans kept in the user's cache: the operations of a region, tables and all, so that packing weights is done once.

A plan is found by a digest of all that made it: the graph, the region, the batch's block, the target, and the sources
of planner and kernels. Like the compiled kernels beside it, it is trusted as far as the user's own cache folder is: a
model file from elsewhere is only ever a graph.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ticketry.engine.cpu.jit import Kept, Library, cache_folder, title
from ticketry.engine.cpu.program import Op
from ticketry.engine.graph import Graph
from ticketry.engine.plan.partition import Region

_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_MOST_BYTES = 1 << 30
"""Of all plans together: the oldest go first."""


@dataclass(frozen=True)
class Record:
    """A kept plan."""

    ops: list[Op]
    facts: dict[str, Any]
    """What was stored beside the operations, as JSON."""


class Plans:
    """The kept plans of one region."""

    def __init__(self, graph_digest: str, region: Region, library: Library) -> None:
        outputs = [node.output for node in region.nodes]
        text = f"{_sources()} {library.identity} {graph_digest} {outputs!r} {region.inputs!r} {region.outputs!r}"
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._library = library

    def fetch(self, *key: object) -> Record | None:
        """The plan of a key; None if there is none, or none whose kernels are all there."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        if len(data) < 24 or hashlib.blake2b(data[16:], digest_size=16).digest() != data[:16]:
            return None
        size = int.from_bytes(data[16:24], "little")
        document = json.loads(data[24 : 24 + size])
        ops = [_op(entry, data, _aligned(24 + size)) for entry in document["ops"]]
        if not all(self._library.has(op.kernel) for op in ops):
            return None
        return Record(ops, document["facts"])

    def keep(self, ops: Sequence[Op], facts: dict[str, Any], *key: object) -> None:
        """Store a plan. A cache that cannot be written to is done without."""
        tables: list[bytes] = []
        entries, at = [], 0
        for op in ops:
            args: list[Any] = []
            for arg in op.args:
                if not isinstance(arg, np.ndarray):
                    args.append(int(arg))
                    continue
                raw = np.ascontiguousarray(arg).tobytes()
                args.append([at, arg.dtype.str, list(arg.shape)])
                tables.append(raw + bytes(_aligned(len(raw)) - len(raw)))
                at += len(tables[-1])
            entries.append([self._library.name(op.kernel), title(op.kernel), op.label, args])
        header = json.dumps({"ops": entries, "facts": facts}).encode()
        start = 24 + len(header)
        body = b"".join([len(header).to_bytes(8, "little"), header, bytes(_aligned(start) - start), *tables])
        _write(self._path(key), hashlib.blake2b(body, digest_size=16).digest() + body)

    def _path(self, key: tuple[object, ...]) -> Path:
        digest = hashlib.blake2b(f"{self._digest} {key!r}".encode(), digest_size=16).hexdigest()
        return _folder() / f"{digest}.plan"


def digest_of(graph: Graph) -> str:
    """A digest of all that a graph computes with."""
    digest = hashlib.blake2b(digest_size=16)
    for one in graph.nodes:
        digest.update(
            repr((one.op, one.inputs, one.output, sorted(one.attrs.items()), sorted(one.weights.items()))).encode()
        )
    for name, value in sorted(graph.values.items()):
        digest.update(repr((name, value.shape, value.dtype)).encode())
    for name, tensor in sorted(graph.tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(repr((name, tuple(array.shape), array.dtype)).encode())
        digest.update(array.reshape(-1).view(dtype=_BYTES[array.element_size()]).numpy().data)
    return digest.hexdigest()


def _op(entry: Any, data: bytes, start: int) -> Op:
    name, kind, label, args = entry
    made: list[Any] = []
    for arg in args:
        if isinstance(arg, int):
            made.append(arg)
            continue
        at, dtype, shape = arg
        count = int(np.prod(shape))
        made.append(np.frombuffer(data, dtype=np.dtype(dtype), count=count, offset=start + at).reshape(shape))
    return Op(Kept(name, kind), tuple(made), label)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


@functools.cache
def _sources() -> str:
    """A digest of planner and graph, so that plans made by others than these are not used (kernels have their own)."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), here.parent / "graph.py", here.parent / "infer.py"])
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=16).hexdigest()


def _folder() -> Path:
    return cache_folder().parent / "plans"


def _write(path: Path, data: bytes) -> None:
    """Under a temporary name, then renamed; then the oldest plans go if there are too many."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
        kept = sorted(
            ((one.stat().st_mtime, one.stat().st_size, one) for one in path.parent.glob("*.plan")), reverse=True
        )
        total = 0
        for _, size, one in kept:
            total += size
            if total > _MOST_BYTES:
                one.unlink(missing_ok=True)
    except OSError:
        pass
