"""The batches of a task's training split on which scores are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ticketry.errors import UsageError
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Sample:
    """Number, size and seed of the batches that a score uses, without augmentation; see `Course.loss` for their
    loss.
    """

    count: int = 5
    size: int = 128
    """Examples in a batch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UsageError(f"a score needs at least one batch of one example, got {self.count} of {self.size}")

    def limit_to(self, task: Task) -> Sample:
        """Return the sample with a batch size that the task supports, see `Task.scored`."""
        return replace(self, size=task.scored(self.size))

    def draw(self, course: Course, model: nn.Module) -> list[Any]:
        """Return the batches for scoring a model, on the model's device, see `Course.sample`."""
        return course.sample(model, self.count, self.size, mix(self.seed, "score"))
