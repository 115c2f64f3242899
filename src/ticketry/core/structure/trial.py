"""Groups tried out: channels are removed, and the outputs compared with those of the masked model.

What following the operations cannot see is numbers in the user's code: a width written out in a `view`, a scale
computed from a width. A model with such a number fails to run without its channels, or gives other outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.scope import named_parameters
from ticketry.core.structure.group import Structure, structure_of
from ticketry.core.structure.plan import rebuild
from ticketry.core.structure.select import Removed, kept_indices, mask_tensors, plan_for, tensors_of
from ticketry.core.structure.trace import (
    Inputs,
    Site,
    double_copy,
    double_inputs,
    plain_operations,
    run_model,
    unwrapped,
)
from ticketry.errors import StructureError

TOLERANCE = 1e-6
"""Of the largest output. Far above what float64 leaves, far below what a wrong channel does; some models cast to
float32 in between."""


def tried_structure(model: nn.Module, example_inputs: Inputs) -> Structure:
    """The groups of `model`; those whose removal changes its outputs, or breaks it, stay.

    Where a dimension is cut into several and its channels turn out to stay, another of them is taken for the one that
    can be narrower: after the width of attention heads their number.

    Raises:
        StructureError: if the model does not run on the inputs.
    """
    twin, inputs = _scrambled(double_copy(unwrapped(model)).eval()), double_inputs(example_inputs)
    choices: dict[Site, int] = {}
    best = last = _settled(twin, inputs, structure_of(model, example_inputs, choices))
    for _ in range(_MOST_CHOICES):
        closed = [cut for cut in last.cuts if not all(last.groups[position].prunable for position in cut.groups)]
        others = {
            cut.site: choices.get(cut.site, 0) + 1 for cut in closed if choices.get(cut.site, 0) + 1 < cut.options
        }
        if not others:
            break
        choices |= others
        last = _settled(twin, inputs, structure_of(model, example_inputs, choices))
        best = last if last.free > best.free else best
    return best


_MOST_CHOICES = 2
"""Batch and length aside, a dimension is rarely cut into more than three, as query, key and value of all heads are."""


def _settled(twin: nn.Module, inputs: tuple[Any, ...], structure: Structure) -> Structure:
    """Halve what fails until each culprit is alone, then test the rest with what was found good."""
    draw = np.random.default_rng(0)
    chosen: dict[int, Any] = {}
    for position, group in enumerate(structure.groups):
        if group.prunable:
            flags = np.zeros(group.size, dtype=bool)
            flags[draw.permutation(group.size)[: max(group.size // 2, 1)]] = True
            chosen[position] = flags
    good: list[int] = []
    bad: dict[int, str] = {}
    waiting = [list(chosen)] if chosen else []
    while waiting:
        several = waiting.pop(0)
        problem = difference(twin, inputs, structure, {position: chosen[position] for position in (*good, *several)})
        if not problem:
            good += several
        elif len(several) == 1:
            bad[several[0]] = f"the model is not the same without its channels: {problem}"
        else:
            waiting[:0] = [several[: len(several) // 2], several[len(several) // 2 :]]
    return structure.staying(bad)


def difference(twin: nn.Module, inputs: tuple[Any, ...], structure: Structure, removed: Removed) -> str:
    """What is wrong with the model without these channels; empty if it is the masked model's equal."""
    masked = copy.deepcopy(twin)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(masked).items()}
    kept = kept_indices(structure, shapes, removed)
    parameters = named_parameters(masked)
    for name, mask in mask_tensors(parameters, shapes, kept).items():
        parameters[name].masked_fill_(~mask, 0)
    return compare(masked, rebuild(masked, plan_for(masked, structure, removed)), inputs)


def compare(masked: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> str:
    """How the outputs of two models differ; empty if they do not."""
    try:
        with plain_operations():
            wanted = run_model(masked, inputs)
        with plain_operations():
            found = run_model(small, inputs)
    except StructureError as error:
        return str(error.__cause__).splitlines()[0] if error.__cause__ and str(error.__cause__) else str(error)
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return "its outputs have other shapes"
    worst = max((_distance(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)
    return "" if worst <= TOLERANCE else f"its outputs differ by {worst:.2g} of the largest"


def _distance(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one.double() - other.double()).abs())
    finite = one.double().nan_to_num(0.0, 0.0, 0.0).abs().max()
    return float(apart.max() / torch.clamp(finite, min=1e-12)) if bool(apart.isfinite().all()) else float("inf")


def _scrambled(model: nn.Module) -> nn.Module:
    """Weights away from where zeros and ones would hide a mistake: new biases, norms, last layers of a residual."""
    draw = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=draw, dtype=torch.float64)

    for parameter in model.parameters():
        if parameter.is_floating_point():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(noise(parameter), alpha=0.5 * spread if spread > 0 else 0.1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean += 0.1 * noise(module.running_mean)
            module.running_var *= 0.5 + torch.rand(module.running_var.shape, generator=draw, dtype=torch.float64)
    return model
