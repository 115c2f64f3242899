"""What is changed in a module between two steps counts in the next one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import ticketry as tk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.table: Any = {"k": 2.0}
        self.space: Any = SimpleNamespace(k=2.0, inner=SimpleNamespace(k=1.0))
        self.entries: Any = [2.0]
        self.pair: Any = (2.0, (1.0,))
        self.tensor: Any = torch.tensor(2.0)
        self.scales: Any = torch.ones(2, 16, 1, 1)

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        factor = self.table["k"] * self.space.k * self.space.inner.k * self.entries[0] * self.pair[0] * self.pair[1][0]
        return torch.relu(y * factor * self.tensor * self.scales[0]).mean((2, 3))


def _set(name: str, value: Any) -> Callable[[Net], None]:
    return lambda net: setattr(net, name, value)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "dict": lambda net: net.table.update(k=3.0),
    "namespace": lambda net: vars(net.space).update(k=3.0),
    "inner namespace": lambda net: vars(net.space.inner).update(k=3.0),
    "list": lambda net: net.entries.__setitem__(0, 3.0),
    "tuple": _set("pair", (2.0, (3.0,))),
    "tensor": lambda net: net.tensor.fill_(3.0),
    "larger tensor": lambda net: net.scales.mul_(3.0),
    "another larger tensor": lambda net: setattr(net, "scales", torch.full((2, 16, 1, 1), 3.0)),
    "stride": lambda net: setattr(net.b, "stride", (2, 2)),
    "padding": lambda net: setattr(net.a, "padding", (0, 0)),
}


def test_the_next_step_is_of_the_new_value() -> None:
    torch.manual_seed(0)
    model = Net()
    mask = tk.prune(model, density=0.3)
    mask.apply_(model)
    true = copy.deepcopy(model).double()
    x = torch.randn(4, 3, 8, 8)
    fast = tk.sparse_training(model, mask, x)
    fast(x).sum().backward()
    for name, change in CHANGES.items():
        for net in (model, true):
            change(net)
            net.zero_grad()
        found, wanted = fast(x), true(x.double())
        torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-4, msg=name)
        found.sum().backward()
        wanted.sum().backward()
        mine, theirs = model.a.weight.grad, true.a.weight.grad
        assert mine is not None
        assert theirs is not None
        error = (mine.double() - theirs * mask["a.weight"]).norm() / theirs.norm()
        assert float(error) <= 1e-4, name
