"""Divides a graph into regions, runs a region with a program for each batch size, and caches programs on disk."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from ticketry_engine import ir
from ticketry_engine.ir import Graph, Node, Region
from ticketry_engine.ir.binding import new_output, require_float32
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.jit import CachedKernel, Library, title
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.plan.emission import Emission, choose_chunks, tensor_layout, with_chunks
from ticketry_engine.plan.layout_choice import build_arena, choose_layout, images_per_pass, images_per_thread
from ticketry_engine.plan.sketch import VIEWS, Sketch, add_node
from ticketry_engine.plan.storage import Rearranged, UnsupportedError
from ticketry_engine.support.files import digest_of_files, private_cache_folder, read_cached, write_cached

_MOST_READY = 256
"""Maximum number of combinations of batch size, threads and memory formats whose programs are remembered."""

ITEM = {"fp32": FLOAT, "bf16": HALF}
"""Precision -> bytes of an element of a channels-last value."""

_ROUNDS = 5
"""Number of timing samples of each plan in `tune`, after a call that warms up."""

Last = tuple[int, ...]
"""Numbers of the inputs that are tensors in torch's channels_last format."""


@dataclass(frozen=True)
class Plan:
    """The way in which kernels run a batch: memory layout, number of images at a time, and division among threads."""

    layout: str
    images: int
    split: str
    """Division of the work among threads: "batch" or "parts", see `Program`."""
    last: Last = ()
    """Numbers of the inputs in torch's channels_last format; all other inputs are contiguous."""
    precision: str = "fp32"
    """Number format of values and multiplications: "fp32", or, in the channels-last layout only, "bf16"."""


