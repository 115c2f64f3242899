"""Masks under a budget of multiplications."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.budget import allocate_multiplications, allocate_worth, uses
from ticketry.core.costs.saliency import output_change
from ticketry.errors import LayerCollapseError, UsageError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 5))


X = torch.zeros(2, 3, 8, 8)


def test_uses_are_places_of_a_weight(model):
    model.train()
    assert list(uses(model, tk.scope(model), X).values()) == [2 * 36, 2 * 16, 2]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("share", [0.5, 0.45, 0.7, 1.0])
def test_as_good_as_the_best_of_all_subsets_but_for_one_weight(share):
    """The relaxed optimum lies between what is kept and that with the next weight: no subset beats the latter."""
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(5, generator=generator) + 0.1 for name in "ab"}
    prices = {"a": 7, "b": 3}
    cost = torch.tensor([7.0] * 5 + [3.0] * 5)
    worth = torch.cat(list(scores.values()))
    best = max(
        float(worth @ each)
        for each in map(torch.tensor, itertools.product((0.0, 1.0), repeat=10))
        if float(cost @ each) <= share * 50
    )
    mask = allocate_multiplications(scores, prices, share)
    chosen = torch.cat(list(mask.values()))
    spent = float(cost @ chosen.float())
    assert spent <= share * 50
    left = (worth / cost)[~chosen]
    relaxed = float(worth @ chosen.float()) + (share * 50 - spent) * float(left.max() if len(left) else 0)
    assert float(worth @ chosen.float()) <= best + 1e-6
    assert best <= relaxed + 1e-6


def test_budget_is_met_and_dear_layers_pay(model):
    prices = uses(model, tk.scope(model), X)
    mask = tk.prune(model, flops="30%", example_inputs=X)
    total = sum(prices[name] * part.numel() for name, part in mask.items())
    spent = sum(prices[name] * int(part.sum()) for name, part in mask.items())
    assert 0.3 * total - max(prices.values()) < spent <= 0.3 * total
    plain = tk.prune(model, density=mask.density)
    assert int(mask["0.weight"].sum()) < int(plain["0.weight"].sum())


def test_without_a_score_layers_are_worth_what_outputs_lose_and_none_is_emptied(model):
    """Against the best of all numbers of weights of two layers, by the definition, up to one weight."""
    torch.manual_seed(0)
    values = {"a": torch.rand(6, 4).double() ** 2, "b": 100 * torch.rand(3, 6).double() ** 2}
    prices, budget = {"a": 5, "b": 2}, 0.4 * (24 * 5 + 18 * 2)
    found = allocate_worth(values, prices, 0.4)
    kept = {name: int(part.sum()) for name, part in found.items()}
    assert sum(prices[name] * count for name, count in kept.items()) <= budget
    best = {name: value.flatten().sort(descending=True).values.cumsum(0) for name, value in values.items()}

    def worth(name, count):
        return float(best[name][-1] * (best[name][count - 1] / best[name][-1]).log())

    most = max(
        worth("a", one) + worth("b", other)
        for one in range(1, 25)
        for other in range(1, 19)
        if 5 * one + 2 * other <= budget
    )
    reached = worth("a", kept["a"]) + worth("b", kept["b"])
    piece = max(worth(name, count + 1) - worth(name, count) for name, count in kept.items())
    assert most - piece <= reached <= most + 1e-9
    for name, part in found.items():
        assert bool(part.flatten()[values[name].flatten().argsort(descending=True)[: kept[name]]].all())
    outputs = output_change(model, tk.scope(model), X)
    whole = tk.prune(model, flops=0.3, example_inputs=X)
    assert whole == allocate_worth(outputs, uses(model, tk.scope(model), X), 0.3)
    assert all(row.kept for row in tk.prune(model, flops=0.02, example_inputs=X).table())
    assert all(row.kept >= 3 for row in tk.prune(model, flops=0.2, example_inputs=X, keep_at_least=3).table())


@pytest.mark.parametrize("least", [1, 2])
def test_every_layer_keeps_its_best_weights_and_the_rest_is_as_good(least):
    """Against all subsets that have these weights, up to the one weight of the relaxed optimum."""
    generator = torch.Generator().manual_seed(1)
    scores = {"a": torch.rand(5, generator=generator) * 0.01, "b": torch.rand(5, generator=generator) + 0.1}
    prices = {"a": 7, "b": 3}
    cost, worth = torch.tensor([7.0] * 5 + [3.0] * 5), torch.cat(list(scores.values()))
    mask = allocate_multiplications(scores, prices, 0.6, keep_at_least=least)
    chosen = torch.cat(list(mask.values())).float()
    for name, score in scores.items():
        assert mask[name][score.argsort(descending=True)[:least]].all()
    needed = torch.cat([score >= score.sort(descending=True).values[least - 1] for score in scores.values()]).float()
    subsets = map(torch.tensor, itertools.product((0.0, 1.0), repeat=10))
    best = max(float(worth @ one) for one in subsets if (one >= needed).all() and float(cost @ one) <= 0.6 * 50)
    assert float(cost @ chosen) <= 0.6 * 50
    assert best - float(worth @ chosen) <= float((worth[~chosen.bool()]).max())
    with pytest.raises(LayerCollapseError, match="3 weights in each of 2 layers"):
        allocate_multiplications(scores, prices, 0.5, keep_at_least=3)


def test_within_is_kept_to(model):
    within = tk.prune(model, density=0.5)
    mask = tk.prune(model, flops=0.3, example_inputs=X, within=within)
    assert mask & within == mask


def test_too_small_a_budget_says_what_is_enough():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0, 6.0])}
    with pytest.raises(LayerCollapseError, match=r"no weight in a .* at 0\.5455: choose it"):
        allocate_multiplications(scores, {"a": 10, "b": 1}, 0.1)
    # Both weights of b and the better one of a: 12 of 22.
    assert allocate_multiplications(scores, {"a": 10, "b": 1}, 0.5455).kept == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.1, "example_inputs": X}, "takes the place of density"),
        ({"pattern": "4x1", "example_inputs": X}, "single weights"),
        ({}, "is of a call, in which it is counted"),
        ({"flops": 25, "example_inputs": X}, "0 < flops <= 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, options, said):
    with pytest.raises(UsageError, match=said):
        tk.prune(model, **{"flops": 0.2, **options})


class Tied(nn.Module):
    """A weight that is used by its layer, and by others."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.small = nn.Linear(8, 4), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, picture):
        shown = nn.functional.linear(torch.tanh(self.code(x)), self.code.weight.t())
        return shown, nn.functional.conv2d(self.small(picture), self.small.weight, padding=2, dilation=2)


