"""What one layer costs by density and granularity."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST, Granularity, granularities
from ticketry.errors import UsageError


class LayerCost(Struct, frozen=True):
    """One prunable weight."""

    weights: int
    """Elements of it."""
    dense: float
    """What it costs where no layer is pruned, in the unit of the model."""
    curves: dict[str, Curve]
    """Granularity (``weights``, ``rows:16``) -> cost by density; empty if no mask makes it cheaper."""
    all_rows: dict[str, Curve] = {}
    """The same in the layout for rows that share their columns, where the whole network is run in it."""

    def at(self, density: float, granularity: str = FINEST) -> float:
        """Cost at a density; of a granularity that was not measured, that of the next finer one."""
        return self._at(self.curves, density, granularity)

    def at_in_rows(self, density: float, granularity: str = FINEST) -> float:
        """The same in the layout for rows that share their columns; single weights cost what all of them do there."""
        return self._at(self.all_rows, density, granularity) if density < 1 else self.dense

    def _at(self, curves: Mapping[str, Curve], density: float, granularity: str) -> float:
        wanted = Granularity.parse(granularity)
        finer = [one for one in granularities(curves) if one <= wanted]
        return curves[str(finer[-1])].at(density) if finer else self.dense

    def curve(self, granularity: str = FINEST) -> Curve:
        """The curve of one granularity.

        Raises:
            UsageError: if it was not measured.
        """
        if granularity not in self.curves:
            raise UsageError(
                f"granularity {granularity!r} has no costs here, but {', '.join(self.curves)} have: measure it, by"
                f" tk.cost.model(..., granularities=({granularity!r},))"
            )
        return self.curves[granularity]

    @property
    def floor(self) -> float:
        """What it costs when it keeps next to nothing, by the granularity where that is least."""
        return min([self.dense, *(curve.costs[0] for curve in (*self.curves.values(), *self.all_rows.values()))])
