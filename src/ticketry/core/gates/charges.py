"""What open gates are charged in a penalty, where not all weights cost alike: time, bytes, multiplications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ticketry.budgets.cost_model import CostModel, Curve, Prices
from ticketry.core.gates.product import summed
from ticketry.errors import UsageError


@dataclass(frozen=True)
class Charges:
    """For each parameter with gates what it costs by the share of its gates that are open: gates are charged for it.

    The penalty of n weights of a layer, of which o are open (a sum, as of probabilities), is C(o / n), with C the lower
    convex hull of what the layer costs: so the gradient charges every gate what its weight costs at the margin. Costs
    are above those of empty layers, and in units of the mean price of a weight: all gates open are charged as many as
    they are, as without prices, and a coefficient means the same.

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
    """Of each parameter, in the order of the scope: convex, 0 of an empty layer, all together the number of weights."""
    sizes: tuple[int, ...]
    """Weights of each."""

    @classmethod
    def by(cls, prices: Prices, sizes: Mapping[str, int]) -> Charges:
        """Charges by the cost of a weight of each parameter, or by costs of layers.

        Args:
            prices: parameter name -> what each of its weights costs; or a `CostModel`.
            sizes: parameter name -> weights, of those that have gates.

        Raises:
            UsageError: for a parameter without a price, or if no weight costs anything.
        """
        known = prices.layers if isinstance(prices, CostModel) else prices
        if unknown := [name for name in sizes if name not in known]:
            raise UsageError(f"there is no cost of {', '.join(unknown)}: spare them in the scope")
        hulls = list(hulls_of(prices, sizes).values())
        dear = sum(hull.costs[-1] - hull.costs[0] for hull in hulls)
        if dear <= 0:
            raise UsageError("no weight with a gate costs anything: there is nothing to charge gates for")
        unit = sum(sizes.values()) / dear
        above = [
            Curve(hull.densities, tuple(_rounded(unit * (cost - hull.costs[0])) for cost in hull.costs))
            for hull in hulls
        ]
        return cls(tuple(above), tuple(sizes.values()))

    def of(self, opened: Sequence[Tensor]) -> list[Tensor]:
        """What each parameter is charged.

        Args:
            opened: scalars, one for each parameter: how many of its gates are open.
        """
        return [_charge(*each) for each in zip(opened, self.curves, self.sizes, strict=True)]

    def share(self, density: float) -> float:
        """Of all charges, with every layer at one `density`."""
        return sum(curve.at(density) for curve in self.curves) / sum(curve.costs[-1] for curve in self.curves)

    def density_for(self, share: float) -> float:
        """The density of every layer at which a `share` of all charges is left."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.share(middle) < share else (low, middle)
        return _rounded(high)


def hulls_of(prices: Prices, sizes: Mapping[str, int]) -> dict[str, Curve]:
    """Parameter name -> what it costs by density, as a convex curve."""
    if isinstance(prices, CostModel):
        curves = prices.curves()
        return {name: curves[name].convex() for name in sizes}
    return {name: Curve((0.0, 1.0), (0.0, float(prices[name] * size))) for name, size in sizes.items()}


def share_above_empty(prices: Prices, sizes: Mapping[str, int], share: float) -> float:
    """What a budget leaves of the costs that gates can save: 0 of empty layers, 1 of full ones.

    Args:
        share: of the cost of all these weights, or by costs of layers of the whole network.

    Raises:
        UsageError: for a budget below the floor.
    """
    if not isinstance(prices, CostModel):
        return share
    hulls = hulls_of(prices, sizes).values()
    empty, full = sum(hull.costs[0] for hull in hulls), sum(hull.costs[-1] for hull in hulls)
    left = prices.left_for(sizes, prices.budget(share)) - empty
    if left <= 0:
        least = (empty + prices.dense - prices.left_for(sizes, prices.dense)) / prices.dense
        raise UsageError(
            f"a budget of {share:g} of the {prices.unit} is below the {least:.4g} left without a single weight"
        )
    return _rounded(left / (full - empty))


class _Gates(Protocol):
    charges: Charges | None


def charged(opened: Sequence[Tensor], gates: _Gates, coefficient: float) -> Tensor:
    """coefficient * what gates are charged that are open so far, by their charges or all alike: a scalar."""
    return summed(opened if gates.charges is None else gates.charges.of(opened), coefficient)


def _charge(opened: Tensor, curve: Curve, size: int) -> Tensor:
    lines = [
        ((high - low) / (last - first) / size, low - first * (high - low) / (last - first))
        for (first, low), (last, high) in pairwise(zip(curve.densities, curve.costs, strict=True))
    ]
    if len(lines) == 1:
        return opened * lines[0][0]
    slopes, begins = torch.tensor(lines, dtype=opened.dtype, device=opened.device).unbind(1)
    return (opened * slopes + begins).max()  # a convex curve is the highest of its lines


def _rounded(value: float) -> float:
    """In digits that a key can have."""
    return float(f"{value:.12g}")
