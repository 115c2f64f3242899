"""Channel-wise masks: densities, distributions, and scores against their definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from small_networks import Chain, Mlp, build, settled
from ticketry.core.score import ScoreInputs, names
from ticketry.core.structure.channel_scores import CHANNEL_ONLY, CHANNEL_SCORES, channel_scores
from ticketry.core.structure.layout import find_roles
from ticketry.errors import LayerCollapseError, MaskError, ScoreError, StructureError, UsageError
from ticketry.tasks import models as networks


def chain() -> tuple[Chain, Tensor]:
    torch.manual_seed(3)
    return settled(Chain().double()), torch.randn(5, 1, 6, 6, dtype=torch.float64)


def loss(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(4, 1, 6, 6, dtype=torch.float64, generator=draw),
            torch.tensor([0, 1, 2, 0]),
        )
        for _ in range(count)
    ]


def scores(model: nn.Module, x: Tensor, score: Any, reduce: str = "sum", **data: Any) -> dict[str, Tensor]:
    groups = [group for group in tk.structure.channel_groups(model, x) if group.prunable]
    inputs = ScoreInputs(**data)
    values = channel_scores(model, groups, tk.scope(model), find_roles(model), inputs, score=score, reduce=reduce)
    return {group.name: value for group, value in zip(groups, values, strict=True)}


# -- scores ------------------------------------------------------------------------------------------------------------


def test_norms_cover_all_weights_of_a_channel() -> None:
    model, x = chain()
    a, b, c = model.a.weight.detach(), model.b.weight.detach(), model.c.weight.detach()
    l1, l2 = scores(model, x, "l1"), scores(model, x, "l2")
    for k in range(4):
        assert float(l1["a"][k]) == pytest.approx(float(a[k].abs().sum() + b[:, k].abs().sum()))
        assert float(l2["a"][k]) == pytest.approx(float((a[k].square().sum() + b[:, k].square().sum()).sqrt()))
    pixels = slice(4 * 2, 4 * 3)
    assert float(l1["b"][2]) == pytest.approx(float(b[2].abs().sum() + c[:, pixels].abs().sum()))
    mean = scores(model, x, "l1", reduce="mean")
    assert torch.allclose(mean["b"], l1["b"] / (4 * 9 + 5 * 4))


def test_any_score_of_weights_is_summed() -> None:
    model, x = chain()

    def ones(model: nn.Module, scope: tk.Scope, *, batches: Any = None, loss: Any = None, seed: int = 0) -> Any:
        return {name: torch.full(shape, 0.5) for name, shape in scope.shapes.items()}

    assert scores(model, x, ones)["a"].tolist() == [0.5 * (9 + 6 * 9)] * 4
    assert scores(model, x, ones, reduce="mean")["c"].tolist() == [0.5] * 5
    magnitude, l1 = scores(model, x, "magnitude"), scores(model, x, "l1")
    assert all(torch.allclose(magnitude[name], l1[name]) for name in l1)


def test_slimming_is_the_scale_of_the_norm() -> None:
    model, x = chain()
    only_a = tk.scope(model, spare=("b", "c", "d"))
    groups = [group for group in tk.structure.channel_groups(model, x) if group.name == "a"]
    (values,) = channel_scores(model, groups, only_a, find_roles(model), ScoreInputs(), score="slimming", reduce="mean")
    assert torch.allclose(values, model.n.weight.detach().abs())
    with pytest.raises(UsageError, match="needs a norm with a scale behind every layer: b has none"):
        scores(model, x, "slimming")


def test_taylor_does_not_change_the_model() -> None:
    model, x = chain()
    model.train()
    data, before = batches(3), {key: value.clone() for key, value in model.state_dict().items()}
    mine = scores(model, x, "taylor", batches=iter(data), loss=loss)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    twin = copy.deepcopy(model)
    (sum(loss(twin, batch) for batch in data) / 3).backward()
    effect = {name: (p * p.grad).abs().detach() for name, p in twin.named_parameters()}
    assert float(mine["c"][4]) == pytest.approx(float(effect["c.weight"][4].sum() + effect["d.weight"][:, 4].sum()))


# -- densities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["global", "uniform"])
@pytest.mark.parametrize("density", [0.3])
def test_density_is_met_within_one_channel(distribution: str, density: float) -> None:
    torch.manual_seed(0)
    model, x = networks.build("conv-4@0.2", shape=(3, 8, 8), classes=5), torch.randn(2, 3, 8, 8)
    mask = tk.structure.channels(model, x, density, distribution=distribution)
    largest = max(
        sum(mask[m.name].numel() // mask[m.name].shape[m.dim] * len(m.indices[0]) for m in group.parameters)
        for group in tk.structure.channel_groups(model, x)
        if group.prunable
    )
    assert abs(mask.kept - density * mask.total) <= largest / 2 + 1
    assert mask == tk.structure.channels(model, x, sparsity=round(1 - density, 6), distribution=distribution)
    if distribution == "uniform":
        biases = [name for name in mask if name.endswith(".bias")]
        shares = [float(mask[name].float().mean()) for name in biases]
        assert len(shares) == 6  # all but the output layer's
        assert max(shares) - min(shares) < 0.1


def test_the_worst_channels_are_removed() -> None:
    model, x = chain()
    with torch.no_grad():
        for tensor in (model.a.weight[1], model.b.weight[:, 1], model.c.weight[3], model.d.weight[:, 3]):
            tensor *= 1e-3
    groups = {group.name: group for group in tk.structure.channel_groups(model, x)}
    whole = tk.structure.channels(model, x, 1.0)
    assert whole.kept == whole.total
    wanted = {name: kept.clone() for name, kept in whole.items()}
    for name, channel in (("a", 1), ("c", 3)):
        for member in groups[name].parameters:
            wanted[member.name].index_fill_(member.dim, torch.tensor(member.indices[channel]), False)
    expected = tk.Mask(wanted)
    assert tk.structure.channels(model, x, expected.density) == expected


def test_removed_channels_are_exactly_zero_everywhere() -> None:
    """After each norm and rectifier of a residual network, in training mode too."""
    torch.manual_seed(0)
    model, x = networks.build("resnet-20-8", shape=(3, 8, 8), classes=5), torch.randn(2, 3, 8, 8)
    model = settled(model)
    mask = tk.structure.channels(model, x, 0.4, distribution="uniform")
    mask.apply_(model)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x)
    for index, output in enumerate(seen):
        dead = ~mask[f"blocks.{index}.bn2.weight"]
        assert dead.any()
        assert not output[:, dead].any()


def test_scope_selects_layers() -> None:
    model, x = chain()
    mask = tk.structure.channels(model, x, 0.8, scope=tk.scope(model, spare=("a", "c")))
    assert mask["a.bias"].all() if "a.bias" in mask else True
    assert mask["c.bias"].all() if "c.bias" in mask else True
    assert not mask["b.bias"].all()
    assert "a.weight" not in mask
    with pytest.raises(StructureError, match="no channels that can be removed; a: it is out of scope"):
        tk.structure.channels(model, x, 0.8, scope=tk.scope(model, spare=("a", "b", "c")))


def test_layers_never_empty() -> None:
    model, x = chain()
    lowest = tk.structure.channels(model, x, 0.12)
    assert all(lowest[f"{name}.bias"].any() for name in "abc")
    with pytest.raises(LayerCollapseError, match=r"density 0\.01 cannot be reached .* 1 left in each of 3 groups"):
        tk.structure.channels(model, x, 0.01)
    with pytest.raises(LayerCollapseError, match="4 left"):
        tk.structure.channels(model, x, 0.3, keep_at_least=4)
    mask = tk.structure.channels(model, x, 0.7, keep_at_least=3)
    assert all(mask[f"{name}.bias"].sum() >= 3 for name in "abc")


def test_ties_break_by_position() -> None:
    model, x = chain()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    mask = tk.structure.channels(model, x, 0.6, distribution="uniform")
    for name in "abc":
        kept = mask[f"{name}.bias"]
        assert kept[: int(kept.sum())].all()


def test_a_held_mask_covers_biases_and_norms() -> None:
    model, x = build("mlp")
    mask = tk.structure.channels(model, x, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with tk.hold(model, mask):
        model.train()(x).square().sum().backward()
        optimizer.step()
    assert {"layers.0.bias", "layers.1.weight", "layers.1.bias"} <= set(mask)
    wanted = mask.apply_(copy.deepcopy(model))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.5, "score": "l3"}, r"score 'l3' is not known: l1, l2, .*magnitude"),
        ({"density": 0.5, "reduce": "max"}, "reduce is mean or sum"),
        ({"density": 0.5, "distribution": "erk"}, "global or uniform"),
        ({"density": 0.5, "keep_at_least": 0}, "keep_at_least is 1 or more"),
        ({"density": 1.5}, "0 < density <= 1"),
        ({}, "give either density= "),
        ({"density": 0.5, "score": "snap"}, "needs batches and a loss"),
        ({"density": 0.5, "score": "taylor", "batches": [], "loss": loss}, "no batch in batches="),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    model, x = build("mlp")
    with pytest.raises(UsageError, match=message):
        tk.structure.channels(model, x, **options)


def test_scores_that_are_not_numbers() -> None:
    model, x = build("mlp")
    assert isinstance(model, Mlp)
    with torch.no_grad():
        model.layers[0].weight[2, 1] = float("nan")
    with pytest.raises(MaskError, match=r"the channels of layers\.0 are not all numbers"):
        tk.structure.channels(model, x, 0.5)


# -- from one mask to the next -----------------------------------------------------------------------------------------


def test_channels_outside_a_mask_stay_removed() -> None:
    """Removed channels count as 0, whatever their weights are."""
    model, x = chain()
    first = tk.structure.channels(model, x, 0.7)
    masked = first.apply_(copy.deepcopy(model))
    with torch.no_grad():  # by these they would be retained
        for name, kept in first.items():
            model.get_parameter(name)[~kept] = 100.0
    second = tk.structure.channels(model, x, 0.4, within=first)
    assert second <= first
    assert second == tk.structure.channels(masked, x, 0.4)
    assert all(bool((model.get_parameter(name)[~kept] == 100).all()) for name, kept in first.items())
    assert tk.structure.channels(model, x, 0.9, within=first) == first
    even = tk.structure.channels(model, x, 0.7, distribution="uniform")
    sparser = tk.structure.channels(model, x, 0.3, distribution="uniform", within=even)
    shares = [float(sparser[f"{name}.bias"].float().mean()) for name in "abc"]
    assert sparser <= even
    assert max(shares) - min(shares) < 0.25  # as near as 4, 6 and 5 channels permit


def test_within_has_whole_channels_in_scope() -> None:
    model, x = chain()
    spared = tk.structure.channels(model, x, 0.8, scope=tk.scope(model, spare=("a",)))
    single = tk.structure.channels(model, x, 0.8)
    single = tk.Mask({**single, "a.weight": torch.rand(4, 1, 3, 3) < 0.5})
    for wrong in (spared, single):
        with pytest.raises(MaskError, match="not of whole channels of this model in this scope"):
            tk.structure.channels(model, x, 0.5, within=wrong)


def test_controls_of_scores_are_by_group() -> None:
    model, x = chain()
    plain, turned = scores(model, x, "l2"), scores(model, x, "inverted:l2")
    mixed, other = (scores(model, x, "shuffled:l2", seed=seed) for seed in (0, 1))
    for name, values in plain.items():
        assert torch.equal(turned[name], -values)
        assert torch.equal(mixed[name].sort().values, values.sort().values)
    assert any(not torch.equal(mixed[name], plain[name]) for name in plain)
    assert any(not torch.equal(mixed[name], other[name]) for name in plain)


# -- undefined scores --------------------------------------------------------------------------------------------------

BY_GRADIENTS = ("taylor", "snap", "crop_gates")


@pytest.mark.parametrize("score", BY_GRADIENTS)
def test_gradients_are_taken_without_dropout_and_modes_are_as_before(score: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3)).double()
    data = [(torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3)]
    first, again = (scores(model, data[0][0], score, batches=data, loss=loss) for _ in range(2))
    assert torch.equal(first["0"], again["0"])
    model[1].eval()
    assert torch.equal(first["0"], scores(model, data[0][0], score, batches=data, loss=loss)["0"])
    assert [module.training for module in model] == [True, False, True, True, True]


@pytest.mark.parametrize("score", BY_GRADIENTS)
def test_gradients_that_are_all_0(score: str) -> None:
    model, x = chain()
    with torch.no_grad():
        model.a.bias.fill_(-1000)
        model.n.bias.fill_(-1000)  # no unit behind it is ever on
        model.b.bias.fill_(-1000)
        model.d.weight.zero_()
    with pytest.raises(ScoreError, match=f"score '{score}' is 0 for every weight"):
        tk.structure.channels(model, x, 0.5, score=score, batches=batches(), loss=lambda m, b: m(b[0]).sum() * 0)
    with pytest.raises(ScoreError, match="does not depend on any parameter"):
        tk.structure.channels(model, x, 0.5, score=score, batches=batches(), loss=lambda m, b: b[0].sum())


class Once(torch.autograd.Function):
    """The identity, to be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def test_gates_of_gradient_flow_need_second_derivatives() -> None:
    model, x = chain()

    def once(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(Once.apply(model(batch[0])), batch[1])

    tk.structure.channels(model, x, 0.5, score="snap", batches=batches(), loss=once)
    with pytest.raises(ScoreError, match=r"score 'crop_gates' needs second derivatives: Once has no .* snap, taylor"):
        tk.structure.channels(model, x, 0.5, score="crop_gates", batches=batches(), loss=once)


def test_every_score_of_channels_is_described_once() -> None:
    assert set(CHANNEL_ONLY) == set(CHANNEL_SCORES) - set(names())
    assert {found.about.channels for found in CHANNEL_ONLY.values()} == {"only"}
