"""Latency of a network under masks, and its cost model: from timings on this machine or from any other `Timer`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor, nn

from ticketry.budgets.allocation import allocate_cost
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, half_error_interval
from ticketry.budgets.granularity import FINEST, Granularity
from ticketry.budgets.units import ENGINE, Latencies, check_base, parse_share_or_amount
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.structure.layout import Blocks, Layout
from ticketry.core.structure.pattern import Pattern
from ticketry.core.synthetic_masks import Pattern as Synthetic
from ticketry.core.synthetic_masks import synthetic
from ticketry.errors import EngineError
from ticketry_engine import Compiled
from ticketry_engine.bench.dense_engines import UnavailableError, rivals
from ticketry_engine.bench.machine import machine
from ticketry_engine.bench.timing import Case, Interval, median_interval, settle, warm_up
from ticketry_engine.costs.masked_model import CHANNELS_LAST, PLANAR, CallSeconds, MaskedModel, UnsupportedError
from ticketry_engine.support.modules import copied
from ticketry_engine.support.process_state import torch_threads
from ticketry_engine.support.seeds import generator

_LEAST_SECONDS = 0.002
"""Minimum duration of the calls that are timed together."""


# -- timing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How thoroughly latencies are sampled. A sample is the minimum of several calls, because other load only slows
    them."""

    fewest: int
    """Minimum number of calls in a sample."""
    most: int
    """Maximum number of calls in a sample; no call starts after `seconds`."""
    seconds: float
    settling: float
    """Seconds of calls before a sample, which fill the caches."""
    warming: float
    """Seconds after which warm-up ends even if calls still differ by more than a tenth."""
    rounds: int
    """Number of alternating timings of a mask and the unpruned network for a profile."""
    profiles: int
    """Number of calls that are timed layer by layer."""


THOROUGH = Effort(3, 12, 0.1, 0.25, 3.0, rounds=3, profiles=5)
QUICK = Effort(2, 5, 0.03, 0.05, 0.3, rounds=2, profiles=3)
"""An effort that suffices to choose between masks; the chosen one is timed again."""


