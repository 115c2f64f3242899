"""A machine's profile: kernels timed in networks made for it, and coefficients fitted to what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from ticketry.core.costs.cost_model import spread_of
from ticketry.core.scope import scope
from ticketry.engine.cost.designs import DESIGNS, Design, drawn
from ticketry.engine.cost.fitting import fitted
from ticketry.engine.cost.machine_profile import MachineProfile, kept_path
from ticketry.engine.cost.planned import emitted, natives, works_of
from ticketry.engine.cost.work import Caches, Work
from ticketry.errors import CostError, EngineError, UsageError
from ticketry.files import make_folder, why_not_private
from ticketry_engine.bench.machine import machine
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph
from ticketry_engine.kernels.program import Program
from ticketry_engine.kernels.target import Target
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.plan.value_axes import UnsupportedError
from ticketry_engine.processor import cache_sizes
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import seed_torch

_VARIANTS = (
    ("planes", 1, 0),
    ("pixels", 0, 0),
    ("planes", 1, 1),
    ("planes", 4, 3),
    ("pixels", 16, 5),
    ("planes", 1, 2),
    ("planes", 2, 9),
    ("pixels", 32, 6),
    ("planes", 16, 4),
    ("planes", 0, 0),
    ("pixels", 8, 7),
    ("planes", 1, 8),
)
"""Layout, rows that share their columns (0: dense), and the seed of the densities."""

_TWICE = 3
"""Every third variant is timed with a second batch."""

_ROUNDS = 11
_MOST_CALLS = 20
_LEAST_SECONDS = 0.01
"""Of calls of a whole program together."""

_SURE_BY_MOST = 0.05
_SHARE_OF_LAST = 0.5
"""Of the last cache, what one core counts on beside the others."""


@dataclass(frozen=True)
class Sample:
    """A network under a mask, timed."""

    design: str
    works: list[Work]
    """On one block."""
    times: float
    """Blocks of a call."""
    seconds: tuple[float, ...]
    """Of each operation, of the whole call."""
    whole: float


def calibrate(
    *,
    target: str = "host",
    precision: str = "fp32",
    networks: Sequence[str] = tuple(DESIGNS),
    keep: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> MachineProfile:
    """Time this machine's kernels, a minute or two, and keep the profile by which networks are estimated here.

    Networks made for it (convolutions, linear layers, attention; wide, narrow, of small and large planes) run under
    random masks of many densities, in single weights, groups of rows, and dense, with few examples and many, one
    thread, each operation timed by the thread's processor time. Others that compute beside it make it worse.

    Args:
        target: "host", or "avx2" for kernels that use no more.
        precision: "fp32" or "bf16".
        networks: names of those that it is made with; of fewer it is made sooner, and knows fewer kernels.
        keep: whether to keep it in the cache of this machine, where `tk.cost.model(..., target="calibrated")` finds it.
        say: is told what is done now.

    Raises:
        UsageError: for a network that there is not.
        EngineError: the processor has no such kernels.
        CostError: it cannot be cached, since others can write in the cache.

    Examples:
        >>> profile = tk.cost.calibrate(networks=["linear"], keep=False)
        >>> profile.about["threads"], profile.spread >= 0.05
        (1, True)
    """
    began, busy = time.perf_counter(), time.process_time()
    found = find_target(target)
    first, second, last = cache_sizes()
    caches = Caches(first, second, int(_SHARE_OF_LAST * last))
    if unknown := [name for name in networks if name not in DESIGNS]:
        raise UsageError(f"there is no network {unknown[0]!r} to calibrate with, but {', '.join(DESIGNS)}")
    if keep and (why := why_not_private(kept_path(found.name, precision).parent)):
        raise CostError(f"the profile cannot be cached: {why}; set TICKETRY_CACHE to a folder of your own")
    samples = list(_samples(found, precision, caches, say, {name: DESIGNS[name] for name in networks}))
    if not samples:
        raise EngineError(f"no network that calibrates runs in kernels of {found.name}")
    about = machine()
    profile = MachineProfile(
        coefficients_of(samples),
        _call_seconds(target, precision, samples),
        _torch_seconds(),
        (caches.first, caches.second, caches.last),
        found.lanes,
        found.registers,
        found.bf16,
        max(_SURE_BY_MOST, spread_of(left_out(samples))),
        {
            "processor": about["processor"],
            "processor_kind": about["processor_kind"],
            "vectors": found.name,
            "threads": 1,
            "precision": precision,
            "versions": about["versions"],
            "load": about["load"],
            "took": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - busy, 1),
            "samples": sum(len(one.seconds) for one in samples),
        },
    )
    if keep:
        path = kept_path(found.name, precision)
        make_folder(path.parent, private=True)
        profile.save(path)
        say(f"kept in {path}")
    return profile


def _samples(
    target: Target, precision: str, caches: Caches, say: Callable[[str], None], designs: dict[str, Design]
) -> Iterator[Sample]:
    for name, design in designs.items():
        say(f"timing the network {name!r}")
        with private_random_state([]):
            seed_torch(0)
            model = design.make().eval()
            example = torch.randn(2, *design.shape)
        graph, shapes = capture(model, None, example), scope(model).shapes
        for number, (layout, rows, seed) in enumerate(_VARIANTS):
            kept = drawn(shapes, rows, seed)
            masked = {one: graph.tensors[one] * part for one, part in kept.items() if one in graph.tensors}
            pruned = replace(graph, tensors={**graph.tensors, **masked})
            for more in range(2 if number % _TWICE == 0 else 1):
                batch = design.batches[(number + more) % len(design.batches)]
                inputs = torch.randn(batch, *design.shape, generator=torch.Generator().manual_seed(0))
                sample = _sample(name, pruned, (target, precision, layout, caches), inputs)
                if sample is not None:
                    yield sample


def _sample(design: str, graph: Graph, how: tuple[Target, str, str, Caches], inputs: torch.Tensor) -> Sample | None:
    target, precision, layout, caches = how
    regions, nodes, reasons = natives(graph, target, precision, layout)
    if nodes or len(regions) != 1:
        raise EngineError(f"the network {design!r}, which calibrates, does not run in kernels: {reasons}")
    (native,), batch = regions, len(inputs)
    try:
        plan, emission = emitted(native, batch)
    except UnsupportedError:
        return None
    times, works = works_of(emission, plan, batch, target, caches)
    program = Program(emission.ops, plan.images, emission.bytes, native.library, plan.split, denormals=False)
    _, _, used, _ = native._bound([inputs])
    seconds, whole = _timed(program, batch, [one.data_ptr() for one in used])
    return Sample(design, works, times, tuple(seconds), whole)


def _timed(program: Program, batch: int, addresses: Sequence[int]) -> tuple[list[float], float]:
    """Seconds of each operation and of a whole call: the second least of several, by the thread's processor time."""
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


