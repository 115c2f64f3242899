"""How often a call multiplies a weight, beside torch's own counter of all products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ticketry as tk
from ticketry.core.model_calls import count_multiplications, multiplications_per_weight


class Sliced(nn.Module):
    """Computes with a part of its weight, as a network of several widths does."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.randn(shape)), make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x, self.weight)


def _total(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    parameters = {name: one for name, one in model.named_parameters() if one.dim() > 1}
    found = multiplications_per_weight(model, parameters, inputs)
    return sum(found[name] * one.numel() for name, one in parameters.items())


@pytest.mark.parametrize("words", [1, 4])
def test_queries_and_keys_that_read_parts_of_one_weight(words: int) -> None:
    """Queries are a third of the products: rounded down, a third of few words would be 0."""
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
    uses = multiplications_per_weight(model, dict(model.named_parameters()), x)["weight"]
    assert uses == counter.get_total_flops() // 2 // model.weight.numel() > 0


class Tied(nn.Module):
    """Uses each weight in its layer and once more in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.small = nn.Linear(8, 4), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        shown = nn.functional.linear(torch.tanh(self.code(x)), self.code.weight.t())
        return shown, nn.functional.conv2d(self.small(picture), self.small.weight, padding=2, dilation=2)


def test_other_uses_of_a_weight_are_counted() -> None:
    inputs = (torch.zeros(5, 8), torch.zeros(2, 3, 6, 6))
    model = Tied().train()
    # Five rows through 8 x 4 weights and back; two pictures of 36 places, twice.
    assert count_multiplications(model, tk.scope(model), inputs) == {"code.weight": 2 * 5, "small.weight": 2 * 2 * 36}
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    costs = tk.cost.model(model, inputs, unit="multiplications")
    assert costs.dense == 2 * 5 * 32 + 2 * 2 * 36 * 81


@pytest.mark.parametrize(
    ("layer", "x", "each"),
    [
        (nn.ConvTranspose2d(3, 5, 2, stride=2), torch.zeros(2, 3, 4, 4), 2 * 16),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), torch.zeros(2, 4, 9), 2 * 9),
        (nn.Conv2d(4, 6, 3, groups=2), torch.zeros(2, 4, 5, 5), 2 * 9),
    ],
)
def test_transposed_and_grouped_convolutions(layer: nn.Module, x: Tensor, each: int) -> None:
    """A transposed convolution multiplies each weight once with every input position of its channel."""
    assert count_multiplications(layer, tk.scope(layer), x) == {"weight": each}


def test_a_fused_transformer_layer_is_counted_in_parts() -> None:
    """Torch's fast path runs the layer as one operation, which shows no products."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    scope = tk.scope(layer, spare=["self_attn.in_proj_weight"])
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert count_multiplications(layer, scope, torch.zeros(2, 10, 16)) == dict.fromkeys(names[1:], 20)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_parameters_that_share_one_allocation_are_counted_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    flat = torch.cat([one.detach().flatten() for one in model.parameters()])
    place = 0
    for one in model.parameters():
        one.data = flat[place : place + one.numel()].view_as(one)
        place += one.numel()
    assert count_multiplications(model, tk.scope(model), torch.zeros(3, 4)) == {"0.weight": 3, "2.weight": 3}
