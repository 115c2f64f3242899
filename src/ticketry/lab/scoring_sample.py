"""What a score sees of a task: some batches of its training split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ticketry.errors import UsageError
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Sample:
    """Batches for a score, without augmentation; their loss is `Course.loss`."""

    count: int = 5
    size: int = 128
    """Examples of a batch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UsageError(f"a score sees at least one batch of one example, not {self.count} of {self.size}")

    def of(self, task: Task) -> Sample:
        """With batches that are not too large for the task, see `Task.scored`."""
        return replace(self, size=task.scored(self.size))

    def drawn(self, course: Course, model: nn.Module) -> list[Any]:
        """The batches for scoring a model, on its device: see `Course.sample`."""
        return course.sample(model, self.count, self.size, mix(self.seed, "score"))
