"""Metrics of a network on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ticketry.lab.precision import Arithmetic
from ticketry.tasks.base import Task
from ticketry.tasks.course import Course


@torch.no_grad()
def evaluate(course: Course, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
    """The course's metrics on a whole split, in evaluation mode; the model's mode is put back after."""
    training = model.training
    model.eval()
    found = course.evaluate(model, split, arithmetic)
    model.train(training)
    return found


def forward(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The model's outputs for stored inputs on the device; fp32, so that losses and metrics are."""
    prepared = task.prepare(inputs)
    if arithmetic.channels_last and prepared.dim() == 4:
        prepared = prepared.contiguous(memory_format=torch.channels_last)
    with arithmetic.autocast():
        outputs = model(prepared)
    return outputs.float()
