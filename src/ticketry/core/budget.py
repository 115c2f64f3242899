"""The best-scored weights that a budget of multiplications pays for.

Each weight of a layer costs as many multiplications as there are places it is applied at: a convolution's early, large
planes are dear, a linear layer is cheap. The kept score is largest, within the budget, for the weights with the most
score a multiplication (the relaxed knapsack: one Lagrange multiplier over all layers; Dantzig 1957).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.pattern import share_of
from ticketry.core.scope import Scope
from ticketry.errors import LayerCollapseError, MaskError, UsageError

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def uses(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, int]:
    """Parameter name -> multiplications that one weight of it takes in a call, from a call of `model` as in eval mode.

    Padding counts as any other input. Of a layer that is called several times, all calls count.

    Args:
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.

    Raises:
        UsageError: for a parameter in scope that is no weight of a linear or convolution layer, or that no call reads.
    """
    parameters = scope.parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = dict.fromkeys(parameters, 0)
    counted: set[str] = set()

    def count(name: str, module: nn.Module, _: Any, output: Tensor) -> None:
        found[name] += output.numel() // int(getattr(module, "weight").shape[0])  # noqa: B009

    handles = []
    for module in model.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None and isinstance(module, _COUNTED):
            counted.add(name)
            handles.append(module.register_forward_hook(partial(count, name)))
    modes = {module: module.training for module in model.modules()}
    try:
        if unknown := [name for name in parameters if name not in counted]:
            raise UsageError(
                f"multiplications are counted of linear and convolution layers, not of {', '.join(unknown)}:"
                " spare them in the scope, or ask for a density"
            )
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _call(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if idle := [name for name, times in found.items() if not times]:
        raise UsageError(f"a call with the example inputs does not use {', '.join(idle)}: spare them in the scope")
    return found


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        model(*inputs)
    else:
        model(inputs)


def allocate_multiplications(
    scores: Mapping[str, Tensor], prices: Mapping[str, int], flops: float | str, *, within: Mask | None = None
) -> Mask:
    """The mask of the most score a multiplication, with at most a share `flops` of all multiplications of these layers.

    What is left of the budget is less than the dearest weight costs. Ties break by position, the earlier is kept.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        prices: parameter name -> multiplications that one of its weights takes: see `uses`.
        flops: share of the multiplications of these layers, 0 < flops <= 1 or "25%".
        within: a mask of the candidates.

    Raises:
        UsageError: for a share outside (0, 1], or scores below 0.
        MaskError: for scores that are not numbers.
        LayerCollapseError: if a layer would be left empty; it says the least budget that leaves a weight in each.
    """
    share = share_of(flops)
    if not 0 < share <= 1:
        raise UsageError(f"flops is the share of multiplications that is left, 0 < flops <= 1, not {flops}")
    flat = {name: score.detach().cpu().flatten().double() for name, score in scores.items()}
    for name, values in flat.items():
        if bool(values.isnan().any()):
            raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
        if bool((values < 0).any()):
            raise UsageError(f"scores below 0, as {name!r} has, cannot be weighed against multiplications")
    sizes = [len(values) for values in flat.values()]
    price = torch.cat([torch.full((len(values),), prices[name]) for name, values in flat.items()])
    budget = int(Fraction(str(share)) * int(price.sum()))  # in decimal digits, as a density is
    worth = torch.cat(list(flat.values())) / price
    if within is not None:
        worth[~torch.cat([within[name].cpu().flatten() for name in flat])] = -1.0
    order = worth.argsort(descending=True, stable=True)
    order = order[worth[order] >= 0]
    spent = price[order].cumsum(0)
    chosen = torch.zeros(len(price), dtype=torch.bool)
    chosen[order[spent <= budget]] = True
    parts = dict(zip(flat, torch.split(chosen, sizes), strict=True))
    if empty := [name for name, part in parts.items() if not bool(part.any())]:
        raise _collapsed(share, empty, _least(order, spent, sizes), int(price.sum()))
    return Mask({name: part.reshape(scores[name].shape) for name, part in parts.items()})


def _least(order: Tensor, spent: Tensor, sizes: list[int]) -> int | None:
    """What is spent when each layer has a weight; None if there is no such budget."""
    layer = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[order]
    firsts = [(layer == index).nonzero().flatten()[:1] for index in range(len(sizes))]
    if not all(len(first) for first in firsts):
        return None
    return int(spent[max(int(first) for first in firsts)])


def _collapsed(share: float, empty: list[str], least: int | None, total: int) -> LayerCollapseError:
    higher = "" if least is None else f"; each is left some at {-(-10_000 * least // total) / 10_000:g}: choose it"
    return LayerCollapseError(
        f"{share:g} of the multiplications would leave no weight in {', '.join(empty)} (layer collapse){higher},"
        " or spare the layer"
    )
