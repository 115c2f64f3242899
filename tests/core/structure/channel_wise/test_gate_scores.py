"""Scores by gates on channels, against finite differences of gates that are really there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

import ticketry as tk
from ticketry.core.score import ScoreInputs
from ticketry.core.structure.channel_scores import channel_scores
from ticketry.core.structure.layout import find_roles


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.two, self.out = nn.Conv2d(3, 4, 3), nn.Linear(16, 3)

    def forward(self, images: Tensor, gates: tuple[Tensor, Tensor] | None = None) -> Tensor:
        first = torch.tanh(self.bn(self.one(images)))
        second = torch.tanh(self.two(first if gates is None else first * gates[0].view(1, -1, 1, 1)))
        return self.out((second if gates is None else second * gates[1].view(1, -1, 1, 1)).flatten(1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("spared", [(), ("out",), ("two",)])
@pytest.mark.parametrize("name", ["snap", "crop_gates"])
def test_against_finite_differences(name, spared):
    """Also where a layer that reads the channels is spared: its weights carry the gate, but not the flow."""
    torch.manual_seed(1)
    model = Small().double().train()
    batches = [(torch.randn(8, 1, 6, 6).double(), torch.randint(3, (8,))) for _ in range(2)]
    scope = tk.scope(model, spare=spared)
    weights = scope.parameters(model)
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])

    def loss_at(values: Tensor, gates: tuple[Tensor, Tensor] | None) -> Tensor:
        parts = values.split([weight.numel() for weight in weights.values()])
        changed = {key: part.view_as(weights[key]) for key, part in zip(weights, parts, strict=True)}
        outputs = [functional_call(model, changed, (inputs, gates)) for inputs, _ in batches]
        return (
            sum(nn.functional.cross_entropy(o, targets) for o, (_, targets) in zip(outputs, batches, strict=True)) / 2
        )

    gradient = jacobian(lambda values: loss_at(values, None), flat)

    def measured(gates: tuple[Tensor, Tensor]) -> Tensor:
        if name == "snap":
            return loss_at(flat, gates)
        return (gradient * jacobian(lambda values: loss_at(values, gates), flat)).sum()

    # Dropping `two` from the scope leaves its own channels as they are: they are no candidates then.
    groups = [group for group in tk.structure.channel_groups(model, batches[0][0]) if group.prunable]
    inputs = ScoreInputs(batches, loss)
    found = channel_scores(model, groups, scope, find_roles(model), inputs, score=name, reduce="mean")
    sizes = {3: 0, 4: 1}
    for group, scores in zip(groups, found, strict=True):
        layer = sizes[group.size]
        for channel in range(group.size):
            gates = [(torch.ones(3).double(), torch.ones(4).double()) for _ in range(2)]
            for sign, pair in zip((1, -1), gates, strict=True):
                pair[layer][channel] += sign * 1e-4
            slope = (measured(gates[0]) - measured(gates[1])) / 2e-4
            assert scores[channel].item() == pytest.approx(abs(slope.item()), rel=1e-5, abs=1e-9)


def test_a_search_that_spares_the_output():
    model = Small()
    x = torch.randn(2, 1, 6, 6)
    mask = tk.structure.channels(
        model,
        x,
        0.5,
        score="crop_gates",
        scope=tk.scope(model, output=False),
        batches=[(torch.randn(8, 1, 6, 6), torch.randint(3, (8,)))],
        loss=loss,
    )
    assert mask.density == pytest.approx(0.5, abs=0.2)
