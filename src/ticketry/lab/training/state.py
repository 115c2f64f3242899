"""The state of a training, and the states of models that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ticketry.core.scope import normal_name
from ticketry.core.ticket.state_dicts import load_state
from ticketry.tasks.given import built
from ticketry.tasks.task import Task
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix, seed_torch


@dataclass
class TrainingState:
    """All that training needs to go on: data order, augmentation and dropout are functions of the step."""

    step: int
    model: dict[str, Tensor]
    """Weights and buffers, by normalised name."""
    optimizer: dict[str, Tensor]
    losses: Tensor
    """float32 [step - first]: the loss of each iteration so far."""
    variants: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What each variant of training carries from step to step, by its name; see `Effect.state`."""
    session: dict[str, Tensor] = field(default_factory=dict)
    """What the session carries from step to step, see `Session.state`; empty for most tasks."""


def initial_state(task: Task, seed: int) -> dict[str, Tensor]:
    """Weights and buffers of a fresh model: a pure function of the task and the seed."""
    with private_random_state():
        seed_torch(mix(seed, "initialisation"))
        return state_of(built(task))


def rebuilt(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the task with the given weights and buffers. What it draws that no state dict has, such as random
    features in a buffer that is not persistent, is the same every time."""
    with private_random_state():
        seed_torch(mix(0, "rebuilt"))
        model = built(task)
    load_state(model, {name: state[normal_name(name)] for name in model.state_dict()})
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers, by normalised name, on the CPU."""
    return {
        normal_name(name): value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that its state dict leaves out, by normalised name; not copied."""
    saved = model.state_dict()
    return {normal_name(name): buffer for name, buffer in model.named_buffers() if name not in saved}


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
