"""Measure time, memory, FLOPs and energy of one training step or of a whole training, in any training loop.

>>> from ticketry.lab.costs.meters import Meter, measure_step
>>> step = measure_step(model, loss, batch, optimizer, mask=mask)  # doctest: +SKIP
>>> with Meter(optimizer, step=step) as meter:                     # doctest: +SKIP
...     train(model)
>>> meter.cost.energy, meter.cost.energy_source                    # doctest: +SKIP
"""

from __future__ import annotations

from ticketry.lab.costs.meters.flops import FlopsByWeight, StepFlops, flops_by_weight, step_flops
from ticketry.lab.costs.meters.step import StepCost, allocated_at_peak, measure_step, resident_at_peak
from ticketry.lab.costs.meters.training import NOT_MEASURED, Cost, Meter

__all__ = [
    "NOT_MEASURED",
    "Cost",
    "FlopsByWeight",
    "Meter",
    "StepCost",
    "StepFlops",
    "allocated_at_peak",
    "flops_by_weight",
    "measure_step",
    "resident_at_peak",
    "step_flops",
]
