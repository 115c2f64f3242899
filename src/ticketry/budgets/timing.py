"""Measure the latency of a network under masks, and build its cost model from timings or any other `Timer`."""

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
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost, half_width_of_error_interval
from ticketry.budgets.units import ENGINE, FINEST, Granularity, Latencies, check_base, parse_share_or_amount
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
from ticketry_engine.bench.timing import Case, Interval, fill_caches_by_calls, machine, median_interval, warm_up
from ticketry_engine.costs import CHANNELS_LAST, PLANAR, CallSeconds, MaskedModel, UnsupportedError
from ticketry_engine.support.modules import copy_module
from ticketry_engine.support.process_state import torch_threads
from ticketry_engine.support.seeds import generator

_LEAST_SECONDS = 0.002
"""Minimum duration, in seconds, of the calls that are timed together."""


# -- timing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How thoroughly latencies are sampled: numbers of calls and seconds.

    A sample is the minimum over several calls, because other load on the machine only slows calls.
    """

    fewest: int
    """Minimum number of calls in a sample."""
    most: int
    """Maximum number of calls in a sample; no call starts later than after `seconds`."""
    seconds: float
    settling: float
    """Seconds for which calls run before a sample, to fill the caches."""
    warming: float
    """Seconds after which warm-up ends, even if the times of calls still differ by more than a tenth."""
    rounds: int
    """Number of rounds, for a profile, in which a mask and the unpruned network are timed alternately."""
    profiles: int
    """Number of calls for which each layer is timed separately."""


THOROUGH = Effort(3, 12, 0.1, 0.25, 3.0, rounds=3, profiles=5)
QUICK = Effort(2, 5, 0.03, 0.02, 0.3, rounds=3, profiles=3)
"""Effort that suffices to choose between masks; the chosen mask is then timed again."""


class Meter:
    """Time a model under masks on this machine, in turns with the unpruned model.

    With one thread the clock is processor time, to which other processes do not add; with several threads it is wall
    time.
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
        """Capture a model on the CPU for a batch of example inputs; calls use `threads` threads.

        Time is attributed to the layers of the weights in `scope`, by default `ticketry.scope(model)`. `effort` may be
        changed later.
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
        """Base -> function that calls the model in this base."""
        self.base_latencies: dict[str, list[float]] = {}
        """Base -> its measured latencies in seconds, in the order in which they were measured."""
        self._unpruned_profiles: dict[str | None, CallSeconds] = {}
        """Memory layout -> profile of the unpruned network in this layout."""
        self._clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the weight `name`, which must be in scope."""
        return self._shapes[name]

    @property
    def batch(self) -> int:
        """Number of examples in the example inputs."""
        return self.network.batch

    def compiled(self, mask: Mask | None = None, layout: str | None = None) -> Compiled:
        """Compile the network under a mask, by default in the memory layout that the engine chooses."""
        return self.network.compile(mask, threads=self.threads, precision=self.precision, layout=layout)

    @cached_property
    def dense(self) -> Compiled:
        """The unpruned network, compiled by ticketry."""
        return self.compiled()

    @cached_property
    def dense_seconds(self) -> float:
        """Latency of one call of the unpruned network, in seconds."""
        run = self.network.call_with_examples(self.dense)
        return self._seconds_per_call(run, warm_up(run, self.effort.warming))

    @cached_property
    def dense_profile(self) -> CallSeconds:
        """Latency of the unpruned network, divided into its layers and all other operations."""
        return self.network.profile(self.dense, self.effort.profiles, self.dense_seconds)

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the latency under a mask, divided into its layers and all other operations, as `Timer.profile`."""
        if mask.density < 1:
            return self._measure_profile(mask, layout)
        if layout not in self._unpruned_profiles:
            same = self.dense.layouts == {layout}
            self._unpruned_profiles[layout] = self.dense_profile if same else self._measure_profile(mask, layout)
        return self._unpruned_profiles[layout]

    def _measure_profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        compiled = self.compiled(mask, layout)
        whole = self.time_share(compiled, self.effort.rounds).median * self.dense_seconds
        return self.network.profile(compiled, self.effort.profiles, whole)

    def time_share(self, compiled: Compiled, rounds: int = 5) -> Interval:
        """Time a compiled network and the unpruned one alternately; return the ratio of latencies.

        The ratio is the median over `rounds`, with a 95 % interval.
        """
        return self.ratio_to_dense(self.network.call_with_examples(compiled), rounds)

    def retime_share(self, compiled: Compiled, rounds: int) -> Interval:
        """Copy both compiled networks to new memory, time them alternately, and return the ratio of latencies.

        The timings are then independent of those by which the mask was chosen.
        """
        compiled.relink()
        self.dense.relink()
        return self.time_share(compiled, rounds)

    def ratio_to_dense(self, call: Callable[[], object], rounds: int) -> Interval:
        """Time `call` and the unpruned compiled network alternately; return the ratio of their latencies."""
        seconds = warm_up(call, self.effort.warming)
        pair = ((call, seconds), (self.network.call_with_examples(self.dense), self.dense_seconds))
        ratios = []
        for turn in range(rounds):
            taken = [self._seconds_per_call(*each) for each in (pair if turn % 2 else pair[::-1])]
            one, other = taken if turn % 2 else taken[::-1]
            ratios.append(one / other)
        return median_interval(ratios)

    def _seconds_per_call(self, run: Callable[[], object], usual: float) -> float:
        """Return the seconds of one call: the minimum over samples, each long enough for the clock's resolution."""
        several, effort = max(1, ceil(_LEAST_SECONDS / usual)), self.effort
        found: list[float] = []
        with torch.no_grad():
            fill_caches_by_calls(run, effort.settling)
            while len(found) < effort.fewest or (len(found) < effort.most and several * sum(found) < effort.seconds):
                begin = self._clock()
                for _ in range(several):
                    run()
                found.append((self._clock() - begin) / several)
        return min(found)


