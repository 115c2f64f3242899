"""Build a recipe's optimiser, convert its state to and from named tensors, and compute the learning rate of a step."""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.sharding import is_sharded, local_shard, shard_like
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe


class Trainable(Protocol):
    """A module, or another object that has named parameters."""

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


def make_optimizer(recipe: Recipe, model: Trainable) -> Optimizer:
    """Return the recipe's optimiser for all parameters; use torch's fused form, which is faster, where possible."""
    parameters = list(model.parameters())
    unfused = any(map(torch.is_complex, parameters)) or (recipe.optimizer == "sgd" and any(map(is_sharded, parameters)))
    # torch has no fused form for complex parameters, nor fused SGD for sharded ones.
    form = {"foreach": True} if unfused else {"fused": True}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            **form,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    betas = (recipe.momentum, recipe.beta2)
    return kind(parameters, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, **form)


def optimizer_tensors(optimizer: Optimizer, model: Trainable) -> dict[str, Tensor]:
    """Return the tensors in the optimiser's state (momentum, moments, counts), named ``parameter/entry``."""
    return {
        f"{name}/{entry}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Optimizer, model: Trainable, tensors: dict[str, Tensor]) -> None:
    """Load tensors that `optimizer_tensors` returned into an optimiser; give them the parameters' memory layout."""
    position = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if tensor.shape == parameter.shape and tensor.dim():
            own = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
            local_shard(own).copy_(shard_like(tensor, parameter))
            tensor = own
        state.setdefault(position[name], {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# torch.optim.lr_scheduler.OneCycleLR's defaults, after Smith & Topin (2018); momentum is not cycled here.
_ONECYCLE_RISE = 0.3
_ONECYCLE_START = 25.0
_ONECYCLE_END = 1e4


def learning_rate(recipe: Recipe, step: int, *, total: int, per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: has the schedule.
        step: number of the step, from 0. From step `total` on, the learning rate is that of the last step.
        total: number of steps of the training.
        per_epoch: number of steps in an epoch.
    """
    step = min(step, max(total - 1, 0))
    warmup = Step.parse(recipe.warmup).iterations(per_epoch=per_epoch, total=total)
    if recipe.schedule == "onecycle":
        return recipe.lr * _onecycle_factor(step, total, warmup or _ONECYCLE_RISE * total)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * _after_warmup(recipe, step, warmup, total, per_epoch)


def _after_warmup(recipe: Recipe, step: int, warmup: int, total: int, per_epoch: int) -> float:
    """Return the learning rate of a step after warm-up, divided by the recipe's learning rate."""
    if recipe.schedule == "multistep":
        drops = [Step.parse(point).iterations(per_epoch=per_epoch, total=total) for point in recipe.milestones]
        factor: float = recipe.gamma ** sum(drop <= step for drop in drops)
        return factor
    share = (step - warmup) / max(total - warmup, 1)
    if recipe.schedule == "cosine":
        return (1 + cos(pi * share)) / 2
    if recipe.schedule == "linear":
        return 1 - share
    return 1.0


def _onecycle_factor(step: int, total: int, rise: float) -> float:
    peak, end = rise - 1, total - 1
    low, lowest = 1 / _ONECYCLE_START, 1 / _ONECYCLE_START / _ONECYCLE_END
    if step <= peak:
        return _cosine_between(low, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine_between(1.0, lowest, (step - peak) / (end - peak) if end > peak else 1.0)


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2
