"""The costs of one network, measured: compiled under synthetic masks of some densities, and each layer timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from statistics import median

import torch

from ticketry.core.costs.cost_model import CostModel, spread_of
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST, Granularity
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.mask import Mask
from ticketry.core.seeds import generator
from ticketry.engine.bench.machine import machine
from ticketry.engine.bench.masks import Pattern, synthetic
from ticketry.engine.cost.meter import Meter, Profile
from ticketry.engine.plan.value_axes import UnsupportedError

DENSITIES = (1e-9, 0.003, 0.02, 0.08, 0.25, 0.6, 1.0)
"""At which a network is compiled and timed, besides without a mask: of the least, a weight in each layer (or group)."""

_HELD_OUT = (0.08, 0.3)
"""Typical densities of the masks by which it is told how sure the estimates are."""

_SURE_BY_MOST = 0.03
"""No narrower is an interval said to be: of two masks one learns no more."""

_ROWS_OF_PIXELS = 8
"""Rows of a group from which the layout of dense networks may be the faster one."""

_Points = dict[str, dict[str, list[tuple[float, float]]]]
"""Parameter name -> granularity -> (density, seconds)."""


def measured(
    meter: Meter,
    granularities: Sequence[str] = (FINEST,),
    densities: Sequence[float] = DENSITIES,
    say: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """Costs of every weight in the meter's scope, in seconds of this machine."""
    say("timing the network without a mask")
    whole, dense = meter.dense_seconds, meter.profile(meter.dense)
    planes, pixels, others = _curves(meter, granularities, densities, say)
    fixed = {kind: median(each.others.get(kind, 0.0) for each in others) for kind in dense.others}
    # Together the layers without a mask are the whole call, which may use several threads.
    factor = whole / (sum(dense.layers.values()) + sum(dense.others.values()))
    layers = {}
    for name in meter.names:
        in_torch = name in dense.torch
        layers[name] = LayerCost(
            prod(meter.shape(name)),
            max(0.0, factor * dense.layers[name]),
            {} if in_torch else _through(planes[name], factor),
            {} if in_torch else _through(pixels[name], factor),
        )
    unpruned = {kind: factor * spent for kind, spent in fixed.items()}
    found = CostModel("seconds", layers, sum(unpruned.values()), 0.0, _about(meter), unpruned)
    return _with_spread(found, meter, say)


def _curves(
    meter: Meter, granularities: Sequence[str], densities: Sequence[float], say: Callable[[str], None]
) -> tuple[_Points, _Points, list[Profile]]:
    """What layers take in both layouts, and all profiles."""
    planes: _Points = {name: {} for name in meter.names}
    pixels: _Points = {name: {} for name in meter.names}
    profiles: list[Profile] = []
    for granularity in granularities:
        wide = Granularity.parse(granularity).rows >= _ROWS_OF_PIXELS
        for density in sorted(densities):
            say(f"timing {granularity} at density {density:g}")
            mask = _synthetic(meter, granularity, density)
            for layout, points in (("planes", planes), *([("pixels", pixels)] if wide else [])):
                try:
                    found = meter.profile(meter.compiled(mask, layout))
                except UnsupportedError:
                    continue
                profiles.append(found)
                for row in mask.table():
                    points[row.name].setdefault(granularity, []).append((row.density, found.layers[row.name]))
    return planes, pixels, profiles


def _through(points: dict[str, list[tuple[float, float]]], factor: float) -> dict[str, Curve]:
    return {each: Curve.through(known).times(factor) for each, known in points.items() if len(dict(known)) > 1}


def _synthetic(meter: Meter, granularity: str, density: float) -> Mask:
    rows = Granularity.parse(granularity).rows
    mask = synthetic(meter.model, Pattern("unstructured") if rows == 1 else Pattern("groups", rows), density)
    return Mask({name: mask[name] for name in meter.names})


def _with_spread(costs: CostModel, meter: Meter, say: Callable[[str], None]) -> CostModel:
    """How far estimates are from the time of masks that were not measured: other densities in every layer."""
    residuals = []
    for seed, typical in enumerate(_HELD_OUT):
        say(f"checking the estimates at densities about {typical:g}")
        mask = _uneven(meter, typical, seed)
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


def _uneven(meter: Meter, typical: float, seed: int) -> Mask:
    """Single weights at random, with a density of its own, about `typical`, in each layer."""
    made = {}
    for index, name in enumerate(meter.names):
        source = generator(seed, "cost", index)
        density = min(1.0, typical * float(torch.empty(1).uniform_(-1, 1, generator=source).mul(1.2).exp()))
        shape = meter.shape(name)
        made[name] = torch.rand(shape, generator=source) < density
        made[name].view(-1)[0] = True
    return Mask(made)


def _about(meter: Meter) -> dict[str, object]:
    found = machine()
    return {
        "target": "this machine",
        "processor": found["processor"],
        "threads": meter.threads,
        "precision": meter.precision,
        "batch": meter.batch,
        "how": "measured",
        "clock": "processor time" if meter.threads == 1 else "wall time",
        "features": found["features"],
        "versions": found["versions"],
        "load": found["load"],
    }
