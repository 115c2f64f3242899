"""Runs a region: programs for the batch sizes that occur, created when first needed, and the cache of their plans."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from ticketry_engine import ir
from ticketry_engine.ir import Graph, Region
from ticketry_engine.ir.binding import fitting, fresh
from ticketry_engine.kept_files import digest_of_files, folder, keep, kept
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.jit import CachedKernel, Library, title
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.plan.emission import Emission, chunks, memory, with_chunks
from ticketry_engine.plan.layout_choice import arena_of, block, choose, share
from ticketry_engine.plan.partition import sketch_region
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.value_axes import UnsupportedError

_MOST_READY = 256
"""Batches whose program is found without a plan."""

ITEM = {"fp32": FLOAT, "bf16": HALF}
"""Bytes of a value over pixels, by precision."""

_ROUNDS = 5
"""Samples of each plan that is tried, warmed before."""

Last = tuple[int, ...]
"""Numbers of the inputs that come as torch's channels_last."""


@dataclass(frozen=True)
class Plan:
    """How a batch is run: layout, block size, and division among threads."""

    layout: str
    """"planes" or "pixels"."""
    images: int
    """Images per block."""
    split: str
    """How threads divide the work: see `Program`."""
    last: Last = ()
    """Numbers of the channels-last inputs; the others are contiguous."""
    precision: str = "fp32"
    """Number format of values and products: "fp32", or "bf16" (channels-last only)."""


