"""How often a call multiplies a weight, beside torch's own counter of all products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ticketry.core.costs.weight_uses import times_used


class Sliced(nn.Module):
    """Computes with a part of its weight, as a network of several widths does."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.randn(shape)), make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x, self.weight)


def _total(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    parameters = {name: one for name, one in model.named_parameters() if one.dim() > 1}
    found = times_used(model, parameters, inputs)
    return sum(found[name] * one.numel() for name, one in parameters.items())


@pytest.mark.parametrize("words", [1, 4])
def test_queries_and_keys_that_read_parts_of_one_weight(words: int) -> None:
    """A third of its products is of the queries; of few words, thirds that are rounded down would be of none."""
    layer = nn.TransformerDecoderLayer(12, 3, 24, batch_first=True).eval()
    x = torch.randn(1, words, 12)
    assert _total(layer, (x, x.clone())) == words * sum(one.numel() for one in layer.parameters() if one.dim() > 1)


SLICED = {
    "linear": (lambda x, weight: F.linear(x, weight[:4]), (8, 6), (5, 6)),
    "convolution": (lambda x, weight: F.conv2d(x, weight[:4]), (8, 6, 3, 3), (2, 6, 5, 5)),
    "transposed": (lambda x, weight: F.conv_transpose2d(x, weight[:3]), (6, 8, 3, 3), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", SLICED)
def test_a_part_of_a_weight(name: str) -> None:
    make, shape, size = SLICED[name]
    model, x = Sliced(make, *shape), torch.randn(size)
    with FlopCounterMode(display=False) as counter:
        model(x)
    uses = times_used(model, dict(model.named_parameters()), x)["weight"]
    assert uses == counter.get_total_flops() // 2 // model.weight.numel() > 0
