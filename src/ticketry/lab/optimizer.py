"""Optimisers of a recipe, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.tasks.recipe import Recipe


class Trainable(Protocol):
    """A module, or the gates of one."""

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


def make_optimizer(recipe: Recipe, model: Trainable) -> Optimizer:
    """The recipe's optimiser over all parameters, in the fused form (one call a step for all of them)."""
    parameters = list(model.parameters())
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    betas = (recipe.momentum, recipe.beta2)
    return kind(parameters, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True)


def optimizer_tensors(optimizer: Optimizer, model: Trainable) -> dict[str, Tensor]:
    """The optimiser's state as ``parameter/entry`` -> tensor (momentum, moments, counts)."""
    return {
        f"{name}/{entry}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Optimizer, model: Trainable, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in the memory layout of the parameters (fused kernels need it)."""
    position = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if tensor.shape == parameter.shape and tensor.dim():
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(position[name], {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
