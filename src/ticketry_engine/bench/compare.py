"""Compares engines on one case: prepares them, compares their outputs with eager torch, and times them alternately."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from msgspec import structs
from torch import Tensor, nn

from ticketry_engine.bench.dense_engines import Call, Contender, UnavailableError
from ticketry_engine.bench.timing import (
    Case,
    Samples,
    Timing,
    can_pin,
    choose_cores,
    machine,
    median_interval,
    pin_for_block,
    quartiles,
    take_samples,
)
from ticketry_engine.compiled import Compiled, compile
from ticketry_engine.errors import EngineError
from ticketry_engine.example_inputs import relative_difference
from ticketry_engine.processor import last_level_cache_bytes
from ticketry_engine.results import EngineTime, Saved, SpeedLayer, Timed
from ticketry_engine.support.modules import masked_parameters
from ticketry_engine.support.process_state import torch_threads

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Precision -> maximum relative error of an engine's outputs; an engine with a larger error is not timed."""


def compare(
    case: Case,
    contenders: Sequence[Contender],
    timing: Timing | None = None,
    *,
    required: Sequence[str] = (),
    on_cores: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Timed:
    """Time all contenders (engines) on one case alternately, with the same threads on the same cores.

    A contender that is unavailable, fails or has wrong outputs is not timed; its row in the result contains the reason.

    Args:
        case: the model, its inputs, the precision and the number of threads.
        contenders: the engines to time.
        timing: settings of the measurement; None: defaults.
        required: names of contenders that must be available.
        on_cores: numbers of the cores to which threads are pinned, one per thread; by default the least busy cores.
        say: function that is called with progress messages.

    Raises:
        UsageError: if there are more threads than cores.
        EngineError: if two contenders have the same name, if a required contender is unavailable, if a sparse contender
            fails or has wrong outputs, or if no dense engine can run the model.
    """
    timing = timing or Timing()
    chosen = tuple(on_cores) if on_cores is not None else choose_cores(case.threads)
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise EngineError(f"two contenders have one name: {', '.join(names)}")
    case = replace(case, model=copy.deepcopy(case.model))
    with torch_threads(case.threads):
        # Threads are pinned later: OpenVINO counts the available cores only once in a process.
        expected = case.reference()
        prepared = [_prepare(contender, case, expected, required, say) for contender in contenders]
        ready = {row.engine: partial(call, *case.args, **case.kwargs) for row, call in prepared if call is not None}
        if not any(call is not None and not row.sparse for row, call in prepared):
            reasons = "; ".join(f"{row.engine}: {row.why}" for row, _ in prepared if row.why)
            raise EngineError(f"no dense engine can be timed ({reasons})")
        say(f"timing {len(ready)} engines, {timing.rounds} rounds")
        with pin_for_block(chosen):
            samples = take_samples(ready, timing, last_level_cache_bytes())
    versions = {contender.name: _library_versions(contender) for contender in contenders}
    times = tuple(
        _add_samples_to_row(row, samples[row.engine], timing, versions[row.engine]) if row.engine in samples else row
        for row, _ in prepared
    )
    packages = {package for found in versions.values() for package in found}
    dense = min((row for row in times if not row.sparse and row.timed), key=lambda row: row.seconds or 0.0)
    return Timed(
        batch=case.batch,
        precision=case.precision,
        threads=case.threads,
        cores=chosen if can_pin() else None,
        rounds=timing.rounds,
        cold=timing.cold,
        clock=timing.clock,
        times=times,
        saved=tuple(time_saved_against(row, dense, timing) for row in times if row.sparse and row.timed),
        machine=machine(sorted(packages | {"torch", "ticketry"})),
        fastest_dense=dense.engine,
    )


def time_saved_against(time_of: EngineTime, base: EngineTime, timing: Timing) -> Saved:
    """Compare samples of the same rounds; return the share of time that an engine saves relative to that of `base`."""
    ours, theirs = (row.wall if timing.clock == "wall" else row.cpu for row in (time_of, base))
    shares = [1 - one / other for one, other in zip(ours, theirs, strict=True)]
    found = median_interval(shares, timing.confidence)
    return Saved(time_of.engine, base.engine, found.median, found.low, found.high, found.confidence)


def _prepare(
    contender: Contender, case: Case, expected: list[torch.Tensor], required: Sequence[str], say: Callable[[str], None]
) -> tuple[EngineTime, Call | None]:
    """Prepare an engine, check its outputs; return its row of results, and the function to time, or None on failure."""
    row = EngineTime(contender.name, contender.sparse)
    if contender.model is not None:
        case = replace(case, model=contender.model)
        expected = case.reference()
    say(f"preparing {contender.name}")
    began = time.perf_counter()
    try:
        call = contender.prepare(case)
        row = structs.replace(row, prepare_seconds=time.perf_counter() - began)
        error = relative_difference(case.outputs(call), expected)
    except EngineError as failure:
        lacking = isinstance(failure, UnavailableError)
        if lacking and contender.name in required:
            raise EngineError(f"{contender.name}: {failure}") from None
        if not lacking and (contender.name in required or contender.sparse):
            raise
        return structs.replace(row, why=str(failure)), None
    row = structs.replace(row, error=error)
    tolerance = TOLERANCE[case.precision]
    if error > tolerance:
        # Some untrained networks amplify rounding errors, also in torch; two results may then differ by both errors.
        tolerance = max(tolerance, 2 * case.rounding())
    if error <= tolerance:
        return row, call
    why = f"its outputs are wrong: relative error {error:.2g}, more than {tolerance:g}"
    if contender.sparse:
        raise EngineError(f"{contender.name} is not timed, for {why}")
    return structs.replace(row, why=why), None


def _add_samples_to_row(row: EngineTime, samples: Samples, timing: Timing, versions: dict[str, str]) -> EngineTime:
    low, seconds, high = quartiles(samples.by_clock(timing.clock))
    wall, cpu = tuple(samples.wall), tuple(samples.cpu)
    return structs.replace(
        row, seconds=seconds, low=low, high=high, wall=wall, cpu=cpu, calls=samples.calls, versions=versions
    )


def _library_versions(contender: Contender) -> dict[str, str]:
    try:
        return contender.versions()
    except ImportError:  # not installed, so not timed
        return {}


def time_layers(
    fast: Compiled, model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor, precision: str
) -> list[SpeedLayer]:
    """Return the layers of a compiled model, each with its time and with the time that it takes without a mask.

    Both times are medians of a few calls on one thread, in seconds. The calls do not alternate, so small differences
    mean nothing. The time without a mask is None if the model compiled without a mask has no layer of that name.

    Args:
        fast: the result of compiling `model` with `mask` and `precision`.
    """
    whole = cast(
        "Compiled", compile(copy_with_random_pruned_weights(model, mask), None, inputs, threads=1, precision=precision)
    )
    dense = {layer.name: layer.seconds for layer in whole.profile(inputs)}
    return [SpeedLayer(**structs.asdict(layer), dense_seconds=dense.get(layer.name)) for layer in fast.profile(inputs)]


def copy_with_random_pruned_weights(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model in which random numbers replace pruned weights, to time layers without zeros."""
    filled, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, parameter in masked_parameters(filled, mask).items():
        noise = 0.01 + 0.1 * torch.rand(parameter.shape, generator=draw)
        parameter.data = torch.where(mask[name].to(parameter.device), parameter.data, noise.to(parameter))
    return filled
