"""Draw the batches of a task's training split on which pruning scores are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ticketry.errors import UsageError
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Sample:
    """Describes the random training batches on which a pruning score is computed; they are not augmented."""

    count: int = 5
    """Number of batches."""
    size: int = 128
    """Number of examples in a batch."""
    seed: int = 0
    """Seed of the choice of examples."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UsageError(f"a score needs at least one batch of one example, got {self.count} of {self.size}")

    def limit_to(self, task: Task) -> Sample:
        """Return a copy whose batch size is one that `task` supports, see `Task.scored`."""
        return replace(self, size=task.scored(self.size))

    def draw(self, course: Course, model: nn.Module) -> list[Any]:
        """Draw the batches from the training data of `course`, and return them on the model's device."""
        return course.sample(model, self.count, self.size, mix(self.seed, "score"))
