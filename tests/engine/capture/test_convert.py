"""Arithmetic on the number of examples that a model writes, as operations of its graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk


class Weighed(nn.Module):
    def __init__(self, factor: Callable[[int], float]) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(8, 8), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor(x.shape[0])


FACTORS = {
    "a root": lambda examples: examples**0.5,
    "math's root": lambda examples: math.sqrt(examples),
    "one over a root": lambda examples: examples**-0.5,
    "a square": lambda examples: examples**2,
}


@pytest.mark.parametrize("name", FACTORS)
def test_powers_and_roots_of_the_number_of_examples(name: str, tmp_path: Path) -> None:
    model = Weighed(FACTORS[name]).eval()
    fast = tk.compile(model, None, torch.randn(4, 8))
    again = tk.engine.load(fast.save(tmp_path / "model.tk"))
    for examples in (1, 2, 7):
        x = torch.randn(examples, 8)
        with torch.no_grad():
            wanted = model(x)
        for one in (fast, again):
            torch.testing.assert_close(one(x), wanted, rtol=1e-4, atol=1e-5)
