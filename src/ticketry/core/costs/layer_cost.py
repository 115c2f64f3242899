"""What one layer costs by density and granularity."""

from __future__ import annotations

from msgspec import Struct

from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST, Granularity, granularities
from ticketry.errors import UsageError


class LayerCost(Struct, frozen=True):
    """One prunable weight."""

    weights: int
    """Elements of it."""
    dense: float
    """What it costs when nothing is pruned, in the unit of the model."""
    curves: dict[str, Curve]
    """Granularity (``weights``, ``rows:16``, ``channels``) -> cost by density."""
    where: str = "engine"
    """``torch``: the engine has no kernel for the layer, and no mask makes it faster."""

    def at(self, density: float, granularity: str = FINEST) -> float:
        """Cost at a density; of a granularity that was not measured, that of the next finer one."""
        if density >= 1:
            return self.dense
        wanted = Granularity.parse(granularity)
        finer = [one for one in granularities(self.curves) if one <= wanted]
        return self.curve(str(finer[-1])).at(density) if finer else self.dense

    def curve(self, granularity: str = FINEST) -> Curve:
        """The curve of one granularity: at most the dense cost, as zeros can be multiplied.

        Raises:
            UsageError: if it was not measured.
        """
        if granularity not in self.curves:
            raise UsageError(f"granularity {granularity!r} has no costs here, but {', '.join(self.curves)} have")
        found = self.curves[granularity]
        return Curve(found.densities, tuple(min(cost, max(self.dense, found.costs[0])) for cost in found.costs))

    @property
    def floor(self) -> float:
        """What it costs when it keeps next to nothing, by the granularity where that is least."""
        return min([self.dense, *(self.curve(name).costs[0] for name in self.curves)])
