"""What a model costs on a machine, and masks that meet a budget: `ticketry.cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.core.costs.cost_model import CostModel, Estimate
    from ticketry.engine.cost.calibration import calibrate
    from ticketry.engine.cost.latency_budgets import meet
    from ticketry.engine.cost.machine_profile import MachineProfile
    from ticketry.engine.cost.meeting import Met
    from ticketry.engine.cost.on_gpu import GpuProfile
    from ticketry.engine.cost.profiles import profile
    from ticketry.engine.cost.public import load, model

__all__ = [
    "CostModel",
    "Estimate",
    "GpuProfile",
    "MachineProfile",
    "Met",
    "calibrate",
    "load",
    "meet",
    "model",
    "profile",
]

_WHERE = {
    "CostModel": "core.costs.cost_model",
    "Estimate": "core.costs.cost_model",
    "GpuProfile": "engine.cost.on_gpu",
    "MachineProfile": "engine.cost.machine_profile",
    "Met": "engine.cost.meeting",
    "calibrate": "engine.cost.calibration",
    "load": "engine.cost.public",
    "meet": "engine.cost.latency_budgets",
    "model": "engine.cost.public",
    "profile": "engine.cost.profiles",
}


def __getattr__(name: str) -> Any:
    """Imported when first used: kernels alone need no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ticketry.cost' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ticketry.{_WHERE[name]}"), name)
