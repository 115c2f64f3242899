"""A custom task: two interleaved half-moons in the plane, classified by a small network.

ticketry search iterative --task examples.own_task:Moons --option noise=0.15
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits


class Moons(Classification):
    name = "moons"
    recipe = Recipe(length="20ep", batch=64, optimizer="adam", lr=5e-3)

    def __init__(self, noise: float = 0.1, hidden: int = 64) -> None:
        self.noise = noise
        self.hidden = hidden

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 2),
        )

    def load(self, data: Path | None = None) -> Splits:
        return Splits(
            train=self.sample(1000, seed=0), validation=self.sample(500, seed=1), test=self.sample(500, seed=2)
        )

    def sample(self, count: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        moon = torch.randint(0, 2, (count,), generator=generator)
        angle = math.pi * torch.rand(count, generator=generator)
        side = 1 - 2 * moon  # the second moon is the first one turned around and moved
        points = torch.stack([side * angle.cos() + moon, side * angle.sin() + moon / 2], dim=1)
        return Split(points + self.noise * torch.randn(points.shape, generator=generator), moon)
