"""A custom data set and network as a task: the direction of stripes in noisy pictures.

ticketry search imp --task stripes:task --option train=2000 --density 0.2
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import ticketry as tk

CLASSES = 4


class Stripes(Dataset[tuple[Tensor, int]]):
    """Pictures of stripes in one of four directions; with `shift` each is moved at random when it is read."""

    def __init__(self, count: int, seed: int, shift: bool = False) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.shift = shift
        self.targets = torch.randint(0, CLASSES, (count,), generator=draw)
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        angles = math.pi * self.targets / CLASSES
        phases = 2 * math.pi * torch.rand(count, generator=draw)
        across = x * angles.cos()[:, None, None] + y * angles.sin()[:, None, None]
        waves = torch.sin(across + phases[:, None, None])
        self.pictures = (waves + 1.5 * torch.randn(count, 16, 16, generator=draw)).unsqueeze(1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = self.pictures[row]
        if self.shift:
            picture = picture.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2))
        return picture, int(self.targets[row])


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


def task(train: int = 2000) -> tk.Task:
    return tk.dataset_task(
        "stripes",
        network,
        Stripes(train, seed=1, shift=True),
        test=Stripes(1000, seed=3),
        validation=Stripes(500, seed=2),
        recipe=tk.Recipe(length="6ep", batch=50, lr=0.05, schedule="cosine"),
    )
