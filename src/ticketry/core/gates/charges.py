"""Costs of open gates, which a penalty charges instead of their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ticketry.budgets.cost_model import CostModel, Curve, Prices
from ticketry.core.gates.product import weighted_sum
from ticketry.errors import UsageError


@dataclass(frozen=True)
class Charges:
    """For each parameter with gates, the cost that the penalty charges as a function of the share of open gates.

    For a layer of n weights of which o are open (possibly a sum of probabilities), the penalty is C(o / n), where C is
    the lower convex hull of the layer's costs. So the gradient charges each gate the marginal cost of its weight. The
    cost of an empty layer is subtracted, and the unit is the mean price of a weight: with all gates open, the penalty
    is their number, so a coefficient means the same with and without charges.

    Examples:
        >>> charges = tk.gates.Charges.by({"0.weight": 3, "2.weight": 1}, {"0.weight": 4, "2.weight": 4})
        >>> charges.of([torch.tensor(4.0), torch.tensor(4.0)])
        [tensor(6.), tensor(2.)]
        >>> charges.share(0.25), charges.density_for(0.25)
        (0.25, 0.25)
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> gates = tk.gates.attach(model, init=0.0, charges=charges)
        >>> gates.penalty(1.0).backward()
        >>> first, last = gates.parameters()
        >>> bool((first.grad == 3 * last.grad).all())
        True
    """

    curves: tuple[Curve, ...]
    """For each parameter in the order of the scope: its convex cost by density, 0 if empty; all full layers cost
    `sum(sizes)`.
    """
    sizes: tuple[int, ...]
    """Number of weights of each parameter."""

    @classmethod
    def by(cls, prices: Prices, sizes: Mapping[str, int]) -> Charges:
        """Compute charges from the price of each parameter's weights, or from a cost model.

        Args:
            prices: parameter name -> cost of each of its weights; or a `CostModel`.
            sizes: name -> number of weights, for the parameters that have gates.

        Raises:
            UsageError: for a parameter without a price, or if no weight costs anything.
        """
        known = prices.layers if isinstance(prices, CostModel) else prices
        if unknown := [name for name in sizes if name not in known]:
            raise UsageError(f"there is no cost of {', '.join(unknown)}: spare them in the scope")
        hulls = list(convex_costs(prices, sizes).values())
        dear = sum(hull.costs[-1] - hull.costs[0] for hull in hulls)
        if dear <= 0:
            raise UsageError("no weight with a gate costs anything: there is nothing to charge gates for")
        unit = sum(sizes.values()) / dear
        above = [
            Curve(hull.densities, tuple(_round_for_keys(unit * (cost - hull.costs[0])) for cost in hull.costs))
            for hull in hulls
        ]
        return cls(tuple(above), tuple(sizes.values()))

    def of(self, opened: Sequence[Tensor]) -> list[Tensor]:
        """Return the charge of each parameter for its open gates.

        Args:
            opened: number of open gates of each parameter, as scalar tensors.
        """
        return [_compute_charge(*each) for each in zip(opened, self.curves, self.sizes, strict=True)]

    def share(self, density: float) -> float:
        """Return the share of all charges that remains if every layer has this `density`."""
        return sum(curve.at(density) for curve in self.curves) / sum(curve.costs[-1] for curve in self.curves)

    def density_for(self, share: float) -> float:
        """Return the density, equal in all layers, at which this `share` of all charges remains."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.share(middle) < share else (low, middle)
        return _round_for_keys(high)


def convex_costs(prices: Prices, sizes: Mapping[str, int]) -> dict[str, Curve]:
    """Return the cost of each parameter as a function of density, as a convex curve."""
    if isinstance(prices, CostModel):
        curves = prices.curves()
        return {name: curves[name].convex() for name in sizes}
    return {name: Curve((0.0, 1.0), (0.0, float(prices[name] * size))) for name, size in sizes.items()}


def share_above_floor(prices: Prices, sizes: Mapping[str, int], share: float) -> float:
    """Convert a budget to the share of removable costs that it leaves: 0 with all gated layers empty, 1 with all full.

    Args:
        prices: see `Charges.by`.
        sizes: number of weights of each parameter.
        share: the budget: share of the cost of all these weights or, with a cost model, of the whole network.

    Raises:
        UsageError: for a budget below the cost with empty layers.
    """
    if not isinstance(prices, CostModel):
        return share
    hulls = convex_costs(prices, sizes).values()
    empty, full = sum(hull.costs[0] for hull in hulls), sum(hull.costs[-1] for hull in hulls)
    left = prices.left_for(sizes, prices.budget(share)) - empty
    if left <= 0:
        least = (empty + prices.dense - prices.left_for(sizes, prices.dense)) / prices.dense
        raise UsageError(
            f"a budget of {share:g} of the {prices.unit} is below the {least:.4g} left without a single weight"
        )
    return _round_for_keys(left / (full - empty))


class _HasCharges(Protocol):
    charges: Charges | None


def charge_penalty(opened: Sequence[Tensor], gates: _HasCharges, coefficient: float) -> Tensor:
    """Return coefficient * the charges for open gates, a scalar. Without `charges`, each open gate costs 1."""
    return weighted_sum(opened if gates.charges is None else gates.charges.of(opened), coefficient)


def _compute_charge(opened: Tensor, curve: Curve, size: int) -> Tensor:
    lines = [
        ((high - low) / (last - first) / size, low - first * (high - low) / (last - first))
        for (first, low), (last, high) in pairwise(zip(curve.densities, curve.costs, strict=True))
    ]
    if len(lines) == 1:
        return opened * lines[0][0]
    slopes, begins = torch.tensor(lines, dtype=opened.dtype, device=opened.device).unbind(1)
    return (opened * slopes + begins).max()  # a convex curve is the highest of its lines


def _round_for_keys(value: float) -> float:
    """Round to 12 digits, as in the keys of stored results."""
    return float(f"{value:.12g}")
