"""Two spirals, told apart by a small perceptron (Lang & Witbrock 1988)."""

import math

import torch
from torch import nn

import ticketry as tk
from ticketry.tasks.task import Classification


class Spirals(Classification):
    """Two spirals, told apart."""

    name = "spirals"
    recipe = tk.Recipe(length="120it", batch=32, optimizer="adam", lr=1e-2)

    def __init__(self, turns: float = 1.0) -> None:
        self.turns = turns

    def build(self):
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def load(self, data=None):
        draw = torch.Generator().manual_seed(0)
        radius, which = torch.rand(800, generator=draw).sqrt(), torch.randint(0, 2, (800,), generator=draw)
        angle = 2 * math.pi * self.turns * radius + math.pi * which
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        return tk.Splits(*(tk.Split(points[part], which[part]) for part in torch.arange(800).split([400, 200, 200])))
