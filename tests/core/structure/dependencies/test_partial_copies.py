"""Copies that share what does not change: only where no module keeps anything of a run, or knows of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.structure.model_copies import PartialCopies


class Keeps(nn.Module):
    """Adds a code as wide as what it met first: what one run leaves behind is wrong for a narrower one."""

    code: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.code is None:
            self.code = torch.ones(x.shape[1])
        return x + self.code


class Lists(Keeps):
    """The same, kept in a list that is there before."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.codes:
            self.codes.append(torch.ones(x.shape[1]))
        return x + self.codes[0]


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * self.runs


class Knows(nn.Module):
    """Uses a layer that is not among its children."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.others = (other,)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.others[0].bias


def network(kind: str) -> nn.Module:
    first, last = nn.Linear(4, 6), nn.Linear(6, 2)
    made = {"plain": nn.ReLU, "keeps": Keeps, "lists": Lists, "counts": Counts}
    middle = Knows(first) if kind == "knows" else made[kind]()
    return nn.Sequential(first, nn.Sequential(middle, nn.ReLU()), last).eval()


@pytest.mark.parametrize("kind", ["plain", "keeps", "lists", "counts", "knows"])
def test_each_copy_is_as_a_whole_one(kind: str) -> None:
    """Of two copies with other tensors, run one after the other, narrow first, each gives what it has to."""
    torch.manual_seed(0)
    model, x = network(kind), torch.randn(3, 4)
    copies = PartialCopies(model, (x,))
    first, last = model[0], model[2]
    narrow = {id(first.weight): first.weight[:4], id(first.bias): first.bias[:4], id(last.weight): last.weight[:, :4]}
    zeros = {id(first.bias): torch.zeros(6)}
    found = [copies.copy(tensors)(x) for tensors in (narrow, zeros, narrow)]
    more = {"plain": 0.0, "knows": 0.0, "counts": 0.0}.get(kind, 1.0)

    def expected(bias: Tensor, width: int) -> Tensor:
        hidden = x @ first.weight[:width].T + bias[:width] + more
        hidden = hidden + bias[:width] if kind == "knows" else hidden
        return hidden.relu() @ last.weight[:, :width].T + last.bias

    for value, (bias, width) in zip(found, [(first.bias, 4), (zeros[id(first.bias)], 6), (first.bias, 4)], strict=True):
        torch.testing.assert_close(value, expected(bias, width))


def test_modules_without_changes_are_shared() -> None:
    model = network("plain")
    twin = PartialCopies(model, (torch.randn(3, 4),)).copy({id(model[0].bias): torch.zeros(6)})
    assert twin is not model
    assert twin[0] is not model[0]
    assert twin[1] is model[1]
    assert twin[2] is model[2]
    assert twin[0].weight is model[0].weight
    assert not twin[0].bias.any()
    assert model[0].bias.any()
