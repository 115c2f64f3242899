"""The costs of one network, measured: compiled under masks of some densities, and each layer timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple, Protocol

from torch import nn

from ticketry.core.costs.cost_model import CostModel, spread_of
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import Granularity
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.mask import Mask
from ticketry.engine.cost.families import Family
from ticketry.engine.cost.meter import Meter, Profile
from ticketry_engine.bench.machine import machine
from ticketry_engine.plan.value_axes import UnsupportedError

_HELD_OUT = (0.08, 0.3)
"""Amounts of the masks by which it is told how sure the estimates are."""

_SURE_BY_MOST = 0.03
"""No narrower is an interval said to be: of two masks one learns no more."""

_ROWS_OF_PIXELS = 8
"""Rows of a group from which the layout of dense networks may be the faster one."""


class Timer(Protocol):
    """Tells what a network takes under masks: by timing it, or by a profile of the machine."""

    model: nn.Module
    names: tuple[str, ...]

    @property
    def dense_seconds(self) -> float:
        """Of a call of the network without a mask."""

    @property
    def dense_profile(self) -> Profile:
        """The same by what spends it."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight in scope."""

    def profile(self, mask: Mask, layout: str | None) -> Profile:
        """Seconds of a call under a mask. Raises `UnsupportedError` where a layout cannot run the network."""


def measured(
    meter: Meter,
    granularities: Sequence[str],
    family: Family,
    say: Callable[[str], None] = lambda _: None,
    *,
    checked: bool = True,
) -> CostModel:
    """Return the costs of every weight in the meter's scope, in seconds of this machine.

    Args:
        meter: of the network.
        granularities: what masks remove together.
        family: masks to time it under.
        say: called with what is done now.
        checked: whether estimates are compared with the timings of further masks, for the spread.
    """
    costs = costs_by(meter, granularities, family, _about(meter, family), say)
    return _with_spread(costs, meter, family, say) if checked else costs


def costs_by(
    timer: Timer,
    granularities: Sequence[str],
    family: Family,
    about: dict[str, object],
    say: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """Costs of every weight in scope by what a timer tells of the masks of a family."""
    say("timing the network without a mask")
    whole, dense = timer.dense_seconds, timer.dense_profile
    looks = _looks(timer, granularities, family, say)
    rest = [look.profile.others for look in looks if look.layout == "planes"]
    rest = rest or [look.profile.others for look in looks] or [dense.others]
    unpruned = min(rest, key=lambda others: sum(others.values()))
    fixed = sum(unpruned.values())
    # The dense network may be run in another layout, where what is not pruned takes another time: the layers have the
    # difference, so that all together are the time of the call.
    left = max(whole - fixed, 0.05 * whole) / max(sum(dense.layers.values()), 1e-300)
    layers = {}
    for name in timer.names:
        known = [] if name in dense.torch else looks
        curves, all_rows = (dict(_curves(name, known, each, fixed)) for each in ("planes", "pixels"))
        layers[name] = LayerCost(prod(timer.shape(name)), left * dense.layers[name], curves, all_rows)
    return CostModel("seconds", layers, fixed, 0.0, about, unpruned)


class _Look(NamedTuple):
    """The network under a mask."""

    granularity: str
    layout: str
    densities: dict[str, float]
    profile: Profile


def _looks(timer: Timer, granularities: Sequence[str], family: Family, say: Callable[[str], None]) -> list[_Look]:
    """What layers take in both layouts."""
    found = []
    for granularity in granularities:
        wide = Granularity.parse(granularity).rows >= _ROWS_OF_PIXELS
        for amount in sorted(family.amounts):
            say(f"timing {granularity} at {amount:g}")
            mask = family.mask(granularity, amount)
            densities = {row.name: row.density for row in mask.table()}
            for layout in ("planes", *(["pixels"] if wide else [])):
                try:
                    found.append(_Look(granularity, layout, densities, timer.profile(mask, layout)))
                except UnsupportedError:
                    continue
    return found


def _curves(name: str, looks: Sequence[_Look], layout: str, fixed: float) -> Iterator[tuple[str, Curve]]:
    """Of each granularity.

    What is not pruned takes less where channels before it are empty: what it takes beyond the least is the layers', in
    proportion to their own time.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for look in looks:
        if look.layout == layout:
            own, others = sum(look.profile.layers.values()), sum(look.profile.others.values())
            factor = 1 + max(0.0, others - fixed) / max(own, 1e-300)
            points.setdefault(look.granularity, []).append((look.densities[name], factor * look.profile.layers[name]))
    for granularity, known in points.items():
        if len(dict(known)) > 1:
            yield granularity, Curve.through(known)


def _with_spread(costs: CostModel, meter: Meter, family: Family, say: Callable[[str], None]) -> CostModel:
    """How far estimates are from the time of masks that were not measured: other densities in every layer."""
    residuals = []
    for seed, amount in enumerate(_HELD_OUT):
        say(f"checking the estimates at about {amount:g}")
        mask = family.other(amount, seed)
        share = meter.share(meter.compiled(mask)).median
        residuals.append(costs.estimate(mask).value / costs.dense / share - 1)
    return CostModel(
        costs.unit,
        costs.layers,
        costs.fixed,
        max(_SURE_BY_MOST, 1.5 * spread_of(residuals)),
        {**costs.about, "residuals": [round(each, 4) for each in residuals]},
        costs.fixed_parts,
    )


def _about(meter: Meter, family: Family) -> dict[str, object]:
    found = machine()
    return {
        "target": "this machine",
        "processor": found["processor"],
        "processor_kind": found["processor_kind"],
        "threads": meter.threads,
        "precision": meter.precision,
        "batch": meter.batch,
        "how": "measured",
        "masks": family.about,
        "clock": "processor time" if meter.threads == 1 else "wall time",
        "features": found["features"],
        "versions": found["versions"],
        "load": found["load"],
    }
