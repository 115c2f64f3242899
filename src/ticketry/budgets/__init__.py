"""Costs of a model on a machine, and masks that meet a cost budget; public as `ticketry.cost`.

`cost_model` stores costs by layer and density. `timing` measures costs on this machine; `model_costs` calls it,
estimates costs for a GPU, or counts them. `allocation` and `layer_choice` find masks for a budget; `latency`
meets the latency budget of a `request` by measurement. `pruner` finds masks for searches.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.budgets.cost_model import CostModel, Estimate
    from ticketry.budgets.latency import meet
    from ticketry.budgets.model_costs import GpuProfile, load, model, profile
    from ticketry.budgets.request import Met

__all__ = [
    "CostModel",
    "Estimate",
    "GpuProfile",
    "Met",
    "load",
    "meet",
    "model",
    "profile",
]

_MODULES = {
    "CostModel": "cost_model",
    "Estimate": "cost_model",
    "GpuProfile": "model_costs",
    "Met": "request",
    "load": "model_costs",
    "meet": "latency",
    "model": "model_costs",
    "profile": "model_costs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package does not load torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ticketry.cost' has no attribute {name!r}")
    return getattr(import_module(f"ticketry.budgets.{_MODULES[name]}"), name)
