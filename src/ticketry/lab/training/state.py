"""Build models and optimisers, define the state of a training, and convert the state for the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.scope import name_without_wrappers
from ticketry.core.sharding import is_sharded, local_shard, shard_like
from ticketry.core.ticket.state_dicts import load_state
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry.tasks.task_checks import build_model
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix_seeds, seed_torch


@dataclass
class TrainingState:
    """Holds all that is needed to resume a training; the step determines the data order and random numbers."""

    step: int
    model: dict[str, Tensor]
    """Weights and buffers of the network, by name."""
    optimizer: dict[str, Tensor]
    """State of the optimiser, see `optimizer_tensors`."""
    losses: Tensor
    """float32 [number of steps so far]: the loss of each step since the segment's start."""
    variants: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State of each change to the training (variant), by the variant's name; see `Effect.state`."""
    session: dict[str, Tensor] = field(default_factory=dict)
    """State of the session, see `Session.state`; empty for most tasks."""


def pack_state(state: TrainingState, variants: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return one dict with all tensors of a training state except the model's, and with the tensors of `variants`."""
    parts = {"optimizer/": state.optimizer, "session/": state.session}
    parts |= {f"variants/{name}/": dict(own) for name, own in variants.items()}
    packed = {name: value for prefix, tensors in parts.items() for name, value in add_prefix(prefix, tensors).items()}
    return packed | {"losses": state.losses}


def unpack_state(step: int, model: dict[str, Tensor], packed: Mapping[str, Tensor]) -> TrainingState:
    """Return the training state, given its step, the model's tensors, and the result of `pack_state`."""
    variants: dict[str, dict[str, Tensor]] = {}
    for key, value in select_prefix(packed, "variants/").items():
        name, _, entry = key.partition("/")
        variants.setdefault(name, {})[entry] = value
    return TrainingState(
        step, model, select_prefix(packed, "optimizer/"), packed["losses"], variants, select_prefix(packed, "session/")
    )


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, and remove the prefix from the names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def initial_state(task: Task, seed: int) -> dict[str, Tensor]:
    """Return weights and buffers of a new model of `task`, initialised with `seed`."""
    with private_random_state():
        seed_torch(mix_seeds(seed, "initialisation"))
        return copy_state(build_model(task))


def rebuild_model(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a model with given weights and buffers; its other random values are the same each time."""
    with private_random_state():
        seed_torch(mix_seeds(0, "rebuilt"))
        model = build_model(task)
    load_state(model, {name: state[name_without_wrappers(name)] for name in model.state_dict()})
    return model


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's weights and buffers on the CPU, by name."""
    return {
        name_without_wrappers(name): value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the model's state dict leaves out, by name, without copying them."""
    saved = model.state_dict()
    return {name_without_wrappers(name): buffer for name, buffer in model.named_buffers() if name not in saved}


# -- optimisers --------------------------------------------------------------------------------------------------------


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
    """Load tensors that `optimizer_tensors` returned into an optimiser, in the memory layout of the parameters."""
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
    """Return the learning rate of a step (from 0); from step `total` on, return the rate of the last step."""
    step = min(step, max(total - 1, 0))
    warmup = Step.parse(recipe.warmup).iterations(per_epoch=per_epoch, total=total)
    if recipe.schedule == "onecycle":
        return recipe.lr * _onecycle_rate_factor(step, total, warmup or _ONECYCLE_RISE * total)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * _rate_after_warmup(recipe, step, warmup, total, per_epoch)


def _rate_after_warmup(recipe: Recipe, step: int, warmup: int, total: int, per_epoch: int) -> float:
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


def _onecycle_rate_factor(step: int, total: int, rise: float) -> float:
    peak, end = rise - 1, total - 1
    low, lowest = 1 / _ONECYCLE_START, 1 / _ONECYCLE_START / _ONECYCLE_END
    if step <= peak:
        return _cosine_interpolation(low, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine_interpolation(1.0, lowest, (step - peak) / (end - peak) if end > peak else 1.0)


def _cosine_interpolation(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * share)) / 2
