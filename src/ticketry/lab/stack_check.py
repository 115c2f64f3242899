"""Whether a stack trains a task's network as training alone does: tried on one batch before a stack begins.

`torch.func.vmap` refuses what it cannot batch, but does not see everything: a buffer that is replaced instead of
written into would silently stay as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ticketry.core.scope import normal_name
from ticketry.errors import TaskError
from ticketry.lab import feed
from ticketry.lab.evaluate import forward
from ticketry.lab.loop import rebuilt
from ticketry.lab.order import DataOrder
from ticketry.lab.segment import Segment, digest_of
from ticketry.lab.stacked_model import Layout, member_losses, refused, stacked
from ticketry.lab.supervised import Supervised
from ticketry.tasks.base import Task
from ticketry.tasks.course import Course

# Relative to the norm of what is compared. Float error in fp32 is far below; what is wrong is far above.
_TOLERANCE = 1e-2
_ROUNDING = 1e-5

_checked: set[str] = set()


def stackable(task: Task, course: Course) -> Supervised:
    """The course, if its networks can be members of a stack.

    Raises:
        TaskError: if not: for what they carry from step to step, or examples that are streamed.
    """
    if not isinstance(course, Supervised):
        raise refused(task, "what it trains on is not a set of examples that are drawn one by one")
    if course.splits.train.reader is not None:
        raise refused(task, "its examples are read from disk while it trains")
    return course


def check_stackable(segment: Segment, states: Sequence[Mapping[str, Tensor]], course: Course) -> None:
    """Compare the loss, gradients and buffers of two members with those of the network alone, in fp32; once a task.

    Args:
        segment: of one member.
        states: weights and buffers of each member; the first and the last are taken.
        course: the task's.

    Raises:
        TaskError: if the network cannot be stacked, or gives other numbers in a stack.
    """
    task, examples = segment.task, stackable(segment.task, course).splits.train
    known = digest_of([dict(task.key()), segment.arithmetic.device, segment.recipe.label_smoothing > 0])
    if known in _checked:
        return
    segment = replace(segment, arithmetic=replace(segment.arithmetic, precision="fp32"))
    place = segment.arithmetic.place
    pair = [states[0], states[-1]]
    order = DataOrder(segment.order_seed, len(examples), segment.recipe.batch)  # the first batches of two epochs: whole
    batches = list(feed.batches(examples, order.batch, (0, segment.per_epoch), segment.arithmetic.device))
    layout = Layout.of(rebuilt(task, pair[0]))
    model = place(stacked(task, layout.models_together(pair), layout)).train()
    losses_of = member_losses(segment, model, layout)
    with torch.random.fork_rng():
        losses = losses_of(*(torch.stack(part) for part in zip(*batches, strict=True)))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for index, (state, (inputs, targets)) in enumerate(zip(pair, batches, strict=True)):
            alone = place(rebuilt(task, state)).train()
            outputs = forward(task, alone, inputs, segment.arithmetic)
            loss = task.loss(outputs, targets, label_smoothing=segment.recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            if not _near(losses[index].detach(), loss.detach(), loss.detach()):
                raise _differs(segment, "loss")
            if found := _first_difference(model, alone, layout, index, state):
                raise _differs(segment, found)
    _checked.add(known)


def _first_difference(
    model: nn.Module, alone: nn.Module, layout: Layout, index: int, before: Mapping[str, Tensor]
) -> str:
    """The gradient or buffer of a member of the stacked `model` that is not that of the network alone, if any is."""
    inside = dict(model.named_parameters())
    pairs = []
    for name, parameter in alone.named_parameters():
        own, other = inside[name].grad, parameter.grad
        if own is not None and other is not None:
            pairs.append((layout.member(normal_name(name), own, index).flatten(), other.flatten()))
        elif own is not None or other is not None:
            return f"gradient of {name!r}"
    if pairs:
        together, single = (torch.cat(part) for part in zip(*pairs, strict=True))
        if not _near(together, single, single):
            return "gradient"
    stored, kept = alone.state_dict(), dict(model.named_buffers())
    for name, buffer in alone.named_buffers():
        if name in stored:
            now, was = buffer.double(), before[normal_name(name)].to(buffer.device).double()
            if not _near(kept[name][index].double(), now, now - was):
                return f"buffer {name!r}"
    return ""


def _near(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether two tensors agree within float error; `scale` is what an error is measured by."""
    bound = _TOLERANCE * float(scale.norm()) + _ROUNDING * float(other.norm())
    return not float((one - other).norm()) > bound  # no numbers at all are told of by the loop


def _differs(segment: Segment, what: str) -> TaskError:
    return refused(
        segment.task,
        f"its {what} is another one there than alone (a network keeps what it learns in parameters, or in buffers that"
        " it writes into in place)",
    )
