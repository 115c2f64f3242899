"""A small regression, for tests of what only classification has."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ticketry.records.metric import Metric
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Split, Splits, Task


class Lines(Task):
    """y = 2 x: a regression."""

    name = "lines"
    metric = Metric("loss", "", higher_is_better=False)
    recipe = Recipe(length="20it", batch=16, optimizer="adam", lr=1e-2)

    def key(self):
        return {"name": self.name}

    def build(self):
        return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))

    def load(self, data: Path | None = None):
        x = torch.linspace(-1, 1, 64).view(-1, 1)
        return Splits(*(Split(x, 2 * x) for _ in range(3)))

    def loss(self, outputs, targets, *, label_smoothing=0.0):
        return nn.functional.mse_loss(outputs, targets)

    def measure(self, outputs, targets):
        return {"loss": (outputs - targets).square().sum()}

    def summary(self, sums, count):
        return {"loss": sums["loss"] / count}
