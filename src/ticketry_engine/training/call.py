"""A step on its way: what it holds between its passes, and what its passes consist of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ticketry_engine.kernels.program import Session
from ticketry_engine.training.gradient_memory import GradientMemory
from ticketry_engine.training.one_pass import OnePass


@dataclass
class Call(OnePass):
    """What a step holds between its forward and its backward pass."""

    session: Session
    parameters: dict[tuple[str, str], Tensor]
    modules: Mapping[str, Any]
    memory: GradientMemory = field(default_factory=GradientMemory)
    saved: dict[str, Any] = field(default_factory=dict)
    """Of each norm: mean, 1 / standard deviation, and scale and shift as its kernel has them."""
    gradients: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    wanted: frozenset[tuple[str, str]] = frozenset()
    """Parameters whose gradients are asked for."""
    number: int = field(default_factory=itertools.count().__next__)


Stage = Callable[[Call], None]


@dataclass
class Run:
    """Operations from one number to another; of several threads each goes from one to the next."""

    bounds: list[int]

    def __call__(self, call: Call) -> None:
        if len(self.bounds) > 2:
            call.session.run_apart(self.bounds)
        else:
            call.session.run(self.bounds[0], self.bounds[-1], shared=True)
