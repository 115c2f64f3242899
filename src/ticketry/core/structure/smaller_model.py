"""Build a smaller model without the channels that a mask removes, and an optimiser to continue its training."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.mask import Mask
from ticketry.core.scope import Patterns, named_parameters, unwrapped
from ticketry.core.structure import model_copies, plans
from ticketry.core.structure.coupling import ChannelGroup, Structure
from ticketry.core.structure.model_copies import Inputs, compare_models, copy_arguments
from ticketry.core.structure.plans import Flags, ShrinkPlan
from ticketry.core.structure.removal_trial import tried_structure
from ticketry.errors import LayerCollapseError, MaskError, StructureError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def shrink(model: nn.Module, mask: Mask, example_inputs: Inputs, *, spare: Patterns = ()) -> nn.Module:
    """Return a smaller copy of `model` without the channels that `mask` removes, with the masked model's outputs.

    The copy has the same class, names, devices and types; weights, norm statistics and other buffers are cut. Before
    the copy is returned, its outputs and the masked model's are compared on the example inputs, in float64, in
    evaluation and in training mode. Integer attributes of modules that may count channels are changed only if the model
    needs the change on these inputs. To continue training use `shrink_optimizer`; dropout then draws other random
    numbers than in the larger model.

    Args:
        model: any module; it is not changed.
        mask: channel-wise mask, as from `structure.channels`: a mask that removes all coupled weights, biases, norm
            scales and norm shifts of each removed channel.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.
        spare: modules that are not traced, see `structure.channel_groups`.

    Raises:
        UsageError: if `mask` is not a mask.
        MaskError: if the mask does not fit the model or is not channel-wise. The message names the layer and the number
            of weights that are removed without their channel.
        LayerCollapseError: if the mask removes all channels of a group.
        StructureError: if the model cannot be traced, or its outputs differ without the channels.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> mask = tk.structure.channels(model, x, density=0.5)
        >>> small = tk.shrink(model, mask, x)
        >>> small[0].weight.shape, small[1].weight.shape, small[3].weight.shape
        (torch.Size([8, 3, 3, 3]), torch.Size([8]), torch.Size([8, 8, 3, 3]))
        >>> masked = mask.apply_(model)
        >>> torch.allclose(small(x), masked(x), atol=1e-6)
        True
    """
    return plans.rebuild(model, shrink_plan(model, mask, example_inputs, spare=spare))


@entry_point()
def shrink_plan(model: nn.Module, mask: Mask, example_inputs: Inputs, *, spare: Patterns = ()) -> ShrinkPlan:
    """Return the plan by which `shrink` builds the smaller model.

    `rebuild` builds a smaller model by the plan. The errors raised are those of `shrink`.

    Args:
        model: any module; it is not changed.
        mask: channel-wise mask, as from `structure.channels`.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.
        spare: modules that are not traced, see `structure.channel_groups`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = tk.structure.channels(model, torch.randn(2, 4), density=0.5)
        >>> plan = tk.structure.shrink_plan(model, mask, torch.randn(2, 4))
        >>> {name: plan.shape(name) for name in plan.shapes}
        {'0.bias': (4,), '0.weight': (4, 4), '2.weight': (2, 4)}
    """
    mask.parameters(model)
    return plan_for_structure(model, mask, example_inputs, tried_structure(model, example_inputs, spare))


def plan_for_structure(model: nn.Module, mask: Mask, example_inputs: Inputs, structure: Structure) -> ShrinkPlan:
    """Return the plan to remove the channels that `mask` removes, given the model's channel structure."""
    removed_indices = plans.flag_removed_indices(mask)
    removed = {
        position: plans.flag_removed_channels(group, removed_indices) & group.prunable
        for position, group in enumerate(structure.groups)
    }
    names = {id(parameter): name for name, parameter in plans.named_tensors(model).items()}
    named = Mask({names[id(parameter)]: mask[name] for name, parameter in mask.parameters(model).items()})
    implied = plans.build_channel_mask(named, structure, plans.named_shapes(model), removed)
    if implied != named:
        raise MaskError(_describe_not_channel_wise(named, implied, structure, removed_indices))
    for position, group in enumerate(structure.groups):
        if removed[position].all():
            raise LayerCollapseError(f"the mask removes all {group.size} channels of {group.name} (layer collapse)")
    found = plans.ModelSizes(model).build_plan(structure, removed)
    _check_same_outputs(unwrapped(model), named, found, example_inputs)
    return found


