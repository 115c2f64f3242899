"""digits with a small network that has a norm behind every convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

import ticketry as tk
from ticketry.tasks.task import Splits


class NormsTask(tk.Task):
    """Two convolutions of 8 and 12 channels; fast to train."""

    def __init__(self) -> None:
        self._digits = tk.task("digits")
        self.name, self.metric, self.recipe = "norms", self._digits.metric, self._digits.recipe

    def key(self) -> Mapping[str, object]:
        return {"name": self.name}

    def build(self) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
        )

    def load(self, data: Path | None = None) -> Splits:
        return self._digits.load(data)


def _as_of_digits(part: str) -> Callable[..., object]:
    return lambda self, *arguments, **named: getattr(self._digits, part)(*arguments, **named)


for _part in ("prepare", "augment", "loss", "measure", "summary"):
    setattr(NormsTask, _part, _as_of_digits(_part))


def norms() -> NormsTask:
    """For a command line."""
    return NormsTask()
