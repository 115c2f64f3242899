"""Cost of a network under any mask, as cost curves of its layers plus a fixed part; can be stored in a file."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from torch import Tensor

from ticketry.budgets.units import (
    ENGINE,
    FINEST,
    Granularity,
    Unit,
    format_cost,
    format_cost_above,
    format_table,
    parse_amount,
    parse_granularities,
)
from ticketry.choices import did_you_mean
from ticketry.core.mask import Mask, require_mask
from ticketry.errors import CostError, UsageError
from ticketry.files import parse_json, read_bytes, write_atomically

KIND = "ticketry.cost"
_LARGEST_FILE = 1 << 26
_LISTED_LAYERS = 5
_TABLE_DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)


class Curve(Struct, frozen=True):
    """Cost of a layer as a piecewise linear function of its density.

    Raises:
        ValueError: unless densities rise from 0 to 1, and costs are finite, at least 0, and never fall.
    """

    densities: tuple[float, ...]
    """Densities (retained shares of the layer's weights) at which costs are known, rising from 0 to 1."""
    costs: tuple[float, ...]
    """Cost at each density, of all calls of the layer together, in the unit of the cost model."""

    def __post_init__(self) -> None:
        if len(self.densities) != len(self.costs) or len(self.costs) < 2:
            raise ValueError("a curve has as many costs as densities, at least two")
        if (self.densities[0], self.densities[-1]) != (0.0, 1.0):
            raise ValueError("a curve reaches from density 0 to density 1")
        if not all(one < other for one, other in pairwise(self.densities)):
            raise ValueError("the densities of a curve rise")
        if not all(0 <= one <= other < float("inf") for one, other in pairwise(self.costs)):
            raise ValueError("the costs of a curve are numbers of at least 0 and never fall")

    @classmethod
    def fit(cls, points: Iterable[tuple[float, float]]) -> Curve:
        """Fit a curve to measured (density, cost) points.

        Where costs fall from a point to the next, both points get their mean cost (isotonic regression: Ayer et al.
        1955). Costs at densities 0 and 1 are extrapolated from the nearest two points.

            >>> Curve.fit([(0.1, 2.0), (0.5, 6.0), (1.0, 5.0)]).costs
            (1.125, 2.0, 5.5, 5.5)
        """
        known = sorted(dict(points).items())
        if len(known) < 2:
            raise ValueError("a curve needs two points")
        if known[-1][0] < 1:
            known.append((1.0, max(_extrapolate_line(known[-2], known[-1], 1.0), known[-1][1])))
        costs = _fit_non_falling([cost for _, cost in known])
        if known[0][0] > 0:
            first = _extrapolate_line((known[0][0], costs[0]), (known[1][0], costs[1]), 0.0)
            known.insert(0, (0.0, first))
            costs.insert(0, min(max(first, 0.0), costs[0]))
        return cls(tuple(float(density) for density, _ in known), tuple(costs))

    @classmethod
    def constant(cls, cost: float) -> Curve:
        """Return the curve of a layer that costs the same at every density."""
        return cls((0.0, 1.0), (cost, cost))

    def at(self, density: float) -> float:
        """Return the cost at `density`, interpolated linearly."""
        index = min(max(bisect_right(self.densities, density), 1), len(self.densities) - 1)
        points = list(zip(self.densities, self.costs, strict=True))
        return _extrapolate_line(points[index - 1], points[index], density)

    def convex(self) -> Curve:
        """Return the lower convex hull of the curve: the largest convex curve that is nowhere above this curve."""
        hull: list[tuple[float, float]] = []
        for point in zip(self.densities, self.costs, strict=True):
            while len(hull) > 1 and _slope_between(hull[-2], hull[-1]) >= _slope_between(hull[-1], point):
                hull.pop()
            hull.append(point)
        return Curve(tuple(density for density, _ in hull), tuple(cost for _, cost in hull))

    def scaled(self, factor: float) -> Curve:
        """Return the curve with all costs multiplied by `factor`."""
        return Curve(self.densities, tuple(factor * cost for cost in self.costs))


def _fit_non_falling(costs: list[float]) -> list[float]:
    """Return the non-falling sequence with the least squared distance to `costs` (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for cost in costs:
        pools.append((cost, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, few), (other, more) = pools[-2:]
            pools[-2:] = [((few * one + more * other) / (few + more), few + more)]
    return [cost for cost, count in pools for _ in range(count)]


def _slope_between(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _extrapolate_line(one: tuple[float, float], other: tuple[float, float], density: float) -> float:
    return one[1] + (density - one[0]) * _slope_between(one, other)


class LayerCost(Struct, frozen=True):
    """Cost of one layer by density and granularity of its prunable weight."""

    weights: int
    """Number of elements of the layer's weight."""
    dense: float
    """Cost of the layer in the unpruned network, in the unit of the cost model."""
    curves: dict[str, Curve]
    """Granularity (``weights``, ``rows:16``) -> cost by density; empty if no mask makes the layer cheaper."""
    all_rows: dict[str, Curve] = {}
    """Granularity -> cost by density, if the whole network runs channels-last, the memory layout that suits groups of
    rows."""

    def at(self, density: float, granularity: str = FINEST) -> float:
        """Return the cost at a density and granularity; if the granularity was not measured, use the next finer one."""
        return self._interpolate(self.curves, density, granularity)

    def at_channels_last(self, density: float, granularity: str = FINEST) -> float:
        """Return the cost at a density and granularity if the whole network runs channels-last."""
        return self._interpolate(self.all_rows, density, granularity) if density < 1 else self.dense

    def _interpolate(self, curves: Mapping[str, Curve], density: float, granularity: str) -> float:
        wanted = Granularity.parse(granularity)
        finer = [one for one in parse_granularities(curves) if one <= wanted]
        return curves[str(finer[-1])].at(density) if finer else self.dense

    def curve(self, granularity: str = FINEST) -> Curve:
        """Return the curve of one granularity; raise `UsageError` if this granularity was not measured."""
        if granularity not in self.curves:
            raise UsageError(
                f"granularity {granularity!r} has no costs here, but {', '.join(self.curves)} have: measure it, by"
                f" tk.cost.model(..., granularities=({granularity!r},))"
            )
        return self.curves[granularity]

    @property
    def floor(self) -> float:
        """Cost of the layer without weights, in the granularity in which this is cheapest."""
        return min([self.dense, *(curve.costs[0] for curve in (*self.curves.values(), *self.all_rows.values()))])

    def scaled(self, factor: float) -> LayerCost:
        """Return the layer's costs, all multiplied by `factor`."""
        curves, all_rows = (
            {name: curve.scaled(factor) for name, curve in each.items()} for each in (self.curves, self.all_rows)
        )
        return LayerCost(self.weights, factor * self.dense, curves, all_rows)


class Estimate(Struct, frozen=True):
    """An estimated cost with its 95 % interval.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> costs.estimate(tk.prune(model, 0.25)).value
        1024.0
    """

    value: float
    low: float
    high: float
    unit: Unit = "seconds"

    def __str__(self) -> str:
        value, low, high = (format_cost(one, self.unit) for one in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


class CostModel(Struct, frozen=True):
    """Costs of a network's layers by density and granularity, as `ticketry.cost.model` returns them.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> costs.dense
        4096.0
        >>> costs.estimate(tk.prune(model, 0.25)).value
        1024.0
        >>> costs.base_seconds("engine") == costs.dense
        True
        >>> costs.budget("25%"), costs.floor, costs.left_for(costs.layers, 1024.0)
        (1024.0, 0.0, 1024.0)
        >>> costs.in_torch, costs.in_torch_in_words()
        (0, '')
        >>> costs.curves()["0.weight"].at(0.5)
        1024.0
        >>> costs.check_granularity("weights")
        >>> costs.granularity("0.weight", tk.prune(model, 0.25, pattern="4x1"))
        'weights'
        >>> costs.floor_in_words().startswith("0 (0.0 % of dense)")
        True
    """

    unit: Unit
    layers: dict[str, LayerCost]
    """Parameter name -> costs of its layer."""
    fixed: float
    """Cost that no mask lowers: layers without prunable weights, loading and storing."""
    spread: float = 0.0
    """Half the width of the 95 % interval of an estimate, as a share of the estimate."""
    about: dict[str, Any] = {}
    """JSON values that describe the measurement: target, processor, threads, precision, batch, versions, method."""
    fixed_parts: dict[str, float] = {}
    """Operation -> the part of `fixed` that it costs, in the unit."""

    @property
    def dense(self) -> float:
        """Cost of the unpruned network."""
        return self.fixed + sum(layer.dense for layer in self.layers.values())

    @property
    def floor(self) -> float:
        """Cost of the network if all its layers are empty, which no mask can go below."""
        return self.fixed + sum(layer.floor for layer in self.layers.values())

    def estimate(self, mask: Mask) -> Estimate:
        """Return the network's estimated cost under a mask, with a 95 % interval.

        Raise `CostError` if the mask belongs to another model, and `UsageError` if `mask` is not a mask.
        """
        require_mask(mask)
        for name, size in {name: tensor.numel() for name, tensor in mask.items()}.items():
            if name not in self.layers or self.layers[name].weights != size:
                question = did_you_mean(name, self.layers).strip()
                more = f"; {question}" if name not in self.layers and question else ""
                raise CostError(f"the costs are not of the mask's model: {name!r} has none, or has another size{more}")
        kinds = {name: (float(kept.float().mean()), self.granularity(name, mask)) for name, kept in mask.items()}
        dense = (1.0, FINEST)
        total = self.fixed + min(
            sum(layer.at(*kinds.get(name, dense)) for name, layer in self.layers.items()),
            sum(layer.at_channels_last(*kinds.get(name, dense)) for name, layer in self.layers.items()),
        )
        return Estimate(total, total * (1 - self.spread), total * (1 + self.spread), self.unit)

    def granularity(self, name: str, mask: Mask) -> str:
        """Return the granularity of the layer `name` in a network's `mask`, recognised from groups of equal rows."""
        return FINEST if list(self.layers[name].curves) == [FINEST] else mask_granularity(mask[name])

    def budget(self, asked: float | str) -> float:
        """Convert a budget, a share of the dense cost (0.3, "30%") or an amount ("5 ms"), to the unit of the costs.

        Raise `UsageError` if the budget `asked` for is invalid, or below `floor`; the message lists the floor's parts.
        """
        amount = parse_amount(asked, self.unit, self.dense)
        if amount < self.floor:
            raise UsageError(
                f"a budget of {format_cost(amount, self.unit)} is below the floor: {self.floor_in_words()}; ask for"
                " more"
            )
        return amount

    def base_seconds(self, base: str) -> float:
        """Return the latency in seconds of `base`, a way to run the unpruned network (one of `units.BASES`).

        "engine" is the network of these costs. Raise `CostError` if the base was not measured with these costs.
        """
        if base == ENGINE:
            return self.dense
        known = self.about.get("bases", {})
        if base not in known:
            raise CostError(
                f"these costs do not have the latency of {base}, of which the budget is a share: measure them with it"
                f" (ticketry cost --base {base}, or tk.cost.model(..., bases=({base!r},))), give an amount (5ms), or"
                f" a share of the compiled network without pruning (base {ENGINE})"
            )
        return float(known[base])

    def left_for(self, names: Iterable[str], amount: float) -> float:
        """Return `amount` minus the fixed costs and the unpruned costs of all layers that are not in `names`."""
        pruned = set(names)
        return amount - self.fixed - sum(layer.at(1.0) for name, layer in self.layers.items() if name not in pruned)

    def floor_in_words(self) -> str:
        """Return a text for messages with the floor, its share of the dense cost, and its largest parts."""
        parts = dict(self.fixed_parts) or {"what is not pruned": self.fixed}
        for name, layer in self.layers.items():
            parts[f"{name.removesuffix('.weight')}, {'empty' if layer.curves else 'in torch'}"] = layer.floor
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        share = f"{100 * self.floor / self.dense:.1f} %" if self.dense else "0 %"
        most = ", ".join(f"{name} {format_cost(cost, self.unit)}" for name, cost in largest if cost > 0)
        in_torch = self.in_torch_in_words()
        lower = advice_for_cheaper_parts(name for name, cost in largest if cost > 0) if self.unit == "seconds" else ""
        return (
            f"{format_cost(self.floor, self.unit)} ({share} of dense) are left with empty layers; most of it: {most}"
            f"{in_torch and f'; {in_torch}'}{lower and f'; what lowers it: {lower}'}"
        )

    @property
    def in_torch(self) -> float:
        """Cost of the layers that run in torch instead of a sparse kernel, so that no mask makes them faster."""
        return sum(layer.dense for layer in self.layers.values() if not layer.curves)

    def in_torch_in_words(self) -> str:
        """Return a text with the most expensive layers that run in torch and their cost; empty if none does."""
        found = {name: layer.dense for name, layer in self.layers.items() if not layer.curves}
        if not found:
            return ""
        names = sorted(found, key=lambda name: -found[name])
        more = f" and {len(names) - _LISTED_LAYERS} more" if len(names) > _LISTED_LAYERS else ""
        share = f" ({100 * self.in_torch / self.dense:.0f} % of dense)" if self.dense else ""
        return (
            f"in torch, which no mask makes faster: {', '.join(names[:_LISTED_LAYERS])}{more}:"
            f" {format_cost(self.in_torch, self.unit)}{share}"
        )

    def curves(self, granularity: str = FINEST) -> dict[str, Curve]:
        """Return parameter name -> cost curve; constant for layers that were not measured in `granularity`."""
        return {
            name: layer.curve(granularity) if granularity in layer.curves else Curve.constant(layer.dense)
            for name, layer in self.layers.items()
        }

    def check_granularity(self, granularity: str) -> None:
        """Raise `UsageError` if a layer that masks make cheaper has no costs in `granularity`; always accept ""."""
        if granularity:
            for layer in self.layers.values():
                if layer.curves:
                    layer.curve(granularity)

    def scaled(self, factor: float, **about: Any) -> CostModel:
        """Return the costs multiplied by `factor`; keywords are added to `about`."""
        facts = {**self.about, **about}
        if bases := self.about.get("bases"):
            facts["bases"] = {name: factor * seconds for name, seconds in bases.items()} | about.get("bases", {})
        return msgspec.structs.replace(
            self,
            layers={name: layer.scaled(factor) for name, layer in self.layers.items()},
            fixed=factor * self.fixed,
            about=facts,
            fixed_parts={name: factor * cost for name, cost in self.fixed_parts.items()},
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the costs; equal costs have equal digests."""
        text = json.dumps(msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the costs to a JSON file and return its path; raise `CostError` if the file cannot be written."""
        document = {"kind": KIND, "format": 1, "digest": self.digest, "model": msgspec.to_builtins(self)}
        try:
            write_atomically(Path(path), json.dumps(document, indent=1, allow_nan=False).encode())
        except (OSError, ValueError) as error:
            raise CostError(f"the costs cannot be written to {path}: {error}") from None
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read costs from the file `path`; raise `CostError` if it is missing, damaged or contains no costs."""
        try:
            document = parse_json(read_bytes(Path(path), most=_LARGEST_FILE))
            if not isinstance(document, dict) or document.get("kind") != KIND or document.get("format") != 1:
                raise CostError(f"{path} is no file of costs of this version: tk.cost.model(...).save(path) writes one")
            found = msgspec.convert(document.get("model"), cls)
        except (OSError, ValueError, RecursionError) as error:
            raise CostError(f"{path} cannot be read as costs: {error}") from None
        if found.digest != document.get("digest"):
            raise CostError(f"{path} is damaged: its contents do not match its digest; make it anew")
        return found

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if isinstance(value, str | int | float))
        lines = [
            f"Costs in {self.unit}: {about}" if about else f"Costs in {self.unit}",
            format_table(
                [("layer", "weights", "granularity", *(f"{100 * density:g} %" for density in _TABLE_DENSITIES))]
                + [row for name, layer in self.layers.items() for row in self._table_rows(name, layer)]
            ),
            f"not pruned: {format_cost(self.fixed, self.unit)}; dense: {format_cost(self.dense, self.unit)}",
            f"floor: {self.floor_in_words()}",
        ]
        return "\n".join([*lines, f"an estimate is within {100 * self.spread:.1f} % in 95 of 100 cases"])

    def _table_rows(self, name: str, layer: LayerCost) -> list[tuple[str, ...]]:
        found = []
        for index, each in enumerate(layer.curves or ("torch",)):
            first = (name.removesuffix(".weight"), f"{layer.weights:,}") if not index else ("", "")
            costs = (layer.at(density, each) if layer.curves else layer.dense for density in _TABLE_DENSITIES)
            found.append((*first, each, *(format_cost(cost, self.unit) for cost in costs)))
        return found


Prices = Mapping[str, int] | CostModel
"""Costs of weights: parameter name -> cost of one of its weights, above 0; or a cost model."""


def mask_cost(mask: Mask, prices: Prices) -> float:
    """Return the cost of all weights that a mask retains, or of the whole network if `prices` is a cost model."""
    if isinstance(prices, CostModel):
        return prices.estimate(mask).value
    return sum(prices[name] * int(kept.sum()) for name, kept in mask.items())


_ADVICE = (
    (("attention", "softmax", "matmul", "bmm"), "fewer heads (structure='channels') or shorter sequences"),
    (
        ("norm", "add", "mul", "lu", "sigmoid", "tanh", "swish", "cat"),
        "fewer channels or hidden units (structure='channels')",
    ),
    (("pool", "resize", "interpolate", "unfold"), "smaller inputs"),
    (("embedding", "gather"), "shorter sequences"),
    ((", empty",), "fewer layers"),
)
"""Pairs of words in the names of operations and advice on what makes these operations cheaper."""


def advice_for_cheaper_parts(parts: Iterable[str]) -> str:
    """Return advice on what makes `parts`, operations or empty layers of a network, cheaper; empty if none applies.

    Examples:
        >>> from ticketry.budgets.cost_model import advice_for_cheaper_parts
        >>> advice_for_cheaper_parts(["attention", "encoder.0, empty"])
        "fewer heads (structure='channels') or shorter sequences, fewer layers"
    """
    found = []
    for part in parts:
        empty = part.endswith(", empty")
        for words, advice in _ADVICE:
            if any(word in part for word in words) and (not empty or advice == "fewer layers") and advice not in found:
                found.append(advice)
    return ", ".join(found)


def half_width_of_error_interval(residuals: Iterable[float]) -> float:
    """Return half the width of the 95 % interval of relative errors: the 95 % quantile of their magnitudes."""
    sizes = sorted(abs(each) for each in residuals)
    return sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))] if sizes else 0.0


def describe_required_budget(costs: CostModel, mask: Mask) -> str:
    """Return a text with the budget that suffices for a mask: its cost, rounded up, and its share of the dense cost."""
    cost = 1.0005 * costs.estimate(mask).value
    return f"{format_cost_above(cost, costs.unit)} ({100 * cost / costs.dense:.3g} % of the dense network's)"


def mask_granularity(kept: Tensor) -> str:
    """Return the granularity of one layer's mask, recognised from groups of rows with equal masks.

    The group size is the median over all groups, each weighted by its number of retained elements.
    """
    if kept.dim() < 2 or not bool(kept.any()):
        return FINEST
    matrix = kept.detach().cpu().flatten(1).numpy()
    packed = np.packbits(matrix, axis=1)
    columns = packed.view(np.dtype((np.void, packed.shape[1]))).ravel().tolist()
    count = Counter(columns)
    sizes = np.array([count[one] for one in columns])  # of each row's group
    order = sizes.argsort(kind="stable")
    weights = np.count_nonzero(matrix, axis=1)[order].cumsum()
    rows = int(sizes[order][np.searchsorted(weights, weights[-1] / 2)])
    return str(Granularity(rows)) if rows > 1 else FINEST