@dataclass
class Native:
    """A compiled region: its programs, by plan."""

    graph: Graph
    region: Region
    library: Library
    digest: Callable[[], str]
    """Function that returns the graph's digest."""
    layout: str | None = None
    """"planes" or "pixels"; None: see `choose`."""
    precision: str = "fp32"
    """"bf16" for bfloat16 if the region runs in the channels-last layout; the planar layout always uses float32."""
    sketch: Sketch = field(init=False)
    programs: dict[Plan, Program] = field(init=False, default_factory=dict)
    _tuned: dict[tuple[int, int, Last], Plan] = field(init=False, default_factory=dict)
    _chosen: dict[int, str] = field(init=False, default_factory=dict)
    _blocks: dict[tuple[str, int], int] = field(init=False, default_factory=dict)
    _ready: dict[tuple[int, int, Last, str | None], Program] = field(init=False, default_factory=dict)
    """Program of each batch size, number of threads, memory format of inputs, and layout that was called."""
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.sketch = sketch_region(self.graph, self.region)
        self._made = [memory(task.inputs[0]) for task in self.sketch.tasks if task.kind == "store"]
        shapes = [self.graph.values[name].shape or () for name in self.region.inputs]
        sizes = [tuple(size for size in shape[1:] if size is not None) for shape in shapes]
        known = [name in self.graph.inputs for name in self.region.inputs]
        self._from_torch = [(number, size) for number, size in enumerate(sizes) if not known[number]]
        """Numbers and sizes of the inputs that torch nodes compute. `binding.CallBinder` has checked the others."""

    def __call__(self, tensors: Sequence[Tensor], threads: int) -> list[Tensor]:
        """Return the region's outputs for its inputs."""
        batch, last, used, made = self._bound(tensors)
        if batch:
            key = (batch, threads, last, self.layout)
            program = self._ready.get(key)
            if program is None:
                program = self.program(self.plan(*key[:3]))
                if len(self._ready) < _MOST_READY:
                    self._ready[key] = program
            program.run(batch, [tensor.data_ptr() for tensor in used], threads, used)
        return made

    def profile(
        self, tensors: Sequence[Tensor], seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> list[Tensor]:
        """Run the region on one thread, and add the seconds of each layer, by `clock`, to `seconds`."""
        batch, last, used, made = self._bound(tensors)
        if not batch:
            return made
        program = self.program(self.plan(batch, 1, last))
        found = program.profile(batch, [tensor.data_ptr() for tensor in used], clock)
        for op, spent in zip(program.ops, found, strict=True):
            seconds[op.label] = seconds.get(op.label, 0.0) + spent
        return made

    def tune(self, tensors: Sequence[Tensor], threads: int) -> dict[Plan, float]:
        """Time every plan there could be for this batch and keep the fastest. Returns the seconds of each."""
        batch, last, used, _ = self._bound(tensors)
        addresses = [tensor.data_ptr() for tensor in used]
        programs: dict[Plan, Program] = {}
        for plan in _candidates(batch, threads, last, self.precision) if batch else ():
            try:
                programs[plan] = self.program(plan)
            except UnsupportedError:
                continue
        samples: dict[Plan, list[float]] = {plan: [] for plan in programs}
        for turn in range(_ROUNDS + 1):
            for plan, program in programs.items():
                begin = time.perf_counter()
                program.run(batch, addresses, threads, used)
                if turn:  # the first turn warms
                    samples[plan].append(time.perf_counter() - begin)
        found = {plan: statistics.median(several) for plan, several in samples.items()}
        if found:
            best = min(found, key=lambda plan: found[plan])
            with self._lock:
                self._tuned[batch, threads, last] = best
                self._ready.clear()
                for plan in set(programs) - {best, *self._tuned.values()}:
                    self.programs.pop(plan, None)
        return found

    def forget(self) -> None:
        """Free all programs."""
        with self._lock:
            self._ready.clear()
            self.programs.clear()

    def plan(self, batch: int, threads: int, last: Last = ()) -> Plan:
        """Return how a batch is run: the plan found by `tune`, or else the one with the lowest estimate."""
        with self._lock:
            if (batch, threads, last) in self._tuned:
                return self._tuned[batch, threads, last]
            images = share(batch, threads)
            layout = self.layout or self._choice(images)
            if (layout, images) not in self._blocks:
                item = ITEM[self.precision] if layout == "pixels" else FLOAT
                self._blocks[layout, images] = block(self.sketch, layout, images, self.library.target, item)
        return _plan(layout, self._blocks[layout, images], batch, threads, last, self.precision)

    def _choice(self, images: int) -> str:
        if images not in self._chosen:
            key = ("layout", images, self.precision)
            if (kept := self._plans.fetch(*key)) is None:
                self._chosen[images] = choose(self.sketch, self.library.target, images, ITEM[self.precision])
                self._plans.keep([], {"layout": self._chosen[images]}, *key)
            else:
                self._chosen[images] = str(kept.facts["layout"])
        return self._chosen[images]

    @functools.cached_property
    def _plans(self) -> Plans:
        return Plans(self.digest(), self.region, self.library)

    def program(self, plan: Plan) -> Program:
        """Return the program of a plan; it is created when first needed."""
        with self._lock:
            if plan not in self.programs:
                self.programs[plan] = self._program(plan)
            return self.programs[plan]

    def _program(self, plan: Plan) -> Program:
        key = (plan.layout, plan.images, plan.last, plan.precision)
        kept = self._plans.fetch(*key)
        if kept is None:
            emission = self._emission(plan)
            kept = Record(emission.ops, {"arena": emission.bytes})
            self._plans.keep(kept.ops, kept.facts, *key)
        return Program(kept.ops, plan.images, int(kept.facts["arena"]), self.library, plan.split, denormals=False)

    def _emission(self, plan: Plan) -> Emission:
        target, images, item = self.library.target, plan.images, ITEM[plan.precision]
        found = chunks(self.sketch, plan.layout, images, target.lanes, item)
        sketch = with_chunks(self.sketch, found)
        arena = arena_of(sketch, plan.layout, target, images, item)
        return Emission(sketch, arena, target, images, len(self.region.inputs), plan.last, found)

    def _bound(self, tensors: Sequence[Tensor]) -> tuple[int, Last, list[Tensor], list[Tensor]]:
        """Return number of images, channels-last inputs, tensors read and written, and tensors returned."""
        batch = tensors[0].shape[0]
        used = list(tensors)
        for number, size in self._from_torch:
            used[number] = fitting(used[number], (batch, *size), f"the value {self.region.inputs[number]!r}")
        last: list[int] = []
        for number, tensor in enumerate(used):
            if not tensor.is_contiguous():
                if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                    last.append(number)
                else:
                    used[number] = tensor.contiguous()
        made = []
        for shape, order in self._made:
            output = fresh((batch, *shape))
            used.append(output)
            made.append(output if order is None else output.permute(order))
        return batch, tuple(last), used, made


def _plan(layout: str, images: int, batch: int, threads: int, last: Last, precision: str) -> Plan:
    """Return a plan in which threads divide the batch if there is a block for each, and otherwise every operation."""
    split = "batch" if -(-batch // images) >= threads else "parts"
    return Plan(layout, images, split, last, precision if layout == "pixels" else "fp32")


def _candidates(batch: int, threads: int, last: Last, precision: str) -> list[Plan]:
    """Return the plans worth timing: both layouts, with the block sizes that the batch fills."""
    most = share(batch, 1)
    blocks = [images for images in (1, 2, 4, 8, 16) if images <= most]
    layouts = ("planes", "pixels")
    return [_plan(one, images, batch, threads, last, precision) for one in layouts for images in reversed(blocks)]


# -- plan cache --------------------------------------------------------------------------------------------------------

# A plan is found by a digest of all that made it: the graph, the region, the batch's block, the target, and the sources
# of planner and kernels. Like the compiled kernels beside it, it is trusted as far as the user's own cache folder is: a
# model file from elsewhere is only ever a graph.


_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30
"""Maximum bytes of all cached plans together; the oldest are deleted."""


@dataclass(frozen=True)
class Record:
    """A cached plan."""

    ops: list[Op]
    facts: dict[str, Any]
    """Further values stored with the operations, as JSON."""


class Plans:
    """The cached plans of one region."""

    def __init__(self, graph_digest: str, region: Region, library: Library) -> None:
        outputs = [node.output for node in region.nodes]
        text = f"{_sources()} {library.identity} {graph_digest} {outputs!r} {region.inputs!r} {region.outputs!r}"
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._library = library

    def fetch(self, *key: object) -> Record | None:
        """Return the plan of a key; None if it is missing, or one of its kernels is."""
        data = kept(self._path(key))
        if data is None:
            return None
        tables = load(data)
        document = json.loads(tables["plan"].tobytes())
        ops = [
            Op(CachedKernel(name, kind), tuple(tables[arg] if isinstance(arg, str) else arg for arg in args), label)
            for name, kind, label, args in document["ops"]
        ]
        return Record(ops, document["facts"]) if all(self._library.has(op.kernel) for op in ops) else None

    def keep(self, ops: Sequence[Op], facts: dict[str, Any], *key: object) -> None:
        """Store a plan in the cache, if the cache is writable."""
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
    """Return a digest of everything that a graph computes with."""
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
    """Delete the oldest plans if all together are too large."""
    try:
        plans = [(one.stat().st_mtime, one.stat().st_size, one) for one in folder.glob("*.plan")]
        total = 0
        for _, size, one in sorted(plans, reverse=True):
            total += size
            if total > _MOST_BYTES:
                one.unlink(missing_ok=True)
    except OSError as error:
        _log.info("old plans are left: %s", error)
