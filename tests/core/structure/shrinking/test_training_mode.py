"""Code that runs in training alone: a shrunk model is the masked model there too, or is not made."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from ticketry.core.structure.model_copies import compare_models
from ticketry.errors import MaskError


class Deep(nn.Module):
    """A loss on half-way features, in training alone (deep supervision)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width, self.long = how, 32, 16
        self.a, self.b, self.aside, self.o = nn.Linear(6, 32), nn.Linear(32, 16), nn.Linear(32, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        half = self.a(x).relu()
        y = self.o(self.b(half).relu())
        if not self.training:
            return (y,)
        if self.how == "number":
            half = half.view(-1, 32)
        elif self.how == "attribute":
            half = half.view(-1, self.width)
        elif self.how == "scale":
            return y, half.square().sum(1) / half.shape[1]
        return y, self.aside(half)


def outputs_apart(small: nn.Module, masked: nn.Module, x: Tensor) -> float:
    found, wanted = small.train()(x), masked.train()(x)
    return max(float((one - other).detach().abs().max()) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("how", ["shape", "number", "attribute", "scale"])
def test_what_training_alone_computes(how: str) -> None:
    torch.manual_seed(0)
    model, x = Deep(how), torch.randn(4, 6)
    widths = {group.name: group for group in tk.structure.channel_groups(model, x)}
    assert widths["b"].prunable
    assert widths["a"].prunable == (how in ("shape", "attribute"))
    if how in ("number", "scale"):
        assert "in training mode" in widths["a"].reason
    mask = tk.structure.channels(model, x, density=0.6, distribution="uniform")
    small, masked = tk.shrink(model, mask, x), mask.apply_(copy.deepcopy(model))
    assert small.b.out_features < 16
    assert (small.a.out_features < 32) == widths["a"].prunable
    assert small.width == (small.a.out_features if how == "attribute" else 32)
    assert small.long == 16, "a number that nothing needs may be of something else"
    assert outputs_apart(small, masked, torch.randn(5, 6)) < 1e-6


def test_a_number_that_other_inputs_alone_need_is_left_alone() -> None:
    """The longest text has as many tokens as the network is wide: cut with the width, longer texts would lose some."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = self.longest = 64
            self.e, self.a, self.o = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            tokens = tokens[:, : self.longest]
            count, length = tokens.shape
            h = self.a(self.e(tokens)).relu().view(count * length, self.width)
            return self.o(h).view(count, length, -1).mean(1)

    torch.manual_seed(0)
    model = Reader().eval()
    short, long = torch.randint(0, 50, (4, 16)), torch.randint(0, 50, (4, 60))
    mask = tk.structure.channels(model, short, density=0.6)
    small, masked = tk.shrink(model, mask, short), mask.apply_(copy.deepcopy(model))
    assert small.width == small.a.out_features < 64
    assert small.longest == 64
    torch.testing.assert_close(small(long), masked(long), atol=1e-6, rtol=1e-5)


def test_dropout_noise_and_statistics_of_training_are_no_differences() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b, self.o = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self.n(self.a(x)).relu(), 0.5, self.training)
            if self.training:
                x = x + 0.1 * torch.randn_like(x) * torch.rand(x.shape)
                x = x * x.new_empty(len(x), 1).bernoulli_(0.8)
                x = x * random.random()  # which torch cannot be told to leave
            return self.o(self.b(x))

    torch.manual_seed(0)
    model, x = Noisy(), torch.randn(8, 6)
    moving = model.n.running_mean.clone()
    groups = {group.name: group for group in tk.structure.channel_groups(model, x)}
    assert groups["a"].prunable
    assert groups["b"].prunable, "what is another from run to run tells nothing"
    assert torch.equal(model.n.running_mean, moving)
    assert model.training


def test_a_model_that_does_not_train_on_the_examples_is_compared_in_evaluation_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    assert compare_models(model, model, (torch.randn(1, 3),), training=True) is None
    assert tk.structure.channels(model, torch.randn(1, 3), density=0.5).density < 0.6


def test_a_mask_of_channels_that_training_needs_is_refused() -> None:
    """Made by hand, of a width that `channels` would leave alone."""
    model, x = Deep("number"), torch.randn(4, 6)
    weights = tk.scope(model).parameters(model)
    mask = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    mask["a.weight"][:8], mask["b.weight"][:, :8], mask["aside.weight"][:, :8] = False, False, False
    with pytest.raises(MaskError, match=r"channel 0 of a cannot be removed, .* in training mode, mat1 and mat2"):
        tk.shrink(model, tk.Mask(mask), x)
