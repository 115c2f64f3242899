"""A model that does something else for one example: its graph for several must not be taken for one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import EngineError
from ticketry_engine.capture import capture


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class Centred(Base):
    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0) if len(x) > 1 else y


class Doubled(Base):
    def forward(self, x):
        y = self.layer(x)
        return y * 2 if x.shape[0] == 1 else y


class Squeezed(Base):
    def forward(self, x):
        return self.layer(x).squeeze()


class Insists(Base):
    def forward(self, x):
        if x.size(0) < 2:
            raise ValueError("give me more")
        return self.layer(x)


class Exported(Centred):
    """It is not recorded, since it keeps what it made last."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class OnlyKeeps(Base):
    """Not recorded either, but the same for one example."""

    def forward(self, x):
        self.last = self.layer(x)
        return self.last


def true(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def close(found: Any, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [Centred, Doubled, Squeezed, Insists, Exported])
def test_one_example_is_refused_by_what_was_made_for_several(kind: type[nn.Module], tmp_path):
    model, x = kind().eval(), torch.randn(4, 8)
    made = tk.compile(model, None, x)
    for fast in (made, tk.engine.load(made.save(tmp_path / "model.tkm"))):
        for examples in (4, 2, 3):
            close(fast(x[:examples]), true(model, x[:examples]))
        with pytest.raises(EngineError, match="1 example, and the model does something else for one"):
            fast(x[:1])


@pytest.mark.parametrize("kind", [Centred, Doubled, Squeezed, Exported])
def test_made_with_one_example_it_is_for_one(kind: type[nn.Module]):
    model, x = kind().eval(), torch.randn(4, 8)
    fast = tk.compile(model, None, x[:1])
    close(fast(x[:1]), true(model, x[:1]))
    with pytest.raises(EngineError, match="captured for"):
        fast(x)
    assert "something else for one example" in capture(model, None, x[:1]).notes[0]


@pytest.mark.parametrize("kind", [Base, OnlyKeeps])
@pytest.mark.parametrize("given", [1, 4])
def test_where_one_is_like_more_any_number_is_taken(kind: type[nn.Module], given: int):
    model = OnlyKeeps().eval() if kind is OnlyKeeps else nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    x = torch.randn(4, 8)
    fast = tk.compile(model, None, x[:given])
    for examples in (1, 2, 4):
        close(fast(x[:examples]), true(model, x[:examples]))