@dataclass
class Native:
    """A subgraph compiled to programs of kernels: one program for each `Plan`, created when it is first needed."""

    graph: Graph
    region: Region
    library: Library
    digest: Callable[[], str] | None
    """Function that returns a digest of the graph, which names cached programs; None if programs are not cached."""
    layout: str | None = None
    """"planes", "pixels", or None for the layout that `choose_layout` returns."""
    precision: str = "fp32"
    """Number format in the channels-last layout, "fp32" or "bf16"; the planar layout always uses float32."""
    sketch: Sketch = field(init=False)
    programs: dict[Plan, Program] = field(init=False, default_factory=dict)
    _tuned: dict[tuple[int, int, Last], Plan] = field(init=False, default_factory=dict)
    _chosen: dict[int, str] = field(init=False, default_factory=dict)
    _blocks: dict[tuple[str, int], int] = field(init=False, default_factory=dict)
    _ready_programs: dict[tuple[int, int, Last, str | None], Program] = field(init=False, default_factory=dict)
    """(batch size, threads, channels_last inputs, layout) of a previous call -> its program."""
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.sketch = sketch_region(self.graph, self.region)
        self._made = [tensor_layout(task.inputs[0]) for task in self.sketch.tasks if task.kind == "store"]
        shapes = [self.graph.values[name].shape or () for name in self.region.inputs]
        sizes = [tuple(size for size in shape[1:] if size is not None) for shape in shapes]
        known = [name in self.graph.inputs for name in self.region.inputs]
        self._from_torch = [(number, size) for number, size in enumerate(sizes) if not known[number]]
        """(number, sizes without the batch) of the inputs that torch computes.

        `binding.CallBinder` checks all other inputs."""

    def __call__(self, tensors: Sequence[Tensor], threads: int) -> list[Tensor]:
        """Return the subgraph's outputs for the inputs `tensors`, computed with `threads` threads."""
        batch, last, used, made = self._bind_tensors(tensors)
        if batch:
            key = (batch, threads, last, self.layout)
            program = self._ready_programs.get(key)
            if program is None:
                program = self.fetch_program(self.choose_plan(*key[:3]))
                if len(self._ready_programs) < _MOST_READY:
                    self._ready_programs[key] = program
            program.run(batch, [tensor.data_ptr() for tensor in used], threads, used)
        return made

    def profile(
        self, tensors: Sequence[Tensor], seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> list[Tensor]:
        """Run the subgraph on one thread and return its outputs; add each layer's time, by `clock`, to `seconds`."""
        batch, last, used, made = self._bind_tensors(tensors)
        if not batch:
            return made
        program = self.fetch_program(self.choose_plan(batch, 1, last))
        found = program.profile(batch, [tensor.data_ptr() for tensor in used], clock)
        for op, spent in zip(program.ops, found, strict=True):
            seconds[op.label] = seconds.get(op.label, 0.0) + spent
        return made

    def tune(self, tensors: Sequence[Tensor], threads: int) -> dict[Plan, float]:
        """Time every possible plan for these inputs, keep the fastest, and return the seconds of each plan."""
        batch, last, used, _ = self._bind_tensors(tensors)
        addresses = [tensor.data_ptr() for tensor in used]
        programs: dict[Plan, Program] = {}
        for plan in _candidate_plans(batch, threads, last, self.precision) if batch else ():
            try:
                programs[plan] = self.fetch_program(plan)
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
                self._ready_programs.clear()
                for plan in set(programs) - {best, *self._tuned.values()}:
                    self.programs.pop(plan, None)
        return found

    def free_programs(self) -> None:
        """Free the memory of all programs."""
        with self._lock:
            self._ready_programs.clear()
            self.programs.clear()

    def move_programs(self) -> None:
        """Copy all programs to new memory addresses, which changes their times a little."""
        with self._lock:
            self._ready_programs.clear()
            self.programs = {plan: replace(program) for plan, program in self.programs.items()}

    def choose_plan(self, batch: int, threads: int, last: Last = ()) -> Plan:
        """Return the plan for a batch: the one that `tune` found, else the plan with the lowest estimated time.

        `last` are the numbers of the inputs in torch's channels_last format.
        """
        with self._lock:
            if (batch, threads, last) in self._tuned:
                return self._tuned[batch, threads, last]
            images = images_per_thread(batch, threads)
            layout = self.layout or self._choose_layout(images)
            if (layout, images) not in self._blocks:
                item = ITEM[self.precision] if layout == "pixels" else FLOAT
                self._blocks[layout, images] = images_per_pass(self.sketch, layout, images, self.library.target, item)
        return _divide_batch(layout, self._blocks[layout, images], batch, threads, last, self.precision)

    def _choose_layout(self, images: int) -> str:
        if images not in self._chosen:
            key = ("layout", images, self.precision)
            kept = self._cached_plans.fetch_record(*key) if self._cached_plans else None
            if kept is not None:
                self._chosen[images] = str(kept[1]["layout"])
                return self._chosen[images]
            self._chosen[images] = choose_layout(self.sketch, self.library.target, images, ITEM[self.precision])
            if self._cached_plans:
                self._cached_plans.store_record([], {"layout": self._chosen[images]}, *key)
        return self._chosen[images]

    @functools.cached_property
    def _cached_plans(self) -> Plans | None:
        return Plans(self.digest(), self.region, self.library) if self.digest else None

    def fetch_program(self, plan: Plan) -> Program:
        """Return the program of a plan; create the program if it does not exist yet."""
        with self._lock:
            if plan not in self.programs:
                key = (plan.layout, plan.images, plan.last, plan.precision)
                kept = self._cached_plans.fetch_record(*key) if self._cached_plans else None
                if kept is None:
                    emission = self._emit_plan(plan)
                    kept = emission.ops, {"arena": emission.bytes}
                    if self._cached_plans:
                        self._cached_plans.store_record(*kept, *key)
                ops, arena = kept[0], int(kept[1]["arena"])
                self.programs[plan] = Program(ops, plan.images, arena, self.library, plan.split, denormals=False)
            return self.programs[plan]

    def _emit_plan(self, plan: Plan) -> Emission:
        target, images, item = self.library.target, plan.images, ITEM[plan.precision]
        found = choose_chunks(self.sketch, plan.layout, images, target.lanes, item)
        sketch = with_chunks(self.sketch, found)
        arena = build_arena(sketch, plan.layout, target, images, item)
        return Emission(sketch, arena, target, images, len(self.region.inputs), plan.last, found)

    def _bind_tensors(self, tensors: Sequence[Tensor]) -> tuple[int, Last, list[Tensor], list[Tensor]]:
        """Check inputs and create outputs for a call.

        Return (batch size, numbers of the inputs in channels_last format, inputs and outputs as the program reads and
        writes them, outputs as the caller gets them).
        """
        batch = tensors[0].shape[0]
        used = list(tensors)
        for number, size in self._from_torch:
            used[number] = require_float32(used[number], (batch, *size), f"the value {self.region.inputs[number]!r}")
        last: list[int] = []
        for number, tensor in enumerate(used):
            if not tensor.is_contiguous():
                if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                    last.append(number)
                else:
                    used[number] = tensor.contiguous()
        made = []
        for shape, order in self._made:
            output = new_output((batch, *shape))
            used.append(output)
            made.append(output if order is None else output.permute(order))
        return batch, tuple(last), used, made


def _divide_batch(layout: str, images: int, batch: int, threads: int, last: Last, precision: str) -> Plan:
    """Return a plan in which threads divide the batch or, if it is too small, divide each operation.

    `images` is the number of images that a thread computes at a time. The batch is too small if it consists of fewer
    than `threads` groups of so many images.
    """
    split = "batch" if -(-batch // images) >= threads else "parts"
    return Plan(layout, images, split, last, precision if layout == "pixels" else "fp32")


def _candidate_plans(batch: int, threads: int, last: Last, precision: str) -> list[Plan]:
    """Return the plans that `tune` times: both memory layouts, with all possible numbers of images at a time."""
    most = images_per_thread(batch, 1)
    blocks = [images for images in (1, 2, 4, 8, 16) if images <= most]
    layouts = ("planes", "pixels")
    return [
        _divide_batch(one, images, batch, threads, last, precision) for one in layouts for images in reversed(blocks)
    ]


# -- plan cache --------------------------------------------------------------------------------------------------------

# The name of a cached plan is a digest of everything that determines the plan: graph, region, block size, target, and
# the sources of planner and kernels. Plans and compiled kernels are trusted, because they come from the user's own
# cache folder. A model file from elsewhere contains only a graph.


_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30
"""Maximum bytes of all cached programs together; the oldest ones are deleted."""

_STORED_BETWEEN = 64
"""Number of programs that a process stores between two searches for old ones among thousands of files."""

_stored = itertools.count()


Record = tuple[list[Op], dict[str, Any]]
"""Content of a cache file: the operations of a program, and JSON values such as the layout or the memory's bytes."""


class Plans:
    """Programs and layout choices of a subgraph that earlier processes stored in cache files."""

    def __init__(self, graph_digest: str, region: Region, library: Library) -> None:
        outputs = [node.output for node in region.nodes]
        text = f"{_sources_digest()} {library.identity} {graph_digest} {outputs!r} {region.inputs!r} {region.outputs!r}"
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._library = library

    def fetch_record(self, *key: object) -> Record | None:
        """Return the content of the cache file for `key`; None if the file or one of its kernels does not exist."""
        data = read_cached(self._cache_path(key))
        if data is None:
            return None
        tables = load(data)
        document = json.loads(tables["plan"].tobytes())
        ops = [
            Op(CachedKernel(name, kind), tuple(tables[arg] if isinstance(arg, str) else arg for arg in args), label)
            for name, kind, label, args in document["ops"]
        ]
        return (ops, document["facts"]) if all(self._library.has(op.kernel) for op in ops) else None

    def store_record(self, ops: Sequence[Op], facts: dict[str, Any], *key: object) -> None:
        """Store operations and further values (`facts`) in the cache file for `key`, if the cache is writable."""
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
        path = self._cache_path(key)
        write_cached(path, save({**tables, "plan": np.frombuffer(document, np.uint8)}))
        if next(_stored) % _STORED_BETWEEN == 0:
            _delete_oldest(path.parent)

    def _cache_path(self, key: tuple[object, ...]) -> Path:
        digest = hashlib.blake2b(f"{self._digest} {key!r}".encode(), digest_size=16).hexdigest()
        return private_cache_folder("plans") / f"{digest}.plan"


def compute_graph_digest(graph: Graph) -> str:
    """Return a digest of a graph's nodes, values and weights."""
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
def _sources_digest() -> str:
    """Return a digest of the source code that creates programs; cached programs of other source code are not used."""
    here = Path(__file__).parent
    return digest_of_files([*here.glob("*.py"), *Path(ir.__file__).parent.glob("*.py")])


def _delete_oldest(folder: Path) -> None:
    """Delete the oldest cache files if all files together exceed the maximum size."""
    try:
        with os.scandir(folder) as entries:
            plans = [(one.stat(), one.path) for one in entries if one.name.endswith(".plan")]
        total = 0
        for about, path in sorted(plans, key=lambda plan: plan[0].st_mtime, reverse=True):
            total += about.st_size
            if total > _MOST_BYTES:
                Path(path).unlink(missing_ok=True)
    except OSError as error:
        _log.info("old plans are left: %s", error)


# -- partition of a graph into regions and torch nodes -----------------------------------------------------------------


_WORTH = {"conv2d", "linear"}
"""A region must contain one of these operations; otherwise loading and storing take more time than is saved."""

_LARGE_HEAD = 1 << 16
"""If the layers after the last global pooling retain at least this many weights, they form a separate region.

Values after the pooling are small, so a separate region can have larger blocks, and reads its weights less often."""


def sketch_region(graph: Graph, region: Region) -> Sketch:
    """Return the subgraph `region` as tasks; each axis of a tensor is assigned to channels or to pixels."""
    sketch = Sketch(graph)
    waiting = {name: number for number, name in enumerate(region.inputs)}
    for node in region.nodes:
        for name in node.inputs:
            if name in waiting:
                sketch.add_load(name, waiting.pop(name))
        add_node(sketch, node)
    for number, name in enumerate(region.outputs):
        sketch.add_store(name, number)
    return sketch


def partition_graph(graph: Graph) -> tuple[list[Region | Node], dict[str, str]]:
    """Divide a graph into subgraphs for kernels, as large as possible, and nodes that run in torch.

    Return (these in the order in which they run, a dict from the output of a node to the reason why it runs in torch).
    """
    reasons = {node.output: "the engine has no such operation" for node in graph.nodes if not node.native}
    while True:
        levels, regions, sketches = _assign_levels(graph, reasons)
        poor = [nodes for nodes in regions.values() if not any(node.op in _WORTH for node in nodes)]
        for nodes in poor:
            reasons.update({node.output: "alone between torch nodes" for node in nodes})
        moved = {
            name
            for level, nodes in regions.items()
            for name in _rearrangements_read_by_torch(graph, nodes, sketches[level])
        }
        reasons.update(dict.fromkeys(moved, "moved for torch alone"))
        if not poor and not moved:
            break
    return _order_steps(graph, levels, regions, reasons), reasons


def _rearrangements_read_by_torch(graph: Graph, nodes: Sequence[Node], sketch: Sketch) -> set[str]:
    """Return the names of values that only rearrange elements and are read only by nodes that run in torch.

    Torch computes these values as views, which takes no time.
    """
    readers: dict[str, list[str]] = {}
    inside = {node.output for node in nodes}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.output)
    found: set[str] = set()
    for node in reversed(nodes):
        made = isinstance(sketch.forms.get(node.output), Rearranged)
        if made and node.op in VIEWS and all(one not in inside or one in found for one in readers.get(node.output, ())):
            found.add(node.output)
    return found


def _assign_levels(
    graph: Graph, reasons: dict[str, str]
) -> tuple[dict[str, int], dict[int, list[Node]], dict[int, Sketch]]:
    """Return (level of each value by name, nodes for kernels by level, these nodes as tasks by level).

    The level of a value is the number of changes between torch and kernels on the way to it. Nodes that kernels cannot
    run are added to `reasons`.
    """
    levels: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    native: set[str] = set()
    sketches: dict[int, Sketch] = {}
    regions: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.output not in reasons:
            level = max((levels[name] + (name not in native) for name in node.inputs), default=1)
            sketch = sketches.setdefault(level, Sketch(graph))
            try:
                for name in node.inputs:
                    if name not in sketch.forms:
                        sketch.add_load(name, 0)
                add_node(sketch, node)
            except UnsupportedError as error:
                reasons[node.output] = str(error)
            else:
                regions.setdefault(level, []).append(node)
                levels[node.output] = level
                native.add(node.output)
                continue
        levels[node.output] = max((levels[name] + (name in native) for name in node.inputs), default=0)
    return levels, regions, sketches


def _order_steps(
    graph: Graph, levels: Mapping[str, int], regions: Mapping[int, Sequence[Node]], reasons: Mapping[str, str]
) -> list[Region | Node]:
    """Return the subgraphs for kernels, and the nodes that run in torch, in an order in which they can run."""
    steps: list[tuple[int, Region | Node]] = []
    for level, nodes in regions.items():
        inside = {node.output for node in nodes}
        read = dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside)
        elsewhere = {name for node in graph.nodes if node.output not in inside for name in node.inputs}
        outputs = [node.output for node in nodes if node.output in elsewhere | set(graph.output_names)]
        region = Region(tuple(read), tuple(outputs), tuple(nodes))
        steps += [(level, part) for part in _split_after_last_pooling(graph, region)]
    steps += [(levels[node.output], node) for node in graph.nodes if node.output in reasons]
    return [step for _, step in sorted(steps, key=lambda pair: pair[0])]


def _split_after_last_pooling(graph: Graph, region: Region) -> list[Region]:
    """Return the subgraph in two parts if the layers after its last global pooling have many weights, else whole."""
    means = [number for number, node in enumerate(region.nodes) if node.op == "global_avg_pool"]
    if not means:
        return [region]
    body, head = region.nodes[: means[-1] + 1], region.nodes[means[-1] + 1 :]
    pooled, made = body[-1].output, {node.output for node in body[:-1]}
    weights = [graph.tensors[node.weights["weight"]] for node in head if node.op in _WORTH]
    kept = sum(int(one.count_nonzero()) for one in weights)
    if kept < _LARGE_HEAD or any(name in made or name in region.inputs for node in head for name in node.inputs):
        return [region]
    outputs = [name for name in region.outputs if name in made or name == pooled]
    first = Region(region.inputs, tuple(dict.fromkeys([*outputs, pooled])), body)
    return [first, Region((pooled,), tuple(name for name in region.outputs if name not in outputs), head)]
