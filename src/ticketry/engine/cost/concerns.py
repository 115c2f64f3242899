"""What a user should know of a mask before training with it: stages with hardly any weights, and estimates far off."""

from __future__ import annotations

from collections.abc import Iterator

from ticketry.core.costs.granularity import CHANNELS
from ticketry.core.costs.stages import LEAST, stage_densities
from ticketry.engine.cost.meeting import Met

_WRONG = 0.2
"""Relative error of the first estimate that is worth a warning."""


def concerns(found: Met) -> Iterator[str]:
    """Yield what a user should know of a mask before training with it.

    Args:
        found: the result of a budget.
    """
    densities = stage_densities((row.name, row.kept, row.total) for row in found.mask.table())
    low = {stage: density for stage, density in densities.items() if density < LEAST}
    others = [one for one in found.considered if one.structure != found.structure and not one.why_not]
    denser = max(others, key=lambda one: one.density, default=None)
    if denser is not None and denser.density > found.mask.density:
        instead = f"{denser} for this budget; or request more time"
    else:
        instead = "request more time, or try structure='channels', which keeps dense kernels"
        if found.structure == CHANNELS or denser is not None:
            instead = "request more time, or start from a smaller network"
    other = f" Instead: {denser}" if denser is not None and denser.density > found.mask.density else ""
    if denser is None:
        other = " Leave structure out to have all granularities timed"
    if low:
        worst = min(low, key=lambda stage: low[stage])
        more = f" and {len(low) - 1} more stages are below {100 * LEAST:g} %" if len(low) > 1 else ""
        yield (
            f"{worst} retains {100 * low[worst]:.2g} % of its weights{more}: retraining seldom recovers the accuracy."
            f" Instead: {instead}"
        )
    if abs(found.first - 1) > _WRONG:
        yield (
            f"the first mask was estimated at {100 * found.first:.0f} % of its measured latency; the budget is met by"
            f" measurement, but how it is spread over the layers is uncertain.{other}"
        )
