"""A small network and made-up costs of it, with the cost of a mask written out."""

from __future__ import annotations

from typing import Any

import ticketry as tk
from ticketry.budgets.cost_model import CostModel, Curve, LayerCost

COMMON: dict[str, Any] = {"replicates": 1, "recipe": {"length": "4it"}, "workers": 0}


def task() -> tk.Task:
    return tk.task("digits", model="conv-2@0.0625")


def costs(unit: Any = "seconds", each: float = 1e-5) -> CostModel:
    """Costs whose curves are above their convex hulls: half of the weights take most of the time."""
    sizes = {name: value.numel() for name, value in task().build().named_parameters() if name.endswith("weight")}
    return CostModel(
        unit,
        {
            name: LayerCost(
                size,
                each * size,
                {"weights": Curve((0.0, 0.5, 1.0), (0.1 * each * size, 0.8 * each * size, each * size))},
            )
            for name, size in sizes.items()
        },
        fixed=100 * each,
    )


def slowly(mask: tk.Mask, model: CostModel) -> float:
    """The cost of a mask by its definition, layer by layer."""
    found = model.fixed
    for name, kept in mask.items():
        count, share = kept.numel(), float(kept.sum()) / kept.numel()
        each = model.layers[name].dense / count
        found += count * each * (0.1 + 1.4 * share if share <= 0.5 else 0.8 + 0.4 * (share - 0.5))
    return found
