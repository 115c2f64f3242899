"""An optimiser that goes on with the smaller model where it was with the larger."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.scope import named_parameters
from ticketry.core.structure.plan import ShrinkPlan
from ticketry.core.structure.twin import unwrapped
from ticketry.errors import StructureError


def shrink_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: ShrinkPlan) -> Optimizer:
    """A new optimiser for `small` with the settings and the state (momentum, moments, step counts) of `optimizer`.

    State with an entry for each weight is cut as the weights were: the next steps are those of the masked model.
    A learning rate schedule that drives the old optimiser has to be made anew for this one.

    Args:
        optimizer: of parameters of `model`; it is not changed.
        model: the model that was shrunk.
        small: what `rebuild(model, plan)` or `shrink` gave.
        plan: of `shrink_plan`.

    Raises:
        StructureError: if the optimiser has parameters that are not the model's, or state that cannot be cut.
    """
    names = {id(parameter): name for name, parameter in named_parameters(unwrapped(model)).items()}
    new = named_parameters(unwrapped(small))
    groups: list[dict[str, Any]] = []
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise StructureError(
                    f"parameter group {number} of the optimiser has a parameter that is not the model's: give the model"
                    " that the optimiser trains"
                )
        listed = [names[id(parameter)] for parameter in group["params"]]
        groups.append({**group, "params": [new[name] for name in listed]})
        for name, parameter in zip(listed, group["params"], strict=True):
            if parameter in optimizer.state:
                state[new[name]] = _cut_state(optimizer.state[parameter], parameter, name, plan)
    known = inspect.signature(type(optimizer).__init__).parameters
    smaller = type(optimizer)(groups, **{key: value for key, value in optimizer.defaults.items() if key in known})
    for parameter, values in state.items():
        smaller.state[parameter] = values
    return smaller


def _cut_state(state: dict[str, Any], parameter: Tensor, name: str, plan: ShrinkPlan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            found[key] = value
        elif value.shape == parameter.shape:
            found[key] = plan.cut(name, value).clone()
        elif value.numel() == 1 or name not in plan.kept:
            found[key] = value.clone()
        else:
            raise StructureError(
                f"the optimiser's {key!r} of {name!r} has the shape {tuple(value.shape)} and the parameter"
                f" {tuple(parameter.shape)}: it cannot be cut; start a new optimiser for the smaller model"
            )
    return found
