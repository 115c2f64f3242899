"""Refill against loops over channels: how many, which, and whether the smaller network is the masked one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from refilled import (
    CHAIN,
    RESIDUAL,
    RESIDUAL_INPUTS,
    RESIDUAL_STRUCTURE,
    chain,
    kept_channels,
    paid,
    random_mask,
    refill,
    residual,
)
from samples import sample
from small_networks import Chain, build, settled
from ticketry.errors import LayerCollapseError
from ticketry.tasks import models as networks


class Inception(nn.Module):
    """Branches of several depths, joined, twice; an auxiliary classifier that is not the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.small = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (6, 12))
        self.deep = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 8, 3, padding=1))
            for width in (6, 12)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for small, deep, norm in zip(self.small, self.deep, self.norms, strict=True):
            x = F.relu(norm(torch.cat([small(x), deep(x)], 1)))
        return self.fc(x.mean((2, 3)))


# -- the slow references -----------------------------------------------------------------------------------------------


def row_score(weight: Tensor, kept: Tensor, row: int, score: str) -> float:
    """Return the paper's score, weight by weight."""
    numbers = [w for w, k in zip(weight[row].flatten().tolist(), kept[row].flatten().tolist(), strict=True) if k]
    if score == "remaining":
        return float(len(numbers))
    if score == "l1":
        return math.fsum(abs(w) for w in numbers)
    return math.sqrt(math.fsum(w * w for w in numbers))


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda c: (-round(scores[c], 12), c))[:count]


# -- how many, and which -----------------------------------------------------------------------------------------------


@given(
    density=st.floats(0.15, 0.95),
    seed=st.integers(0, 1000),
    score=st.sampled_from(("remaining", "l1", "l2")),
    plus=st.sampled_from((0.0, 0.25, 0.5, 1.0)),
)
def test_a_chain_by_loops(density: float, seed: int, score: str, plus: float) -> None:
    mask = random_mask(CHAIN, density, seed)
    assume(all(bool(mask[f"{name}.weight"].any()) for name in "abc"))  # an empty layer is an error
    found = chain(mask, score, plus)
    stay = {}
    for name in "abc":
        weight, kept = CHAIN.get_submodule(name).weight, mask[f"{name}.weight"]
        stay[name] = best([row_score(weight, kept, r, score) for r in range(len(kept))], paid([(weight, kept)], plus))
    expected = {name: torch.zeros_like(found[name]) for name in found}
    for row in stay["a"]:
        expected["a.weight"][row] = expected["a.bias"][row] = True
        expected["n.weight"][row] = expected["n.bias"][row] = True
    for row in stay["b"]:
        expected["b.bias"][row] = True
        for column in stay["a"]:
            expected["b.weight"][row, column] = True
    for row in stay["c"]:
        expected["c.bias"][row] = True
        for column in stay["b"]:
            expected["c.weight"][row, 4 * column : 4 * column + 4] = True
    expected["d.weight"][:, stay["c"]] = True
    assert found == tk.Mask(expected)


@example(density=0.125, seed=583, score="remaining")
@given(density=st.floats(0.1, 0.95), seed=st.integers(0, 1000), score=st.sampled_from(("remaining", "l1", "l2")))
def test_a_stream_agrees(density: float, seed: int, score: str) -> None:
    """Magnitudes are shares of each layer's sum, counts are not; all three layers have one budget."""
    mask = random_mask(RESIDUAL, density, seed)
    layers = [(RESIDUAL.get_submodule(name).weight, mask[f"{name}.weight"]) for name in ("stem", "two", "four")]
    total = [0.0] * 8
    for weight, kept in layers:
        scores = [row_score(weight, kept, row, score) for row in range(8)]
        unit = 1.0 if score == "remaining" else sum(scores)
        total = [t + s / unit for t, s in zip(total, scores, strict=True)]
    stay = sorted(best(total, paid(layers)))
    weight, kept = RESIDUAL.one.weight, mask["one.weight"]
    inside = sorted(best([row_score(weight, kept, row, score) for row in range(5)], paid([(weight, kept)])))
    if not kept.any():  # so sparse that there is nothing to fill a channel with
        with pytest.raises(LayerCollapseError):
            residual(mask, score)
        return
    found = residual(mask, score)
    for name in ("stem.weight", "two.weight", "four.weight"):
        assert kept_channels(found, name) == stay
    assert kept_channels(tk.Mask({"t": found["fc.weight"].T}), "t") == stay
    assert kept_channels(found, "one.weight") == inside

    whole = residual(mask, score, coupled="inner")
    assert whole["stem.weight"].all()
    assert whole["stem.weight"].shape == RESIDUAL.stem.weight.shape
    assert kept_channels(whole, "one.weight") == inside
    assert whole["two.weight"][:, inside].all()
    assert int(whole["two.weight"].sum()) == 8 * len(inside) * 9


