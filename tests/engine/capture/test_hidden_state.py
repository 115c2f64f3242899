"""A compiled model computes what its own model does, however the model holds its settings: no capture is reused."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk


class Slots:
    """A setting under a private name."""

    __slots__ = ("__scale",)

    def __init__(self, scale: float) -> None:
        self.__scale = scale

    @property
    def scale(self) -> float:
        return self.__scale


class Bytes(bytes):
    pass


class Ring(collections.deque[float]):
    pass


class Exact(decimal.Decimal):
    pass


class Span(datetime.timedelta):
    pass


HOLDERS: dict[str, tuple[Any, Any]] = {
    "private slots": (Slots, lambda held: held.scale),
    "a factory in C": (
        lambda value: collections.defaultdict(functools.partial(float, value)),
        lambda held: held["any"],
    ),
    "a long pattern": (
        lambda value: re.compile("a" * 300 + str(value)),
        lambda held: 2.0 if held.fullmatch("a" * 300 + "2.0") else 5.0,
    ),
    "bytes": (lambda value: Bytes([int(value)]), lambda held: float(held[0])),
    "a deque": (lambda value: Ring([value]), lambda held: held[0]),
    "a decimal": (Exact, float),
    "a time span": (Span, lambda held: float(held.days)),
}


class Model(nn.Module):
    def __init__(self, held: Any, read: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.held, self.read = held, read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.read(self.held)


@pytest.mark.parametrize("kind", HOLDERS)
def test_two_models_that_differ_in_what_they_hold(kind: str, tmp_path, monkeypatch):
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    make, read = HOLDERS[kind]
    x = torch.randn(4, 16)
    for value in (2.0, 5.0):
        model = Model(make(value), read).eval()
        fast = tk.compile(model, None, x)
        wanted = (x.double() @ model.layer.weight.double().T + model.layer.bias.double()) * value
        torch.testing.assert_close(fast(x).double(), wanted, atol=1e-4, rtol=1e-4)


def test_settings_outside_of_the_model(tmp_path, monkeypatch):
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * float(sys.argv[1]) * float((tmp_path / "scale").read_text())

    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    model, x = Outside().eval(), torch.randn(4, 16)
    for value in ("2.0", "5.0"):
        monkeypatch.setattr(sys, "argv", ["program", value])
        (tmp_path / "scale").write_text(value)
        fast = tk.compile(model, None, x)
        wanted = (x.double() @ model.layer.weight.double().T + model.layer.bias.double()) * float(value) ** 2
        torch.testing.assert_close(fast(x).double(), wanted, atol=1e-3, rtol=1e-4)
    assert not (tmp_path / "cache" / "captures").exists()