# -- the base of a budget ----------------------------------------------------------------------------------------------

_ENGINE_NAMES = {"torch.compile": "compile"}
"""Name of a base -> name of the same dense engine in benchmarks, if the two names differ."""

_BASE_ROUNDS = 5


def time_base(meter: Meter, budget: float | str, base: str) -> Latencies:
    """Time the unpruned model, run as `base` says and compiled by ticketry; return both latencies and the requested.

    `base` is one of `units.BASES`; `budget` is a share of its latency (0.5, "50%") or an amount ("5ms").
    """
    check_base(base)
    number, is_share = parse_share_or_amount(budget, "seconds")
    unpruned = meter.dense_seconds
    now = unpruned if base == ENGINE else base_seconds(meter, base)
    return Latencies(base, now, unpruned, number * now if is_share else number)


def base_seconds(meter: Meter, base: str) -> float:
    """Time a base other than ``engine``; return the median of this and all earlier latencies in seconds.

    A shared machine may be slower for a minute, which only timings at different moments reveal.
    """
    with torch_threads(meter.threads):
        if base not in meter.base_calls:
            meter.base_calls[base] = prepare_base(meter, base)
        latencies = meter.base_latencies.setdefault(base, [])
        latencies.append(meter.ratio_to_dense(meter.base_calls[base], _BASE_ROUNDS).median * meter.dense_seconds)
    return statistics.median(latencies)


def prepare_base(meter: Meter, base: str) -> Callable[[], Any]:
    """Return a function that calls the model in a base; raise `EngineError` if the base cannot run the model."""
    model = copy_module(meter.model, {}).eval().requires_grad_(False)
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
"""Densities of random masks; with the lowest density, each layer retains one weight or group."""

