"""Whether several processes, each with a part of a batch, would train what one does: looked at before they begin.

Which random numbers are of examples is not told by their shape: a weight of 32 rows looks like a batch of 32, and
words may come before examples. So steps are computed as a whole and in the parts that ranks would have, in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ticketry.core.structure.dependencies.model_copies import EagerMode
from ticketry.errors import TaskError, TrainingError
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.ranks.draws import Draws, is_drawn
from ticketry.tasks.ranks import PartOfBatch
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix, seed_torch

_APART = 1e-2
"""How far what parts give may be from what the whole batch gives, of its norm: rounding is less, other masks more."""
_STIRRED = 0.1
"""Up to which numbers are added to weights that begin all alike."""

Drawn = tuple[str, list[int]]
"""By which operation of torch, and of which shape."""


def stirred(model: nn.Module) -> nn.Module:
    """The model with numbers in the place of 0, or of 1, where a parameter begins with that alone.

    What a branch or a last layer that begins with zeros does would not be seen.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
                parameter.add_(_STIRRED * torch.rand(parameter.shape, generator=draw).to(parameter.dtype))
    return model


def check_parts(name: str, course: Course, model: nn.Module, recipe: Recipe, steps: Iterable[int], world: int) -> None:
    """Make sure that parts of a batch draw what the whole batch does, and that the network makes of them the same.

    Batch norms are as in evaluation: what they see in training is told by `--norms`.

    Args:
        name: of the task.
        model: a new one, on the CPU; it is changed.
        steps: that are looked at, one of each size of a batch at least.

    Raises:
        TaskError: if they do not.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if module.running_mean is None:  # it has no other statistics than those of the batch
                module.forward = _as_it_is  # type: ignore[assignment, method-assign]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for step in steps:
        whole, outputs = _computed(course, model, before, recipe, step)
        parts = []
        for rank in range(world):
            try:
                drawn, own = _computed(course.cut(_Rank(rank, world)), model, before, recipe, step)
            except TrainingError as error:  # numbers of a kind that cannot be cut
                raise TaskError(str(error)) from error
            _check_drawn(name, whole, drawn)
            parts.append(own)
        _check_outputs(name, outputs, torch.cat(parts))


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


@torch.no_grad()
def _computed(
    course: Course, model: nn.Module, before: Mapping[str, Tensor], recipe: Recipe, step: int
) -> tuple[list[Drawn], Tensor]:
    """What a step draws, and what the network gives; its buffers are as they were `before`."""
    for name, buffer in model.named_buffers():
        if name in before:
            buffer.data = before[name].clone()
    found = [torch.empty(0)]
    hook = model.register_forward_hook(lambda _, __, outputs: found.append(tree_leaves(outputs)[0]))
    session, noted = course.session(recipe, 0, Arithmetic()), _Noted()
    with private_random_state(), noted, closing(session.batches(range(step, step + 1))) as batches:
        seed_torch(mix(0, "step", step))
        session.loss(model, next(batches))
    hook.remove()
    return noted.drawn, found[-1]


def _check_drawn(name: str, whole: Sequence[Drawn], drawn: Sequence[Drawn]) -> None:
    if drawn == whole:
        return
    pairs = zip(whole, drawn, strict=False)
    told = next((one for one, other in pairs if one != other), max(whole, drawn, key=len)[-1])
    raise TaskError(
        f"{name} draws random numbers (by torch's {told[0]}, of the shape {told[1]} for a batch) that cannot be cut"
        " among several devices, each with a part of the batch: what is drawn for each example needs the examples along"
        " its first axis, and what is drawn for all of them may not look like that. Train it on one (--devices 1), or"
        " put examples first (batch_first=True; an nn.LSTM with dropout has words first inside, nn.Dropout between"
        " layers has not)"
    )


def _check_outputs(name: str, whole: Tensor, parts: Tensor) -> None:
    alike = parts.shape == whole.shape
    apart = float((parts.double() - whole.double()).norm() / whole.double().norm()) if alike else 1.0
    if apart > _APART:  # never for what is not finite
        raise TaskError(
            f"what the network of {name} gives for a part of a batch is not what it gives for these examples in the"
            f" whole batch ({apart:.1%} apart): it draws random numbers in another order than that of the examples, or"
            " looks at other examples of the batch, so that several devices, each with a part of the batch, would train"
            " something else: train it on one (--devices 1)"
        )


class _Noted(EagerMode):  # type: ignore[no-untyped-call]
    """Takes note of what is drawn."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[Drawn] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if is_drawn(func, args, kwargs or {}):
            self.drawn += [(func.overloadpacket.__name__, list(one.shape)) for one in tree_leaves(found)]
        return found


class _Rank:
    """One of several ranks, of which none is a process."""

    in_parts = False

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        return Draws(place)
