"""Plans kept in the user's cache: the operations of a region, tables and all, so that packing weights is done once.

A plan is found by a digest of all that made it: the graph, the region, the batch's block, the target, and the sources
of planner and kernels. Like the compiled kernels beside it, it is trusted as far as the user's own cache folder is: a
model file from elsewhere is only ever a graph.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from ticketry_engine import ir
from ticketry_engine.ir import Graph
from ticketry_engine.kept_files import digest_of_files, folder, keep, kept
from ticketry_engine.kernels.jit import Kept, Library, title
from ticketry_engine.kernels.program import Op
from ticketry_engine.plan.partition import Region

_log = logging.getLogger(__name__)

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
        data = kept(self._path(key))
        if data is None:
            return None
        tables = load(data)
        document = json.loads(tables["plan"].tobytes())
        ops = [
            Op(Kept(name, kind), tuple(tables[arg] if isinstance(arg, str) else arg for arg in args), label)
            for name, kind, label, args in document["ops"]
        ]
        return Record(ops, document["facts"]) if all(self._library.has(op.kernel) for op in ops) else None

    def keep(self, ops: Sequence[Op], facts: dict[str, Any], *key: object) -> None:
        """Store a plan, its tables by numbers. A cache that cannot be written to is done without."""
        tables: dict[str, np.ndarray[Any, Any]] = {}
        known: dict[int, str] = {}
        entries = []
        for op in ops:
            args: list[int | str] = []
            for arg in op.args:
                if isinstance(arg, np.ndarray):
                    if id(arg) not in known:
                        known[id(arg)] = str(len(tables))
                        tables[known[id(arg)]] = np.ascontiguousarray(arg)
                    args.append(known[id(arg)])
                else:
                    args.append(int(arg))
            entries.append([self._library.name(op.kernel), title(op.kernel), op.label, args])
        document = json.dumps({"ops": entries, "facts": facts}).encode()
        path = self._path(key)
        keep(path, save({**tables, "plan": np.frombuffer(document, np.uint8)}))
        _tidy(path.parent)

    def _path(self, key: tuple[object, ...]) -> Path:
        digest = hashlib.blake2b(f"{self._digest} {key!r}".encode(), digest_size=16).hexdigest()
        return folder("plans") / f"{digest}.plan"


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
        digest.update(array.reshape(-1).view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()


@functools.cache
def _sources() -> str:
    """Return a digest of planner and graph: plans that other sources made are not used (kernels have their own)."""
    here = Path(__file__).parent
    return digest_of_files([*here.glob("*.py"), *Path(ir.__file__).parent.glob("*.py")])


def _tidy(folder: Path) -> None:
    """The oldest plans go if there are too many."""
    try:
        plans = [(one.stat().st_mtime, one.stat().st_size, one) for one in folder.glob("*.plan")]
        total = 0
        for _, size, one in sorted(plans, reverse=True):
            total += size
            if total > _MOST_BYTES:
                one.unlink(missing_ok=True)
    except OSError as error:
        _log.info("old plans are left: %s", error)
