"""A model that remembers its calls is refused: its graph would give for ever what the first call gave."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import CaptureError


class Recurrent(nn.Module):
    """It goes on from the state that its last call left."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)
        self.state = torch.zeros(4, 8)

    def forward(self, x):
        self.state = self.cell(x, self.state)
        return self.state


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Cached(nn.Module):
    """It gives what its first call gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.found: dict[str, torch.Tensor] = {}

    def forward(self, x):
        if "y" not in self.found:
            self.found["y"] = self.layer(x)
        return self.found["y"]


class Table(nn.Module):
    """What it keeps is the same in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.table: torch.Tensor | None = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(8.0)
        return self.layer(x) + self.table


@pytest.mark.parametrize("kind", [Recurrent, Counting, Cached])
def test_it_is_refused(kind: type[nn.Module]):
    with pytest.raises(CaptureError, match=f"{kind.__name__} remembers its calls"):
        tk.compile(kind().eval(), None, torch.randn(4, 8))


def test_a_table_made_in_the_first_call_is_no_memory():
    model, x = Table().eval(), torch.randn(4, 8)
    fast = tk.compile(model, None, x)
    wanted = x.double() @ model.layer.weight.double().T + model.layer.bias.double() + torch.arange(8.0)
    for _ in range(2):
        torch.testing.assert_close(fast(x).double(), wanted, atol=1e-5, rtol=1e-5)
