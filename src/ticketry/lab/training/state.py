"""Define the state of a training, convert it for the store, and build models with initial or given weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ticketry.core.scope import normal_name
from ticketry.core.ticket.state_dicts import load_state
from ticketry.tasks.task import Task
from ticketry.tasks.task_checks import build_model
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix, seed_torch


@dataclass
class TrainingState:
    """Holds all that is needed to resume a training, except for data order and random numbers, which the step sets."""

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
    """Return one dict with the tensors of optimiser, session and losses of `state`, and with those of `variants`."""
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
    """Return the tensors with `prefix` before each name."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, and remove the prefix from the names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def initial_state(task: Task, seed: int) -> dict[str, Tensor]:
    """Return weights and buffers of a new model of `task`, initialised with `seed`."""
    with private_random_state():
        seed_torch(mix(seed, "initialisation"))
        return copy_state(build_model(task))


def rebuild_model(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a model of the task with the given weights and buffers.

    If the model has random values that are not in its state dict, such as in a non-persistent buffer, they are the same
    in each model.
    """
    with private_random_state():
        seed_torch(mix(0, "rebuilt"))
        model = build_model(task)
    load_state(model, {name: state[normal_name(name)] for name in model.state_dict()})
    return model


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's weights and buffers on the CPU, by name."""
    return {
        normal_name(name): value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the model's state dict leaves out, by name, without copying them."""
    saved = model.state_dict()
    return {normal_name(name): buffer for name, buffer in model.named_buffers() if name not in saved}
