"""The state of a training, its form in the store, and the states of models that it starts from."""

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
    """Everything needed to resume a training. Data order, augmentation and dropout are functions of the step."""

    step: int
    model: dict[str, Tensor]
    """Weights and buffers, by normalised name."""
    optimizer: dict[str, Tensor]
    losses: Tensor
    """float32 [step - first]: the loss of each iteration so far."""
    variants: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State of each variant of training, by its name; see `Effect.state`."""
    session: dict[str, Tensor] = field(default_factory=dict)
    """State of the session, see `Session.state`; empty for most tasks."""


def pack(state: TrainingState, variants: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return all tensors of a state but the model's under one namespace, with the given states of variants."""
    parts = {"optimizer/": state.optimizer, "session/": state.session}
    parts |= {f"variants/{name}/": dict(own) for name, own in variants.items()}
    packed = {name: value for prefix, tensors in parts.items() for name, value in add_prefix(prefix, tensors).items()}
    return packed | {"losses": state.losses}


def unpack(step: int, model: dict[str, Tensor], packed: Mapping[str, Tensor]) -> TrainingState:
    """Return the state that `pack` packed."""
    variants: dict[str, dict[str, Tensor]] = {}
    for key, value in part_of(packed, "variants/").items():
        name, _, entry = key.partition("/")
        variants.setdefault(name, {})[entry] = value
    return TrainingState(
        step, model, part_of(packed, "optimizer/"), packed["losses"], variants, part_of(packed, "session/")
    )


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with `prefix` before each name."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def initial_state(task: Task, seed: int) -> dict[str, Tensor]:
    """Return weights and buffers of a new model: a pure function of the task and the seed."""
    with private_random_state():
        seed_torch(mix(seed, "initialisation"))
        return state_of(build_model(task))


def rebuild_model(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a model of the task with the given weights and buffers.

    Random values outside the state dict, such as features in a non-persistent buffer, are the same every time.
    """
    with private_random_state():
        seed_torch(mix(0, "rebuilt"))
        model = build_model(task)
    load_state(model, {name: state[normal_name(name)] for name in model.state_dict()})
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of weights and buffers on the CPU, by normalised name."""
    return {
        normal_name(name): value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the state dict leaves out, by normalised name; not copied."""
    saved = model.state_dict()
    return {normal_name(name): buffer for name, buffer in model.named_buffers() if name not in saved}