def test_the_best_are_filled_back_first() -> None:
    mask = random_mask(CHAIN, 0.3)
    rising = [chain(mask, plus=plus) for plus in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all(low <= high for low, high in pairwise(rising))
    assert rising[-1].density == 1
    assert rising[0].density < rising[3].density < 1


def test_density_is_the_nearest_one_possible() -> None:
    mask = random_mask(RESIDUAL, 0.3)
    reached = [residual(mask, plus=share / 60).density for share in range(61)]  # 6, 4 and 5 channels are emptied
    assert len(set(reached)) > 10
    for density in (0.05, 0.3, 0.55, 0.8, 1.0):
        found = residual(mask, density=density)
        assert abs(found.density - density) == pytest.approx(min(abs(one - density) for one in reached), abs=1e-12)


def test_multiple_and_keep_at_least() -> None:
    mask = random_mask(RESIDUAL, 0.3)
    assert len(kept_channels(residual(mask), "stem.weight")) == 2
    assert len(kept_channels(residual(mask, multiple=4), "stem.weight")) == 4
    assert len(kept_channels(residual(mask, multiple=16), "stem.weight")) == 8
    assert len(kept_channels(residual(mask, keep_at_least=5), "one.weight")) == 5


# -- scores that need data ------------------------------------------------------------------------------------------


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, 1, 6, 6, dtype=torch.float64, generator=draw), torch.tensor([0, 1, 2, 0])) for _ in range(count)
    ]


def test_taylor_scores_the_masked_network() -> None:
    mask = random_mask(CHAIN, 0.5)
    before = {name: value.clone() for name, value in CHAIN.state_dict().items()}
    found = chain(mask, "taylor", batches=data(), loss=loss)
    assert all(torch.equal(value, before[name]) for name, value in CHAIN.state_dict().items())
    twin = Chain().double().train()
    twin.load_state_dict(before)
    mask.apply_(twin)
    (sum(loss(twin, batch) for batch in data()) / 2).backward()
    for name in "abc":
        layer, kept = twin.get_submodule(name), mask[f"{name}.weight"]
        effects = (layer.weight * layer.weight.grad).detach().abs().flatten(1).sum(1).tolist()
        assert kept_channels(found, f"{name}.weight") == sorted(best(effects, paid([(layer.weight, kept)])))


@pytest.mark.parametrize(("score", "power"), [("activation_l1", 1), ("activation_l2", 2)])
def test_feature_maps_are_those_of_each_layer(score: str, power: int) -> None:
    mask = random_mask(CHAIN, 0.5)
    twin = Chain().double().train()
    twin.load_state_dict(CHAIN.state_dict())
    mask.apply_(twin)
    maps: dict[str, list[Tensor]] = {"a": [], "b": [], "c": []}
    with torch.no_grad():
        for inputs, _ in data():
            a = F.relu(twin.n(twin.a(inputs)))
            b = F.relu(twin.b(a))
            for name, value in zip("abc", (a, b, torch.tanh(twin.c(b.flatten(1)))), strict=True):
                maps[name].append(
                    value.abs().pow(power).flatten(2) if name != "c" else value.abs().pow(power)[..., None]
                )
    found = chain(mask, score, batches=data(), loss=loss)
    for name, seen in maps.items():
        worth = torch.cat(seen).mean((0, 2)).tolist()
        kept = mask[f"{name}.weight"]
        assert kept_channels(found, f"{name}.weight") == sorted(best(worth, paid([(kept, kept)])))


def test_controls_and_other_scores_keep_as_many() -> None:
    mask = random_mask(RESIDUAL, 0.4)
    real, control = residual(mask), residual(mask, "shuffled:l1", seed=1)
    assert real.kept == control.kept
    assert real != control
    assert residual(mask, "shuffled:l1", seed=1) == control
    assert residual(mask, "inverted:remaining") != residual(mask, "remaining")
    assert residual(mask, "magnitude") == real
    assert residual(mask, "activation_l1", batches=[RESIDUAL_INPUTS], loss=lambda m, x: m(x).sum()).kept == real.kept


# -- the network is the same -------------------------------------------------------------------------------------------


NETWORKS = {
    "resnet-18": lambda: (networks.build("resnet-18@0.125", shape=(3, 16, 16), classes=10), torch.randn(3, 3, 16, 16)),
    "inception": lambda: (Inception(), torch.randn(3, 3, 8, 8)),
    "mobile": lambda: build("separable"),
}


@pytest.mark.parametrize(
    ("name", "coupled"),
    sample([("inception", "agree"), ("mobile", "inner"), ("resnet-18", "agree"), ("resnet-18", "inner")], 2),
)
def test_the_small_network_is_the_masked_one(name: str, coupled: str) -> None:
    torch.manual_seed(1)
    model, inputs = NETWORKS[name]()
    model, inputs = settled(model.double()).eval(), inputs.double()
    mask = tk.prune(model, density=0.3, distribution="uniform")
    ticket = refill(model, mask, inputs, plus=0.1, coupled=coupled)
    small = tk.shrink(model, ticket, inputs)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
    ticket.apply_(model)
    with torch.no_grad():
        for training in (False, True):
            wanted = model.train(training)(inputs)
            assert float((small.train(training)(inputs) - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


def test_residual_streams_are_joined_by_additions() -> None:
    """Products with a gate (squeeze and excite) and concatenations join none."""
    assert {group.name for group in RESIDUAL_STRUCTURE.groups if group.residual} == {"stem"}
    for name in ("separable", "dense", "shuffle"):
        assert not any(group.residual for group in tk.structure.channel_groups(*build(name)))
    model, inputs = build("twice")
    assert any(group.residual for group in tk.structure.channel_groups(model, inputs))
