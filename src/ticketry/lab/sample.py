"""What a score sees of a task: some batches of its training split, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from ticketry.core.seeds import mix
from ticketry.errors import UsageError
from ticketry.lab.feed import batches
from ticketry.lab.order import DataOrder
from ticketry.tasks.base import Task

Batch = tuple[Tensor, Tensor]
"""Inputs as the network takes them, and targets."""


@dataclass(frozen=True)
class Sample:
    """Batches for a score: the first ones of an order of their own, without augmentation."""

    count: int = 5
    size: int = 128
    """Examples of a batch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UsageError(f"a score sees at least one batch of one example, not {self.count} of {self.size}")

    def drawn(self, task: Task, data: Path | None, device: str = "cpu") -> list[Batch]:
        """The batches, from the training split and no other; fewer where there are not as many examples."""
        split = task.load(data).train
        order = DataOrder(mix(self.seed, "score"), len(split), self.size)
        steps = range(min(self.count, -(-len(split) // self.size)))
        return [(task.prepare(inputs), targets) for inputs, targets in batches(split, order.batch, steps, device)]


def loss_of(task: Task) -> Callable[[nn.Module, object], Tensor]:
    """The mean loss of a batch, as scores take it."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        inputs, targets = cast(Batch, batch)
        return task.loss(model(inputs), targets)

    return loss
