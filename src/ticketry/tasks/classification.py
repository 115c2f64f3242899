"""What all classification has in common: cross entropy and accuracy. The base of most tasks of one's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ticketry.tasks.base import Metric, Task


class Classification(Task):
    """A task whose targets are classes int64 [n] and whose outputs are logits [n, classes].

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("accuracy", "%", higher_is_better=True)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross entropy, in nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The number of correct examples and the summed cross entropy, the latter in float32 at least."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return {
            "correct": (outputs.argmax(1) == targets).sum(),
            "loss": F.cross_entropy(precise, targets, reduction="sum"),
        }

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Accuracy in percent and mean cross entropy in nats."""
        return {"accuracy": 100.0 * sums["correct"] / count, "loss": sums["loss"] / count}