SHARES = (1e-9, 0.01, 0.04, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Costs of masks by scores, as shares of the dense cost; with the lowest share, each layer retains its best weight."""


class MaskFamily(Protocol):
    """Masks of several densities under which a network is timed for its cost model."""

    about: str
    """Description of the masks, stored in the cost model."""
    amounts: tuple[float, ...]
    """For each mask, how much it retains, from almost 0 to 1; see `mask` of the family for the unit."""

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return a mask that retains `amount` (in the family's unit), in a granularity such as ``weights``."""

    def mask_for_check(self, amount: float, seed: int) -> Mask:
        """Return a mask of single weights with other densities per layer, under which estimates are checked."""


class RandomMasks:
    """Random masks, which have the same density in every layer; amounts are densities."""

    about = "random"

    def __init__(
        self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], amounts: tuple[float, ...] = DENSITIES
    ) -> None:
        self.amounts = amounts
        self._model, self._shapes = model, shapes

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return a random mask of density `amount` in every layer, of single weights or groups of rows."""
        rows = Granularity.parse(granularity).rows
        pattern = Synthetic("unstructured") if rows == 1 else Synthetic("groups", rows)
        found = synthetic(self._model, pattern, amount)
        return Mask({name: found[name] for name in self._shapes})

    def mask_for_check(self, amount: float, seed: int) -> Mask:
        """Return a random mask of single weights, with a random density around `amount` in each layer."""
        made = {}
        for index, (name, shape) in enumerate(self._shapes.items()):
            source = generator(seed, "cost", index)
            density = min(1.0, amount * float(torch.empty(1).uniform_(-1, 1, generator=source).mul(1.2).exp()))
            made[name] = torch.rand(shape, generator=source) < density
            made[name].view(-1)[0] = True
        return Mask(made)


class ScoredMasks:
    """Masks that retain the highest scores for a share of the dense time; amounts are these shares.

    Like the masks of pruning methods, they leave whole channels empty. So they cost less than random masks of the same
    density, in particular at low densities.
    """

    about = "of the scores"

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        seconds: Mapping[str, float],
        layouts: Mapping[str, Layout],
        amounts: tuple[float, ...] = SHARES,
    ) -> None:
        """Prepare masks for the shares `amounts` of the dense time.

        All mappings are by parameter name: `scores` of each weight, `seconds` of the layer in the unpruned network, and
        `layouts`, which say what rows may form a group (see `core.structure.layout.layouts`).
        """
        self.amounts = amounts
        self._scores, self._seconds, self._layouts = scores, seconds, layouts

    def mask(self, granularity: str, amount: float) -> Mask:
        """Return the mask of the best blocks that take at most the share `amount` of the dense time."""
        return self._mask_of_best_blocks(granularity, amount, self._seconds)

    def mask_for_check(self, amount: float, seed: int) -> Mask:
        """Return the mask of the best weights after multiplying each layer's time by a random factor, 0.6 to 1.6."""
        prices = {
            name: seconds * float(torch.empty(1).uniform_(-0.5, 0.5, generator=generator(seed, "cost", index)).exp())
            for index, (name, seconds) in enumerate(self._seconds.items())
        }
        return self._mask_of_best_blocks(FINEST, amount, prices)

    def _mask_of_best_blocks(self, granularity: str, amount: float, seconds: Mapping[str, float]) -> Mask:
        if amount >= 1:
            return Mask.ones({name: tuple(score.shape) for name, score in self._scores.items()})
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
"""Amounts of the masks under which the error of estimates is measured."""

_LEAST_SPREAD = 0.03
"""Smallest relative error of estimates that is reported, because two masks cannot show a smaller one."""

_ALMOST_EMPTY = 1e-6
"""Amount up to which the mask of a `MaskFamily` retains one weight or group in each layer."""

_CHANNELS_LAST_ROWS = 8
"""Number of rows per group from which a network may be faster in the channels-last layout."""