# -- from times to coefficients ----------------------------------------------------------------------------------------

_NEAR = (0.75, 1.3)
"""Between which the time of a whole call corrects those of its operations: beyond, it is the clock's doing."""


def coefficients_of(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Kind of operation -> what it does -> seconds."""
    features: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for sample in samples:
        factor = min(max(sample.whole / max(sum(sample.seconds), 1e-12), _NEAR[0]), _NEAR[1])
        for work, spent in zip(sample.works, sample.seconds, strict=True):
            features.setdefault(work.kind, []).append(work.features)
            seconds.setdefault(work.kind, []).append(factor * spent / sample.times)
    return {kind: fitted(features[kind], seconds[kind]) for kind in features}


def left_out(samples: Sequence[Sample]) -> list[float]:
    """Estimated / timed - 1 of the networks, each estimated by coefficients that were fitted to the others.

    Kinds of operations that only this one network has are left as they are; calls of a few microseconds do not count.
    """
    everything, found = coefficients_of(samples), []
    for design in dict.fromkeys(sample.design for sample in samples):
        rest = [sample for sample in samples if sample.design != design]
        known = {**everything, **coefficients_of(rest)} if rest else everything
        acts = {name for one in everything.values() for name in one if name.startswith("act ")}
        for sample in samples:
            if sample.design != design or sample.whole < _SHORT:
                continue
            total = 0.0
            for work in sample.works:
                own = {**known[work.kind]}
                own.update({name: everything[work.kind].get(name, 0.0) for name in acts})
                total += sum(own.get(name, 0.0) * value for name, value in work.features.items())
            found.append(total * sample.times / sample.whole - 1)
    return found


_SHORT = 5e-5


def _call_seconds(target: str, precision: str, samples: Sequence[Sample]) -> float:
    """Of a call of a compiled module beside its operations."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    inputs = torch.zeros(1, 16)
    compiled = Compiled(capture(model, None, inputs), threads=1, target=target, precision=precision)
    taken = []
    for _ in range(200):
        begin = time.thread_time()
        compiled(inputs)
        taken.append(time.thread_time() - begin)
    return median(taken)


def _torch_seconds() -> dict[str, float]:
    """Of an operation in torch: by the smallest one, one of many bytes, and a convolution over three axes."""
    small, large = torch.zeros(1), torch.zeros(1 << 22)
    conv, images = nn.Conv3d(16, 32, 3), torch.zeros(4, 16, 10, 10, 10)

    def least(run: Callable[[], object]) -> float:
        taken = []
        with torch.no_grad():
            for _ in range(7):
                begin = time.thread_time()
                run()
                taken.append(time.thread_time() - begin)
        return sorted(taken)[1]

    one = least(lambda: [torch.tanh(small) for _ in range(100)]) / 100
    return {
        "op": one,
        "bytes": least(lambda: large + 1.0) / (2 * large.nbytes),
        "multiplications": least(lambda: conv(images)) / (4 * 8**3 * conv.weight.numel()),
    }
