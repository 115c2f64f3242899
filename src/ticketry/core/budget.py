"""The best-scored weights that a budget of multiplications pays for.

Each weight of a layer costs as many multiplications as there are places it is applied at: a convolution's early, large
planes are dear, a linear layer is cheap. The kept score is largest, within the budget, for the weights with the most
score a multiplication (the relaxed knapsack: one Lagrange multiplier over all layers; Dantzig 1957). Where scores are
what is lost without a weight, layers are worth what `costs.mixed` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.costs.allocation import Flat
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.least import candidates, check_floor, in_units, total_of
from ticketry.core.costs.mixed import Choice
from ticketry.core.costs.weight_uses import COUNTED, times_used
from ticketry.core.mask import Mask
from ticketry.core.pattern import share_of
from ticketry.core.scope import Scope
from ticketry.errors import LayerCollapseError, UsageError


def uses(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, int]:
    """Parameter name -> multiplications that one weight of it takes in a call, from a call of `model` as in eval mode.

    Padding counts as any other input. Of a layer that is called several times, all calls count, and so does what others
    do with its weight.

    Args:
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.

    Raises:
        UsageError: for a parameter in scope that no product of the call has as a factor.
    """
    parameters, known = scope.parameters(model), counted(model, scope)
    found = times_used(model, parameters, example_inputs)
    if unknown := [name for name in parameters if name not in known and not found[name]]:
        raise UsageError(
            f"multiplications are counted of linear and convolution layers and other products, not of"
            f" {', '.join(unknown)}: spare them in the scope, or ask for a density"
        )
    if idle := [name for name, times in found.items() if not times]:
        raise UsageError(f"a call with the example inputs does not use {', '.join(idle)}: spare them in the scope")
    return found


def counted(model: nn.Module, scope: Scope) -> list[str]:
    """The parameters in scope whose multiplications `uses` counts."""
    weights = {
        id(weight)
        for module in model.modules()
        if isinstance(module, COUNTED) and (weight := module._parameters.get("weight")) is not None
    }
    return [name for name, parameter in scope.parameters(model).items() if id(parameter) in weights]


def allocate_multiplications(
    scores: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """The mask of the most score a multiplication, with at most a share `flops` of all multiplications of these layers.

    What is left of the budget is less than the dearest weight costs. Ties break by position, the earlier is kept.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        prices: parameter name -> multiplications that one of its weights takes: see `uses`.
        flops: share of the multiplications of these layers, 0 < flops <= 1 or "25%".
        within: a mask of the candidates.
        keep_at_least: weights that every layer keeps, its best.

    Raises:
        UsageError: for a share outside (0, 1], or scores below 0.
        MaskError: for scores that are not numbers.
        LayerCollapseError: if a layer would be left empty; it says the least budget that leaves a weight in each. If
            the budget does not pay for `keep_at_least` weights in each layer, see `check_floor`.
    """
    share = checked_flops(flops)
    flat = Flat.of(scores, within)
    parts = zip(scores, flat.values, strict=True)
    each = tuple(torch.full((len(values),), prices[name], dtype=torch.int64) for name, values in parts)
    sizes = {name: score.numel() for name, score in scores.items()}
    total = total_of(sizes, prices)
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    check_multiplications(shapes, prices, share, within=within, least=keep_at_least)
    chosen, worth, price = flat.taken(each, in_units(share, total), keep_at_least)
    mask = flat.mask(chosen)
    if empty := [name for name, part in mask.items() if not bool(part.any())]:
        raise _collapsed(share, empty, flat.least(worth, price), total)
    return mask


def allocate_worth(
    values: Mapping[str, Tensor],
    prices: Mapping[str, int],
    flops: float | str,
    *,
    within: Mask | None = None,
    keep_at_least: int = 0,
) -> Mask:
    """The mask whose layers are worth most together, see `costs.mixed`, for a share `flops` of the multiplications.

    No layer is left empty. Arguments and errors are those of `allocate_multiplications`.
    """
    share, least = checked_flops(flops), max(1, keep_at_least)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    check_multiplications(shapes, prices, share, within=within, least=least)
    costs = in_multiplications({name: value.numel() for name, value in values.items()}, prices)
    choice = Choice(values, costs, only=FINEST, least=least, among=within)
    return choice.within(share * costs.dense).mask


def in_multiplications(sizes: Mapping[str, int], prices: Mapping[str, int]) -> CostModel:
    """What layers of so many weights cost, by the multiplications that each weight takes."""
    whole = {name: float(price * sizes[name]) for name, price in prices.items()}
    layers = {
        name: LayerCost(sizes[name], dense, {FINEST: Curve((0.0, 1.0), (0.0, dense))}) for name, dense in whole.items()
    }
    return CostModel("multiplications", layers, 0.0, 0.0, {"of": "the layers in scope"})


def checked_flops(flops: float | str) -> float:
    """The share as a number; `UsageError` outside (0, 1]."""
    share = share_of(flops)
    if not 0 < share <= 1:
        raise UsageError(f"flops is the share of multiplications that is left, 0 < flops <= 1, not {flops}")
    return share


def check_multiplications(
    shapes: Mapping[str, tuple[int, ...]],
    prices: Mapping[str, int],
    share: float,
    *,
    within: Mask | None,
    least: int,
) -> None:
    """Make sure that a share of the multiplications pays for `least` weights in each layer, if any are to be kept.

    Raises:
        LayerCollapseError: if it does not, see `check_floor`.
    """
    if least:
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        available = candidates(shapes, within)
        check_floor(sizes, prices, share, least=least, what="multiplications", available=available)


def _collapsed(share: float, empty: list[str], least: int | None, total: int) -> LayerCollapseError:
    higher = "" if least is None else f"each is left some at {-(-10_000 * least // total) / 10_000:g}: choose it, "
    return LayerCollapseError(
        f"{share:g} of the multiplications would leave no weight in {', '.join(empty)} (layer collapse)",
        f"{higher}spare the layer",
        keep="keep a weight in each",
    )
