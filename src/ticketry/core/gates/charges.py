"""Costs of open gates, such as FLOPs: with them, a penalty sums what open gates cost instead of counting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ticketry.budgets.cost_model import CostModel, Curve, Prices
from ticketry.core.gates.product import weighted_sum
from ticketry.errors import UsageError


@dataclass(frozen=True)
class Charges:
    """The cost of each parameter with gates, as a function of the share of its gates that are open.

    For a layer of n weights, o of them open (o may be a sum of probabilities), the penalty is C(o / n), where C is
    the lower convex hull of the layer's cost as a function of density. So the gradient of each gate contains the
    marginal cost of its weight. The cost of the layer without weights is subtracted. The unit is the mean cost of a
    weight: with all gates open, the penalty equals the number of weights, as without charges.

    Examples:
        >>> charges = tk.gates.Charges.by({"0.weight": 3, "2.weight": 1}, {"0.weight": 4, "2.weight": 4})
        >>> charges.cost_of_open_gates([torch.tensor(4.0), torch.tensor(4.0)])
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
    """For each parameter, in the order of the scope: its cost as a convex function of density, 0 at density 0. At
    density 1, the costs of all parameters add up to `sum(sizes)`.
    """
    sizes: tuple[int, ...]
    """Number of weights of each parameter."""

    @classmethod
    def by(cls, prices: Prices, sizes: Mapping[str, int]) -> Charges:
        """Compute charges from the price of each parameter's weights, or from a cost model.

        Args:
            prices: the cost of a single weight, by parameter name; or a `CostModel`.
            sizes: the number of weights, by name, of the parameters that have gates.

        Raises:
            UsageError: for a parameter without a price, or if no weight costs anything.
        """
        known = prices.layers if isinstance(prices, CostModel) else prices
        if unknown := [name for name in sizes if name not in known]:
            raise UsageError(f"there is no cost of {', '.join(unknown)}: spare them in the scope")
        hulls = list(_convex_cost_curves(prices, sizes).values())
        dear = sum(hull.costs[-1] - hull.costs[0] for hull in hulls)
        if dear <= 0:
            raise UsageError("no weight with a gate costs anything: there is nothing to charge gates for")
        unit = sum(sizes.values()) / dear
        above = [
            Curve(hull.densities, tuple(_round_for_keys(unit * (cost - hull.costs[0])) for cost in hull.costs))
            for hull in hulls
        ]
        return cls(tuple(above), tuple(sizes.values()))

    def cost_of_open_gates(self, opened: Sequence[Tensor]) -> list[Tensor]:
        """Return, for each parameter, the cost of its open gates as a scalar tensor.

        Args:
            opened: number of open gates of each parameter, as scalar tensors.
        """
        costs = []
        for count, curve, size in zip(opened, self.curves, self.sizes, strict=True):
            lines = [
                ((high - low) / (last - first) / size, low - first * (high - low) / (last - first))
                for (first, low), (last, high) in pairwise(zip(curve.densities, curve.costs, strict=True))
            ]
            if len(lines) == 1:
                costs.append(count * lines[0][0])
            else:  # a convex curve is the highest of its lines
                slopes, begins = torch.tensor(lines, dtype=count.dtype, device=count.device).unbind(1)
                costs.append((count * slopes + begins).max())
        return costs

    def share(self, density: float) -> float:
        """Return the cost of all parameters at this `density`, as a share of their cost at density 1."""
        return sum(curve.at(density) for curve in self.curves) / sum(curve.costs[-1] for curve in self.curves)

    def density_for(self, share: float) -> float:
        """Return the density at which all parameters together cost this `share` of their cost at density 1."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.share(middle) < share else (low, middle)
        return _round_for_keys(high)


def _convex_cost_curves(prices: Prices, sizes: Mapping[str, int]) -> dict[str, Curve]:
    """Return, for each parameter, the lower convex hull of its cost as a function of its density."""
    if isinstance(prices, CostModel):
        curves = prices.curves()
        return {name: curves[name].convex() for name in sizes}
    return {name: Curve((0.0, 1.0), (0.0, float(prices[name] * size))) for name, size in sizes.items()}


def permitted_gate_cost_share(prices: Prices, sizes: Mapping[str, int], share: float) -> float:
    """Return the share of the cost of all gates that a budget permits: 0 permits no open gate, 1 permits all.

    `share` is the budget, as a share of the cost of all weights with gates or, with a cost model, of the whole network.
    """
    if not isinstance(prices, CostModel):
        return share
    hulls = _convex_cost_curves(prices, sizes).values()
    empty, full = sum(hull.costs[0] for hull in hulls), sum(hull.costs[-1] for hull in hulls)
    left = prices.left_for(sizes, prices.budget(share)) - empty
    if left <= 0:
        least = (empty + prices.dense - prices.left_for(sizes, prices.dense)) / prices.dense
        raise UsageError(
            f"a budget of {share:g} of the {prices.unit} is below the {least:.4g} left without a single weight"
        )
    return _round_for_keys(left / (full - empty))


def penalty_of_open_gates(opened: Sequence[Tensor], charges: Charges | None, coefficient: float) -> Tensor:
    """Return `coefficient` times the cost of the open gates, a scalar; without `charges`, each gate costs 1.

    `opened` contains, for each parameter, the number of its open gates.
    """
    return weighted_sum(opened if charges is None else charges.cost_of_open_gates(opened), coefficient)


def _round_for_keys(value: float) -> float:
    """Return `value` rounded to 12 significant digits, for use in keys of stored results."""
    return float(f"{value:.12g}")