class Timer(Protocol):
    """Source of a network's latency under masks: `Meter` measures it, `Estimator` computes it from a GPU profile."""

    model: nn.Module
    names: tuple[str, ...]

    @property
    def dense_seconds(self) -> float:
        """Latency of one call of the unpruned network, in seconds."""

    @property
    def dense_profile(self) -> CallSeconds:
        """Latency of the unpruned network, divided into its layers and all other operations."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the weight `name`, which must be in scope."""

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the latency under a mask, divided into its layers and all other operations.

        `layout` is the memory layout of the engine; None for the one that the engine chooses. Raise `UnsupportedError`
        if the network cannot run in the layout under this mask.
        """


def measure_costs(
    meter: Meter,
    granularities: Sequence[str],
    family: MaskFamily,
    say: Callable[[str], None] = lambda _: None,
    *,
    check: bool = True,
) -> CostModel:
    """Time the network under masks, and return the costs of all layers in scope in seconds on this machine.

    `say` is called with the name of each step. With `check`, estimates are compared with timings of further masks,
    which gives the spread of estimates.
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
        mask = family.mask_for_check(amount, seed)
        share = meter.time_share(meter.compiled(mask)).median
        residuals.append(costs.estimate(mask).value / costs.dense / share - 1)
    return msgspec.structs.replace(
        costs,
        spread=max(_LEAST_SPREAD, 1.5 * half_width_of_error_interval(residuals)),
        about={**costs.about, "residuals": [round(each, 4) for each in residuals]},
    )


class _MaskProfile(NamedTuple):
    """Times of the network's layers under one mask in one memory layout."""

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
    """Return the costs of all layers in scope, from a timer's latencies under the masks of `family`.

    The description `about` of the measurement is stored in the costs. `say` is called with the name of each step.
    """
    say("timing the network without a mask")
    whole, dense = timer.dense_seconds, timer.dense_profile
    samples = _time_all_masks(timer, granularities, family, say)
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
        curves, all_rows = (dict(_layer_cost_curves(name, known, each, fixed)) for each in (PLANAR, CHANNELS_LAST))
        layers[name] = LayerCost(prod(timer.shape(name)), factor * dense.layers[name], curves, all_rows)
    return CostModel("seconds", layers, fixed, 0.0, about, unpruned)


def _time_all_masks(
    timer: Timer, granularities: Sequence[str], family: MaskFamily, say: Callable[[str], None]
) -> list[_MaskProfile]:
    """Time the network under all masks of a family, in each memory layout that suits the granularity.

    Almost empty layers take the same time in all granularities, so they are timed only once per layout.
    """
    found: list[_MaskProfile] = []
    almost_empty: dict[str, _MaskProfile] = {}
    for granularity in granularities:
        wide = Granularity.parse(granularity).rows >= _CHANNELS_LAST_ROWS
        for amount in sorted(family.amounts):
            mask = None
            for layout in (PLANAR, *([CHANNELS_LAST] if wide else [])):
                if amount <= _ALMOST_EMPTY and layout in almost_empty:
                    found.append(almost_empty[layout]._replace(granularity=granularity))
                    continue
                if mask is None:
                    say(f"timing {granularity} at {amount:g}")
                    mask = family.mask(granularity, amount)
                try:
                    profile = timer.profile(mask, layout)
                except UnsupportedError:
                    continue
                found.append(
                    _MaskProfile(granularity, layout, {row.name: row.density for row in mask.table()}, profile)
                )
                if amount <= _ALMOST_EMPTY:
                    almost_empty[layout] = found[-1]
    return found


def _layer_cost_curves(
    name: str, samples: Sequence[_MaskProfile], layout: str, fixed: float
) -> Iterator[tuple[str, Curve]]:
    """Yield (granularity, cost curve) of a layer for each granularity, from its times in one memory layout.

    Operations without prunable weights take less time if channels before them are empty. Their time beyond the minimum
    `fixed` is attributed to the layers, in proportion to each layer's own time.
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
            yield granularity, Curve.fit(known)