class Meter:
    """Times a model under masks on this machine, in turns with the unpruned model.

    With one thread the clock is processor time, to which other processes do not add; with several it is wall time.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        threads: int = 1,
        precision: str = "fp32",
        scope: Scope | None = None,
        effort: Effort = THOROUGH,
    ) -> None:
        """Capture a model.

        Args:
            model: on the CPU.
            example_inputs: of a call.
            threads: of a call.
            precision: fp32 or bf16.
            scope: weights to which time is booked; by default `ticketry.scope(model)`.
            effort: of timings; it may be changed later.

        Raises:
            EngineError: if the model cannot be captured or is not on the CPU, or for fewer than one thread.
        """
        if threads < 1:
            raise EngineError(f"a call uses at least 1 thread, not {threads}")
        if any(parameter.device.type != "cpu" for parameter in model.parameters()):
            raise EngineError("the time of masks is measured on the CPU: move the model there, or ask for flops")
        self.model, self.threads, self.precision, self.effort = model, threads, precision, effort
        self._shapes = (scope or scope_of(model)).shapes
        self.names = tuple(self._shapes)
        self.network = MaskedModel(model, example_inputs, self.names)
        self.base_calls: dict[str, Callable[[], Any]] = {}
        """Base -> a call of the model in it."""
        self.base_latencies: dict[str, list[float]] = {}
        """Base -> its measured latencies in seconds, in the order in which they were measured."""
        self._clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight in scope."""
        return self._shapes[name]

    @property
    def batch(self) -> int:
        """Number of examples in the inputs."""
        return self.network.batch

    def compiled(self, mask: Mask | None = None, layout: str | None = None) -> Compiled:
        """Return the network compiled under a mask, by default in the layout that the engine chooses."""
        return self.network.compile(mask, threads=self.threads, precision=self.precision, layout=layout)

    @cached_property
    def dense(self) -> Compiled:
        """The network compiled without a mask."""
        return self.compiled()

    @cached_property
    def dense_seconds(self) -> float:
        """Latency of the unpruned network."""
        run = self.network.call(self.dense)
        return self._seconds_per_call(run, warm_up(run, self.effort.warming))

    @cached_property
    def dense_profile(self) -> CallSeconds:
        """`dense_seconds`, divided into layers and other operations."""
        return self.network.profile(self.dense, self.effort.profiles, self.dense_seconds)

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the latency under a mask, divided into layers and other operations. Raises `UnsupportedError` if a
        layout cannot run it."""
        compiled = self.compiled(mask, layout)
        whole = self.share(compiled, self.effort.rounds).median * self.dense_seconds
        return self.network.profile(compiled, self.effort.profiles, whole)

    def share(self, compiled: Compiled, rounds: int = 5) -> Interval:
        """Return the latency relative to the unpruned network's, both timed alternately: the median with a 95 %
        interval."""
        return self.ratio_to_dense(self.network.call(compiled), rounds)

    def share_anew(self, mask: Mask, rounds: int) -> Interval:
        """Return `share` with both networks compiled anew, so that the timings are independent of those used for
        choices."""
        return self._time_ratios(self.network.call(self.compiled(mask)), self.network.call(self.compiled()), rounds)

    def ratio_to_dense(self, call: Callable[[], object], rounds: int) -> Interval:
        """Return the latency of any call relative to the unpruned compiled network's, both timed alternately."""
        return self._time_ratios(call, self.network.call(self.dense), rounds)

    def _time_ratios(self, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Interval:
        own_seconds = warm_up(ours, self.effort.warming)
        warm_up(theirs, self.effort.warming)
        ratios = []
        for turn in range(rounds):
            pair = ((ours, own_seconds), (theirs, self.dense_seconds))
            taken = [self._seconds_per_call(*each) for each in (pair if turn % 2 else pair[::-1])]
            one, other = taken if turn % 2 else taken[::-1]
            ratios.append(one / other)
        return median_interval(ratios)

    def _seconds_per_call(self, run: Callable[[], object], usual: float) -> float:
        """Return the seconds of a call: the minimum over samples that are long enough for the clock."""
        several, effort = max(1, ceil(_LEAST_SECONDS / usual)), self.effort
        found: list[float] = []
        with torch.no_grad():
            settle(run, effort.settling)
            while len(found) < effort.fewest or (len(found) < effort.most and several * sum(found) < effort.seconds):
                begin = self._clock()
                for _ in range(several):
                    run()
                found.append((self._clock() - begin) / several)
        return min(found)


# -- the base of a budget ----------------------------------------------------------------------------------------------

_ENGINE_NAMES = {"torch.compile": "compile"}
"""Base -> its name among the dense engines, where the two differ."""

_BASE_ROUNDS = 5


def time_base(meter: Meter, budget: float | str, base: str) -> Latencies:
    """Time the base and the unpruned compiled model, and return both with the requested latency.

    Args:
        meter: of the model.
        budget: a share of the base's latency (0.5, "50%") or an amount ("5ms").
        base: one of `units.BASES`.

    Raises:
        UsageError: for an unknown base, or an invalid budget.
        EngineError: if the base is not installed or cannot run the model.
    """
    check_base(base)
    number, is_share = parse_share_or_amount(budget, "seconds")
    unpruned = meter.dense_seconds
    now = unpruned if base == ENGINE else base_seconds(meter, base)
    return Latencies(base, now, unpruned, number * now if is_share else number)


def base_seconds(meter: Meter, base: str) -> float:
    """Time a base other than the engine, and return the median of this and all earlier latencies in seconds.

    A shared machine may be slower for a minute: times that lie apart show it, times in a row do not.

    Raises:
        EngineError: if the base is not installed or cannot run the model.
    """
    with torch_threads(meter.threads):
        if base not in meter.base_calls:
            meter.base_calls[base] = prepare_base(meter, base)
        latencies = meter.base_latencies.setdefault(base, [])
        latencies.append(meter.ratio_to_dense(meter.base_calls[base], _BASE_ROUNDS).median * meter.dense_seconds)
    return statistics.median(latencies)


def prepare_base(meter: Meter, base: str) -> Callable[[], Any]:
    """Return a call of the model in a base. Raises `EngineError` if the base is not installed or cannot run it."""
    model = copied(meter.model, {}).eval().requires_grad_(False)
    args, kwargs = meter.network.args, meter.network.kwargs
    (contender,) = rivals([_ENGINE_NAMES.get(base, base)])
    try:
        call = contender.prepare(Case(model, kwargs or args, meter.precision, meter.threads))
        call(*args, **kwargs)
    except UnavailableError as error:
        raise EngineError(
            f"the base {base} cannot be timed here: {error}. Choose another base (eager, engine) or give an amount"
            " (time='5ms')"
        ) from None
    return lambda: call(*args, **kwargs)


# -- masks to time -----------------------------------------------------------------------------------------------------

DENSITIES = (1e-9, 0.003, 0.02, 0.08, 0.25, 0.6, 1.0)
"""Densities of random masks; the lowest one retains one weight (or group) in each layer."""

SHARES = (1e-9, 0.01, 0.04, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the dense cost of scored masks; the lowest retains the best weight of each layer."""


class MaskFamily(Protocol):
    """Masks by which a network's costs are measured, from one weight in each layer to all weights."""

    about: str
    """Description for the cost model."""
    amounts: tuple[float, ...]
    """Rising numbers from almost 0 to 1, one for each mask."""

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return one of the masks."""

    def held_out(self, amount: float, seed: int) -> Mask:
        """Return a mask of single weights with different densities per layer, by which estimates are checked."""


class RandomMasks:
    """Random masks with the same density in every layer."""

    about = "random"

    def __init__(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], amounts: tuple[float, ...] = DENSITIES
    ) -> None:
        self.amounts = amounts
        self._model, self._shapes = model, shapes

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return a mask of density `amount`."""
        rows = Granularity.parse(granularity).rows
        pattern = Synthetic("unstructured") if rows == 1 else Synthetic("groups", rows)
        found = synthetic(self._model, pattern, amount)
        return Mask({name: found[name] for name in self._shapes})

    def held_out(self, amount: float, seed: int) -> Mask:
        """Return random single weights, with a random density around `amount` in each layer."""
        made = {}
        for index, (name, shape) in enumerate(self._shapes.items()):
            source = generator(seed, "cost", index)
            density = min(1.0, amount * float(torch.empty(1).uniform_(-1, 1, generator=source).mul(1.2).exp()))
            made[name] = torch.rand(shape, generator=source) < density
            made[name].view(-1)[0] = True
        return Mask(made)


class ScoredMasks:
    """Masks that retain the most score for a share of the dense time; like those of pruning, they have empty channels.

    They cost less than random masks of the same density, and the more so the sparser they are.
    """

    about = "of the scores"

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        seconds: Mapping[str, float],
        layouts: Mapping[str, Layout],
        amounts: tuple[float, ...] = SHARES,
    ) -> None:
        """Prepare masks.

        Args:
            scores: parameter name -> score of each weight.
            seconds: parameter name -> seconds of the layer in the unpruned network.
            layouts: of the weights, see `core.structure.layout.layouts`.
            amounts: shares of the dense time.
        """
        self.amounts = amounts
        self._scores, self._seconds, self._layouts = scores, seconds, layouts

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return the best blocks for a share of the dense time."""
        return self._best_blocks(granularity, amount, self._seconds)

    def held_out(self, amount: float, seed: int) -> Mask:
        """Return the best weights for other prices: each layer's is multiplied by a random factor up to 1.6."""
        prices = {
            name: seconds * float(torch.empty(1).uniform_(-0.5, 0.5, generator=generator(seed, "cost", index)).exp())
            for index, (name, seconds) in enumerate(self._seconds.items())
        }
        return self._best_blocks(FINEST, amount, prices)

    def _best_blocks(self, granularity: str, amount: float, seconds: Mapping[str, float]) -> Mask:
        rows = Granularity.parse(granularity).rows
        pattern = Pattern(f"{rows}x1", rows=rows)
        blocks: dict[str, Blocks] = {
            name: pattern.blocks(tuple(score.shape), self._layouts.get(name, Layout()))
            for name, score in self._scores.items()
        }
        sums = {name: blocks[name].sum_by_block(score.detach().cpu().double()) for name, score in self._scores.items()}
        total = sum(seconds[name] for name in sums)
        least = sum(seconds[name] / max(1, each.count) for name, each in blocks.items())
        curves = {name: Curve((0.0, 1.0), (0.0, max(seconds[name], 1e-9 * total))) for name in sums}
        kept = allocate_cost(sums, curves, max(amount * total, 1.01 * least) * (1 + 1e-6), keep_at_least=1)
        return Mask({name: blocks[name].expand_to_weights(part) for name, part in kept.items()})


# -- cost models -------------------------------------------------------------------------------------------------------

_HELD_OUT = (0.08, 0.3)
"""Amounts of the masks by which the error of estimates is measured."""

_LEAST_SPREAD = 0.03
"""Minimum error of estimates that is reported, because two masks cannot show a smaller one."""

_CHANNELS_LAST_ROWS = 8
"""Number of rows per group from which the channels-last layout may be the faster one."""


class Timer(Protocol):
    """Interface for a network's latency under masks: `Meter` measures it, `Estimator` computes it from a profile."""

    model: nn.Module
    names: tuple[str, ...]

    @property
    def dense_seconds(self) -> float:
        """Latency of the unpruned network."""

    @property
    def dense_profile(self) -> CallSeconds:
        """`dense_seconds`, divided into layers and other operations."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight in scope."""

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the latency under a mask, divided into layers and other operations. Raises `UnsupportedError` if a
        layout cannot run it."""


def measure_costs(
    meter: Meter,
    granularities: Sequence[str],
    family: MaskFamily,
    say: Callable[[str], None] = lambda _: None,
    *,
    check: bool = True,
) -> CostModel:
    """Return the costs of every weight in the meter's scope, in seconds on this machine.

    Args:
        meter: of the network.
        granularities: what masks remove together.
        family: masks under which the network is timed.
        say: called with the name of each step.
        check: whether estimates are compared with timings of further masks, for the spread.
    """
    here = machine()
    about = {
        "target": "this machine",
        "processor": here["processor"],
        "processor_kind": here["processor_kind"],
        "threads": meter.threads,
        "precision": meter.precision,
        "batch": meter.batch,
        "how": "measured",
        "masks": family.about,
        "clock": "processor time" if meter.threads == 1 else "wall time",
        "features": here["features"],
        "versions": here["versions"],
        "load": here["load"],
    }
    costs = build_costs(meter, granularities, family, about, say)
    if not check:
        return costs
    residuals = []
    for seed, amount in enumerate(_HELD_OUT):
        say(f"checking the estimates at about {amount:g}")
        mask = family.held_out(amount, seed)
        share = meter.share(meter.compiled(mask)).median
        residuals.append(costs.estimate(mask).value / costs.dense / share - 1)
    return msgspec.structs.replace(
        costs,
        spread=max(_LEAST_SPREAD, 1.5 * half_error_interval(residuals)),
        about={**costs.about, "residuals": [round(each, 4) for each in residuals]},
    )


class _MaskProfile(NamedTuple):
    """Times of the network under one mask in one layout."""

    granularity: str
    layout: str
    densities: dict[str, float]
    profile: CallSeconds


def build_costs(
    timer: Timer,
    granularities: Sequence[str],
    family: MaskFamily,
    about: dict[str, object],
    say: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """Return the costs of every weight in scope, from a timer's latencies under the masks of a family."""
    say("timing the network without a mask")
    whole, dense = timer.dense_seconds, timer.dense_profile
    samples = _time_family(timer, granularities, family, say)
    rest = [sample.profile.others for sample in samples if sample.layout == PLANAR]
    rest = rest or [sample.profile.others for sample in samples] or [dense.others]
    unpruned = min(rest, key=lambda others: sum(others.values()))
    fixed = sum(unpruned.values())
    # The dense network may run in another layout, in which unpruned parts take another time. The layers get the
    # difference, so that everything together is the time of the call.
    factor = max(whole - fixed, 0.05 * whole) / max(sum(dense.layers.values()), 1e-300)
    layers = {}
    for name in timer.names:
        known = [] if name in dense.torch else samples
        curves, all_rows = (dict(_layer_curves(name, known, each, fixed)) for each in (PLANAR, CHANNELS_LAST))
        layers[name] = LayerCost(prod(timer.shape(name)), factor * dense.layers[name], curves, all_rows)
    return CostModel("seconds", layers, fixed, 0.0, about, unpruned)


def _time_family(
    timer: Timer, granularities: Sequence[str], family: MaskFamily, say: Callable[[str], None]
) -> list[_MaskProfile]:
    found = []
    for granularity in granularities:
        wide = Granularity.parse(granularity).rows >= _CHANNELS_LAST_ROWS
        for amount in sorted(family.amounts):
            say(f"timing {granularity} at {amount:g}")
            mask = family.mask(granularity, amount)
            densities = {row.name: row.density for row in mask.table()}
            for layout in (PLANAR, *([CHANNELS_LAST] if wide else [])):
                try:
                    found.append(_MaskProfile(granularity, layout, densities, timer.profile(mask, layout)))
                except UnsupportedError:
                    continue
    return found


def _layer_curves(name: str, samples: Sequence[_MaskProfile], layout: str, fixed: float) -> Iterator[tuple[str, Curve]]:
    """Yield a layer's cost curve in each granularity.

    Unpruned parts take less time if channels before them are empty. What they take beyond their minimum is booked to
    the layers, in proportion to their own time.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.layout == layout:
            own, others = sum(sample.profile.layers.values()), sum(sample.profile.others.values())
            factor = 1 + max(0.0, others - fixed) / max(own, 1e-300)
            seconds = factor * sample.profile.layers[name]
            points.setdefault(sample.granularity, []).append((sample.densities[name], seconds))
    for granularity, known in points.items():
        if len(dict(known)) > 1:
            yield granularity, Curve.through(known)
