"""Scores of channels by activations, against forward passes written out and hooks on modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from small_networks import build, settled
from ticketry.core.score import ScoreInputs
from ticketry.core.structure.channel_scores import activation_scores
from ticketry.core.structure.layout import find_roles
from ticketry.errors import UsageError


class Chain(nn.Module):
    """Two convolutions, a norm, dropout, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.b, self.c, self.d = nn.Conv2d(4, 6, 3), nn.Linear(24, 5), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.n(self.a(x)))))
        return self.d(F.relu(self.c(self.drop(x.flatten(1)))))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


def scores(model: nn.Module, data: list[Tensor], score: str) -> dict[str, Tensor]:
    groups = [group for group in tk.structure.channel_groups(model, data[0]) if group.prunable]
    values = activation_scores(model, groups, tk.scope(model), find_roles(model), ScoreInputs(data, loss), score=score)
    return {group.name: value for group, value in zip(groups, values, strict=True)}


def test_by_hand_behind_norm_and_relu() -> None:
    """Batches of different size: the mean is over examples, not over batches."""
    torch.manual_seed(3)
    model = settled(Chain().double()).train()
    data = [torch.randn(count, 1, 6, 6, dtype=torch.float64) for count in (5, 2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found, alive = scores(model, data, "activation"), scores(model, data, "apoz")
    assert model.training
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    kept: dict[str, list[Tensor]] = {"a": [], "b": [], "c": []}
    for x in data:
        norm = F.batch_norm(model.a(x), None, None, model.n.weight, model.n.bias, training=True)
        first = F.relu(norm)
        second = F.relu(model.b(first))
        third = F.relu(model.c(second.flatten(1)))
        for name, value in zip("abc", (first, second, third), strict=True):
            kept[name].append(value.detach())
    for name, values in kept.items():
        together = torch.cat(values).transpose(0, 1).flatten(1)
        assert torch.allclose(found[name], together.mean(1))
        assert torch.allclose(alive[name], (together > 0).double().mean(1))


@pytest.mark.parametrize("name", ["separable", "grouped-2", "dense", "heads"])
def test_against_hooks_on_modules(name: str) -> None:
    """Each index of each reader by itself, slowly: which of them a channel is, the structure says."""
    model, inputs = build(name)
    groups = [group for group in tk.structure.channel_groups(model, inputs) if group.prunable]
    parts, seen = find_roles(model), {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def keep(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                x = args[0].detach().abs()
                seen[f"{path}.weight"] = x.transpose(0, 1).flatten(1) if x.dim() == 4 else x.reshape(-1, x.shape[-1]).T

            module.register_forward_pre_hook(keep)
    for module in model.modules():
        module.training = isinstance(module, nn.modules.batchnorm._NormBase)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    with torch.no_grad():
        model(inputs)
    for key, value in model.named_buffers():
        value.copy_(buffers[key])
    readable = [
        group
        for group in groups
        if any(member.name in seen and (member.name, member.dim) in parts.inputs for member in group.parameters)
    ]
    assert readable
    values = activation_scores(model, readable, tk.scope(model), parts, ScoreInputs([inputs], run), score="activation")
    shapes = dict(model.named_parameters())
    for group, value in zip(readable, values, strict=True):
        for channel in range(group.size):
            means = []
            for member in group.parameters:
                if member.name not in seen or (member.name, member.dim) not in parts.inputs:
                    continue
                rows, weight = seen[member.name], shapes[member.name]
                size = weight.shape[member.dim]
                own = []
                for index in member.indices[channel]:
                    if member.dim == 0 and weight.dim() == 4:  # depthwise: outputs of one input lie side by side
                        own.append(rows[index * len(rows) // size].mean())
                    else:
                        own.append(rows[index::size].mean())
                means.append(torch.stack(own).mean())
            assert float(value[channel]) == pytest.approx(float(torch.stack(means).mean()), rel=1e-9)


def run(model: nn.Module, batch: Any) -> Tensor:
    found = model(batch)
    return found[0] if isinstance(found, tuple) else found


def test_a_mask_by_activations_shrinks() -> None:
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.c.bias[3] = -100.0  # a dead unit
    data = [torch.randn(8, 1, 6, 6)]
    only = tk.scope(model, spare=("a", "b"))
    for score in ("activation", "apoz"):
        mask = tk.structure.channels(model, data[0], 0.85, score=score, scope=only, batches=data, loss=loss)
        assert not mask["c.weight"][3].any()
        assert tk.structure.shrink(model, mask, data[0]).c.out_features < 5


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_bad_input() -> None:
    model, x = Smooth(), torch.randn(4, 3)
    with pytest.raises(UsageError, match="networks with ReLU"):
        tk.structure.channels(model, x, 0.5, score="apoz", batches=[x], loss=loss)
    with pytest.raises(UsageError, match="needs batches and a loss"):
        tk.structure.channels(model, x, 0.5, score="activation")
    with pytest.raises(UsageError, match="no batch"):
        tk.structure.channels(model, x, 0.5, score="activation", batches=[], loss=loss)


def test_large_activations_in_half_precision() -> None:
    """Squares of 300 are beyond float16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].weight.data.mul_(300)
    data = torch.randn(8, 4)
    found = []
    for kind in (torch.float32, torch.float16):
        batches, loss = [data.to(kind)], lambda model, batch: model(batch).float().sum()
        mask = tk.structure.channels(
            model.to(kind), data.to(kind), 0.5, score="activation_l2", batches=batches, loss=loss
        )
        found.append(mask["0.weight"].any(1).tolist())
    assert found[0] == found[1]