def _check_same_outputs(inner: nn.Module, mask: Mask, found: ShrinkPlan, example_inputs: Inputs) -> None:
    for dtype in (torch.float64, model_copies.choose_tracing_dtype(inner)):
        masked, arguments = model_copies.copy_in_dtype(inner, dtype).eval(), copy_arguments(example_inputs, dtype)
        with torch.no_grad():
            mask.apply_(masked)
        cut = model_copies.copy_sharing_parameters(masked, plans.cut_model_tensors(masked, found))
        small = plans.set_module_sizes(cut, found)
        problem = compare_models(masked, small, arguments) or compare_models(masked, small, arguments, training=True)
        if problem is None or problem.ran:  # else other contents of the model may have their own type
            break
    if problem is not None:
        where = f" (in {problem.where})" if problem.where else ""
        raise StructureError(
            f"{type(inner).__name__} is not the same without the removed channels: {problem.text}{where};"
            " a number in its code stands for a width: compute it from shapes, or choose channels with"
            " structure.channels, which leaves such layers alone"
        )


def _describe_not_channel_wise(
    mask: Mask, implied: Mask, structure: Structure, removed_indices: dict[tuple[str, int], Flags]
) -> str:
    rows = []
    for name, kept in mask.items():
        stray = int((implied[name].cpu() & ~kept.cpu()).sum())
        if stray:
            rows.append((stray, int((~kept).sum()), name))
    stray, removed, name = max(rows, key=lambda row: row[0])
    return (
        f"the mask is not channel-wise: {stray:,} of the {removed:,} weights that it removes from {name!r} are in"
        f" channels that are not removed as a whole{_describe_example_channel(name, mask, structure, removed_indices)}."
        f" So it is in {len(rows)} of {len(mask)} tensors. Make a channel-wise mask, with structure.channels"
    )


def _describe_example_channel(
    name: str, mask: Mask, structure: Structure, removed_indices: dict[tuple[str, int], Flags]
) -> str:
    """Return text for an error: an example of a channel that the mask removes from tensor `name` but not elsewhere."""
    for group in structure.groups:
        for member in group.parameters:
            flags = removed_indices.get((name, member.dim)) if member.name == name else None
            for channel, indices in enumerate(member.indices if flags is not None else ()):
                if flags is not None and all(flags[i] for i in indices):
                    return (
                        f": channel {channel} of {group.name} {_explain_why_retained(group, channel, removed_indices)}"
                    )
    return ""


def _explain_why_retained(group: ChannelGroup, channel: int, removed_indices: dict[tuple[str, int], Flags]) -> str:
    if not group.prunable:
        return f"cannot be removed, for {group.reason}"
    for member in group.parameters:
        flags = removed_indices.get((member.name, member.dim))
        if flags is None:
            return f"is not removed from {member.name!r}, which the mask does not have"
        if not all(flags[i] for i in member.indices[channel]):
            return f"is not removed from {member.name!r} (dimension {member.dim})"
    return "is removed"


@entry_point()
def shrink_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: ShrinkPlan) -> Optimizer:
    """Return an optimiser for `small` that continues with the settings and the state of `optimizer`.

    The state (momentum, moments, step counts) is copied; state with an entry for each weight is cut like the weights.
    The next steps then equal the steps of the masked model. Learning rate schedules must be created again for the new
    optimiser.

    Args:
        optimizer: optimiser of parameters of `model`; it is not changed.
        model: the model from which `small` was made.
        small: the smaller model, from `rebuild(model, plan)` or `shrink`.
        plan: the plan of the smaller model, from `shrink_plan`.

    Raises:
        UsageError: if `plan` is not a plan.
        StructureError: if the optimiser has parameters of another model, or state that cannot be cut.

    Examples:
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(x).square().mean().backward()
        >>> optimizer.step()
        >>> mask = tk.structure.channels(model, x, density=0.5)
        >>> plan = tk.structure.shrink_plan(model, mask, x)
        >>> small = tk.structure.rebuild(model, plan)
        >>> optimizer = tk.structure.shrink_optimizer(optimizer, model, small, plan)
        >>> optimizer.state[small[0].weight]["momentum_buffer"].shape
        torch.Size([4, 4])
    """
    plans.require_plan(plan)
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
                state[new[name]] = _cut_optimizer_state(optimizer.state[parameter], parameter, name, plan)
    known = inspect.signature(type(optimizer).__init__).parameters
    smaller = type(optimizer)(groups, **{key: value for key, value in optimizer.defaults.items() if key in known})
    for parameter, values in state.items():
        smaller.state[parameter] = values
    return smaller


def _cut_optimizer_state(state: dict[str, Any], parameter: Tensor, name: str, plan: ShrinkPlan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        tensors = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Tensor)]
        if plan.kept and any(one.numel() > max(parameter.numel(), 1) for one in tensors):
            raise StructureError(
                f"the optimiser's {key!r} is of several parameters at once (LBFGS): it cannot be cut; start a new"
                " optimiser for the smaller model"
            )
        if not isinstance(value, Tensor):
            found[key] = deepcopy(value)
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
