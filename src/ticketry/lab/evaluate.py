"""Metrics of a network on a split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ticketry.lab import feed
from ticketry.lab.precision import Arithmetic
from ticketry.tasks.base import Split, Task


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, split: Split, arithmetic: Arithmetic) -> dict[str, float]:
    """The task's metrics over a whole split, in evaluation mode; the model's mode is put back after."""
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    with contextlib.closing(feed.in_order(split, arithmetic.device)) as batches:
        for inputs, targets in batches:
            for name, value in task.measure(forward(task, model, inputs, arithmetic), targets).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value.double()
    model.train(training)
    return task.summary({name: float(value) for name, value in sums.items()}, len(split))


def forward(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The model's outputs for stored inputs on the device; fp32, so that losses and metrics are."""
    prepared = task.prepare(inputs)
    if arithmetic.channels_last and prepared.dim() == 4:
        prepared = prepared.contiguous(memory_format=torch.channels_last)
    with arithmetic.autocast():
        outputs = model(prepared)
    return outputs.float()
