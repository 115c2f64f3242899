"""One case, many engines: prepared, checked against eager torch, timed in turns, and what the sparse ones save."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from msgspec import structs
from torch import Tensor, nn

from ticketry_engine.bench.dense_engines import Call, Contender, UnavailableError
from ticketry_engine.bench.machine import can_pin, choose_cores, kept_on, machine
from ticketry_engine.bench.timing import Samples, Timing, median_interval, quartiles, take
from ticketry_engine.bench.workload import Case
from ticketry_engine.compiled import Compiled, compile
from ticketry_engine.errors import EngineError
from ticketry_engine.example_inputs import difference
from ticketry_engine.processor import last_cache
from ticketry_engine.results import EngineTime, Saved, SpeedLayer, Timed
from ticketry_engine.support.modules import masked_parameters

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""The largest relative error of an engine that is timed."""


@dataclass
class _Entry:
    """A contender on its way."""

    contender: Contender
    call: Call | None = None
    error: float | None = None
    prepare_seconds: float | None = None
    why: str = ""


def compare(
    case: Case,
    contenders: Sequence[Contender],
    timing: Timing | None = None,
    *,
    required: Sequence[str] = (),
    on_cores: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Timed:
    """Time all contenders on one case, in turns, with the same threads on the same cores.

    A contender that cannot be had, fails, or whose outputs are wrong is not timed; its row says why.

    Args:
        required: names of contenders that are an error where they cannot be had.
        on_cores: as many as threads; the idlest if not given.
        say: is told what is done now.

    Raises:
        UsageError: for more threads than cores, or two contenders of one name.
        EngineError: if a required contender is not to be had, if a sparse one fails or is wrong, or if no dense engine
            can run the model.
    """
    timing = timing or Timing()
    chosen = tuple(on_cores) if on_cores is not None else choose_cores(case.threads)
    _distinct(contenders)
    case = case.of(copy.deepcopy(case.model))
    with _threads(case.threads):
        # Not yet on their cores: OpenVINO counts, once in a process, those that it may use.
        expected = case.reference()
        entries = [_prepared(contender, case, expected, required, say) for contender in contenders]
        ready = {
            entry.contender.name: partial(entry.call, *case.args, **case.kwargs)
            for entry in entries
            if entry.call is not None
        }
        if not any(entry.call is not None and not entry.contender.sparse for entry in entries):
            told = "; ".join(f"{entry.contender.name}: {entry.why}" for entry in entries if entry.why)
            raise EngineError(f"no dense engine can be timed ({told})")
        say(f"timing {len(ready)} engines, {timing.rounds} rounds")
        with kept_on(chosen):
            samples = take(ready, timing, last_cache())
    times = tuple(_row(entry, samples.get(entry.contender.name), timing) for entry in entries)
    packages = {package for contender in contenders for package in _versions(contender)}
    return Timed(
        batch=case.batch,
        precision=case.precision,
        threads=case.threads,
        cores=chosen if can_pin() else None,
        rounds=timing.rounds,
        cold=timing.cold,
        clock=timing.clock,
        times=times,
        saved=_all_saved(times, timing),
        machine=machine(sorted(packages | {"torch", "ticketry"})),
        fastest_dense=_fastest(times).engine,
    )


def saved_against(time_of: EngineTime, base: EngineTime, timing: Timing) -> Saved:
    """What one engine saves against another, of samples that were taken in the same rounds."""
    ours, theirs = _by(time_of, timing.clock), _by(base, timing.clock)
    shares = [1 - one / other for one, other in zip(ours, theirs, strict=True)]
    found = median_interval(shares, timing.confidence)
    return Saved(time_of.engine, base.engine, found.median, found.low, found.high, found.confidence)


def _all_saved(times: Sequence[EngineTime], timing: Timing) -> tuple[Saved, ...]:
    base = _fastest(times)
    return tuple(saved_against(row, base, timing) for row in times if row.sparse and row.timed)


def _fastest(times: Sequence[EngineTime]) -> EngineTime:
    """The fastest dense engine, of which at least one was timed."""
    return min((row for row in times if not row.sparse and row.timed), key=lambda row: row.seconds or 0.0)


def _by(row: EngineTime, clock: str) -> tuple[float, ...]:
    return row.wall if clock == "wall" else row.cpu


def _prepared(
    contender: Contender, case: Case, expected: list[torch.Tensor], required: Sequence[str], say: Callable[[str], None]
) -> _Entry:
    """Ready to be timed, and right; or with a reason why not."""
    entry = _Entry(contender)
    if contender.model is not None:
        case = case.of(contender.model)
        expected = case.reference()
    say(f"preparing {contender.name}")
    began = time.perf_counter()
    try:
        call = contender.prepare(case)
        entry.prepare_seconds = time.perf_counter() - began
        entry.error = difference(case.outputs(call), expected)
    except EngineError as error:
        lacking = isinstance(error, UnavailableError)
        if lacking and contender.name in required:
            raise EngineError(f"{contender.name}: {error}") from None
        if not lacking and (contender.name in required or contender.sparse):
            raise
        entry.why = str(error)
        return entry
    tolerance = TOLERANCE[case.precision]
    if entry.error > tolerance:
        # Some untrained networks enlarge rounding beyond that, in torch too: two such may differ by both errors.
        tolerance = max(tolerance, 2 * case.rounding())
    if entry.error <= tolerance:
        entry.call = call
        return entry
    entry.why = f"its outputs are wrong: relative error {entry.error:.2g}, more than {tolerance:g}"
    if contender.sparse:
        raise EngineError(f"{contender.name} is not timed, for {entry.why}")
    return entry


def _row(entry: _Entry, samples: Samples | None, timing: Timing) -> EngineTime:
    low, seconds, high = quartiles(samples.by(timing.clock)) if samples else (None, None, None)
    return EngineTime(
        engine=entry.contender.name,
        sparse=entry.contender.sparse,
        seconds=seconds,
        low=low,
        high=high,
        wall=tuple(samples.wall) if samples else (),
        cpu=tuple(samples.cpu) if samples else (),
        calls=samples.calls if samples else 0,
        error=entry.error,
        prepare_seconds=entry.prepare_seconds,
        why=entry.why,
        versions=_versions(entry.contender) if samples else {},
    )


def _versions(contender: Contender) -> dict[str, str]:
    try:
        return contender.versions()
    except ImportError:  # not installed: it was not timed
        return {}


def _distinct(contenders: Sequence[Contender]) -> None:
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise EngineError(f"two contenders have one name: {', '.join(names)}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_layers(
    fast: Compiled, model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor, precision: str
) -> list[SpeedLayer]:
    """Each layer with its seconds, and with those in the same engine with nothing pruned.

    Both are of one thread, medians of a few calls; they are not taken in turns, so small differences mean nothing.
    A layer that the dense model does not have by that name has None.
    """
    whole = cast("Compiled", compile(unpruned(model, mask), None, inputs, threads=1, precision=precision))
    dense = {layer.name: layer.seconds for layer in whole.profile(inputs)}
    return [SpeedLayer(**structs.asdict(layer), dense_seconds=dense.get(layer.name)) for layer in fast.profile(inputs)]


def unpruned(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """A copy with numbers in the place of pruned weights, so that no layer is sparse: good for its time alone."""
    filled, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, parameter in masked_parameters(filled, mask).items():
        noise = 0.01 + 0.1 * torch.rand(parameter.shape, generator=draw)
        parameter.data = torch.where(mask[name].to(parameter.device), parameter.data, noise.to(parameter))
    return filled