def test_what_others_do_with_a_weight_counts():
    inputs = (torch.zeros(5, 8), torch.zeros(2, 3, 6, 6))
    model = Tied()
    # Five rows through 8 x 4 weights and back; two pictures of 36 places, twice.
    assert uses(model, tk.scope(model), inputs) == {"code.weight": 2 * 5, "small.weight": 2 * 2 * 36}
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
def test_transposed_and_grouped_convolutions(layer, x, each):
    """A weight of a transposed one meets every input of its channel once."""
    assert uses(layer, tk.scope(layer), x) == {"weight": each}


def test_a_transformer_layer_in_parts():
    """Torch would do it in one operation, in which no product is seen."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    scope = tk.scope(layer, spare=["self_attn.in_proj_weight"])
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert uses(layer, scope, torch.zeros(2, 10, 16)) == dict.fromkeys(names[1:], 20)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_parameters_in_one_piece_of_memory_are_told_apart():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    flat = torch.cat([one.detach().flatten() for one in model.parameters()])
    place = 0
    for one in model.parameters():
        one.data = flat[place : place + one.numel()].view_as(one)
        place += one.numel()
    assert uses(model, tk.scope(model), torch.zeros(3, 4)) == {"0.weight": 3, "2.weight": 3}


def test_layers_that_are_not_counted_are_named():
    model = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(UsageError, match=r"not of 0\.weight_ih_l0"):
        tk.prune(model, flops=0.2, example_inputs=torch.zeros(2, 1, 3))


def test_scores_below_zero_are_refused():
    with pytest.raises(UsageError, match="below 0"):
        allocate_multiplications({"a": torch.tensor([-1.0, 1.0])}, {"a": 1}, 0.5)
