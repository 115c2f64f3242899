"""The model of a stack: one module that holds the tensors of all members, and their losses by `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ticketry.core.scope import normal_name
from ticketry.errors import TaskError
from ticketry.lab.evaluate import forward
from ticketry.lab.loop import rebuilt
from ticketry.lab.segment import Segment
from ticketry.tasks.base import Task


@dataclass(frozen=True)
class Layout:
    """How the members' tensors lie in a stack: [members, ...], the weights of linear layers transposed.

    The gradients of these come as [members, inputs, outputs]; copied into the other layout at every step, they would
    take a fifth of it.
    """

    turned: frozenset[str]
    """Normalised names of the transposed ones: weights of linear layers and of nothing else."""

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout for stacks of a model."""
        linear: set[nn.Parameter | None] = set()
        others: set[nn.Parameter | None] = set()
        for module in model.modules():
            for slot, parameter in module._parameters.items():
                (linear if type(module) is nn.Linear and slot == "weight" else others).add(parameter)
        named = model.named_parameters(remove_duplicate=False)
        return cls(frozenset(normal_name(name) for name, parameter in named if parameter in linear - others))

    def together(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """The members' tensors of this name, stacked."""
        return torch.stack([self._turn(name, tensor) for tensor in tensors])

    def member(self, name: str, tensor: Tensor, index: int) -> Tensor:
        """A member's tensor, of its usual shape."""
        return self._turn(name, tensor[index])

    def models_together(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Weights and buffers of all members, stacked."""
        return {name: self.together(name, [state[name] for state in states]) for name in states[0]}

    def _turn(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.mT if name in self.turned else tensor


def stacked(task: Task, tensors: Mapping[str, Tensor], layout: Layout) -> nn.Module:
    """A model of the task that holds the weights and stored buffers of all members, `tensors`, under its own names.

    It is not called itself, only by `member_losses`.
    """
    model = rebuilt(task, {name: layout.member(name, value, 0) for name, value in tensors.items()})
    parameters: dict[int, nn.Parameter] = {}
    for name, old in model.named_parameters():  # a shared one once
        parameters[id(old)] = nn.Parameter(tensors[normal_name(name)].clone(), requires_grad=old.requires_grad)
    stored = model.state_dict().keys()
    for prefix, module in model.named_modules():
        for slot, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[slot] = parameters[id(parameter)]
        for slot, buffer in module._buffers.items():
            name = f"{prefix}.{slot}" if prefix else slot
            if buffer is not None and name in stored:  # others are made anew with the model, alike for all
                module._buffers[slot] = tensors[normal_name(name)].clone()
    return model


def member_losses(segment: Segment, model: nn.Module, layout: Layout) -> Callable[[Tensor, Tensor], Tensor]:
    """(inputs [members, b, ...], targets [members, b, ...]) -> losses [members] of a `stacked` model.

    What it returns raises a `TaskError` where the network cannot be stacked.
    """
    task, arithmetic, smoothing = segment.task, segment.arithmetic, segment.recipe.label_smoothing
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    parameters = {name: (value, normal_name(name) in layout.turned) for name, value in model.named_parameters()}

    def of_one(own: dict[str, Tensor], kept: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = forward(task, lambda x: functional_call(model, (own, kept), (x,)), inputs, arithmetic)
        return task.loss(outputs, targets, label_smoothing=smoothing)

    of_all: Callable[..., Tensor] = vmap(of_one)

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        usual = {name: value.mT if turned else value for name, (value, turned) in parameters.items()}
        try:
            return of_all(usual, buffers, inputs, targets)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise refused(task, _why(str(error))) from error

    return losses


def refused(task: Task, why: str) -> TaskError:
    """What to raise for a network that cannot be a member of a stack."""
    return TaskError(
        f"the networks of the task {task.name!r} cannot be trained in a stack: {why}. Leave --stack away (stack=0):"
        " then they are trained one by one, side by side in worker processes"
    )


_DECIDES = "what its network does depends on the numbers it computes (an if, a loop, .item())"
_WHY = {
    "random operation": "its network draws random numbers while it trains (dropout): in a stack these would be others",
    "data-dependent control flow": _DECIDES,
    ".item()": _DECIDES,
}
"""Words of torch's own message -> what it means here."""


def _why(message: str) -> str:
    line = message.strip().partition("\n")[0].rstrip(".")
    return next((why for words, why in _WHY.items() if words in message), f"torch says: {line}")
