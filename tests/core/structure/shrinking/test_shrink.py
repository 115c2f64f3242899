"""The smaller model is the masked model: outputs, statistics, further training."""

from __future__ import annotations

import copy
from collections import UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from small_networks import NETWORKS, Grouped, Mlp, build, images, settled
from ticketry.errors import LayerCollapseError, MaskError, StructureError
from ticketry.tasks import models as networks

PAPERS = {
    "lenet-300-100@0.05": (1, 8, 8),
    "lenet-5@0.3": (1, 20, 20),
    "conv-2@0.1": (3, 8, 8),
    "conv-4@0.1": (3, 8, 8),
    "conv-6@0.1": (3, 8, 8),
    "resnet-20-8": (3, 8, 8),
    "resnet-18@0.08": (3, 8, 8),
    "resnet-50@0.05": (3, 8, 8),
    "wrn-16-8@0.03": (3, 8, 8),
    "vgg-11@0.05": (3, 16, 16),
}


def case(name: str) -> tuple[nn.Module, Tensor]:
    if name in NETWORKS:
        return build(name)
    torch.manual_seed(0)
    model = networks.build(name, shape=PAPERS[name], classes=5).double()
    return settled(model), torch.randn(3, *PAPERS[name], dtype=torch.float64)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / one.detach().abs().max())


def masked_copy(model: nn.Module, mask: tk.Mask) -> nn.Module:
    return mask.apply_(copy.deepcopy(model))


@pytest.mark.parametrize("name", sample([*PAPERS, *NETWORKS], ["conv-2@0.1", *[*NETWORKS][::4]]))
def test_equal_to_the_masked_model(name: str) -> None:
    model, x = case(name)
    mask = tk.structure.channels(model, x, density=0.6, score="random", distribution="uniform")
    masked, small = masked_copy(model, mask), tk.shrink(model, mask, x)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters()) or (
        name in ("encoder", "attention", "heads", "shared-keys")  # whose streams stay
    )
    for training in (False, True):
        assert difference(masked.train(training)(x), small.train(training)(x)) < 1e-11
    # The statistics that training mode has just moved are those of the channels that are left.
    assert difference(masked.eval()(x), small.eval()(x)) < 1e-11
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(("name", "kind"), [("separable", "sgd"), ("lstm-tied", "adamw"), ("norms", "adam")])
def test_training_goes_on_as_that_of_the_masked_model(name: str, kind: str) -> None:
    model, x = case(name)
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
        "adamw": lambda p: torch.optim.AdamW([{"params": list(p), "lr": 0.02}], lr=0.01, weight_decay=0.1),
    }[kind](model.parameters())

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            network.train()(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    steps(model, optimizer, 3)  # momentum and moments that are worth carrying
    mask = tk.structure.channels(model, x, density=0.5, distribution="uniform")
    plan = tk.structure.shrink_plan(model, mask, x)
    small = tk.structure.rebuild(model, plan)
    smaller = tk.structure.shrink_optimizer(optimizer, model, small, plan)
    with tk.hold(model, mask):
        steps(model, optimizer, 5)
    steps(small, smaller, 5)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, value in {**dict(small.named_parameters()), **dict(small.named_buffers())}.items():
        assert torch.allclose(value.double(), plan.cut(key, tensors[key]).double(), rtol=1e-9, atol=1e-10), key
    assert smaller.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    key = "momentum_buffer" if kind == "sgd" else "exp_avg"
    assert all(smaller.state[parameter][key].shape == parameter.shape for parameter in small.parameters())


def test_what_the_model_has_stays() -> None:
    """Type, device, frozen parameters, memory layout, mode; and the model itself."""
    model = Grouped(2).to(memory_format=torch.channels_last).train()
    model.b.weight.requires_grad_(False)
    x = images().float()
    before = copy.deepcopy(model.state_dict())
    mask = tk.structure.channels(model, x, 0.5)
    small = tk.shrink(model, mask, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.g.out_channels == 24
    assert model.training
    assert small.training
    assert small.g.weight.dtype == torch.float32
    assert not small.b.weight.requires_grad
    assert small.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert small.g.weight.is_contiguous(memory_format=torch.channels_last)
    assert (small.g.out_channels, small.g.in_channels) == (small.n.num_features, small.a.out_channels)
    assert all(p.grad is None for p in model.parameters())


def test_tied_weights_stay_tied() -> None:
    model, x = build("lstm-tied")
    small = tk.shrink(model, tk.structure.channels(model, x, 0.6, scope=tk.scope(model, embeddings=True)), x)
    assert small.decode.weight is small.embed.weight


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_arguments_by_name(kind: type) -> None:
    """Tokenizers give mappings of their own, that are no dict."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)) * scale)

    torch.manual_seed(0)
    model, given = Scaled().eval(), kind(scale=torch.rand(2, 1), x=torch.randn(2, 6))
    mask = tk.structure.channels(model, given, density=0.5)
    small = tk.shrink(model, mask, given)
    assert small.first.weight.shape[0] < 8
    torch.testing.assert_close(small(**given), mask.apply_(model)(**given))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_mask_that_is_not_channel_wise() -> None:
    model, x = build("grouped-2")
    unstructured = tk.prune(model, 0.5, score="random")
    with pytest.raises(
        MaskError, match=r"not channel-wise: [\d,]+ of the [\d,]+ weights .* 'g.weight'.* in 4 of 4 tensors"
    ):
        tk.shrink(model, unstructured, x)


def test_a_mask_of_rows_alone_names_what_keeps_its_part() -> None:
    """A channel whose weights are 0 still emits its bias: it cannot be taken out."""
    model, x = build("grouped-2")
    rows = {name: torch.ones(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    rows["b.weight"][2] = False
    with pytest.raises(MaskError, match=r"'b.weight'.*channel 2 of b is not removed from 'b.bias'"):
        tk.shrink(model, tk.Mask(rows), x)
    with pytest.raises(MaskError, match="which the mask does not have"):
        tk.shrink(model, tk.Mask({"b.weight": rows["b.weight"]}), x)
    rows["fc.weight"][1] = False
    with pytest.raises(MaskError, match="channel 1 of fc cannot be removed, for it is an output"):
        tk.shrink(model, tk.Mask({"fc.weight": rows["fc.weight"]}), x)


def test_a_mask_that_empties_a_layer() -> None:
    model, x = build("grouped-2")
    (group,) = (group for group in tk.structure.channel_groups(model, x) if group.name == "b")
    mask = {name: torch.ones(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for member in group.parameters:
        mask[member.name][:] = False
    mask["fc.bias"][:] = mask["fc.weight"].any()
    mask["fc.bias"][:] = True
    mask["g.weight"][:] = True
    with pytest.raises(LayerCollapseError, match="all 6 channels of b"):
        tk.shrink(model, tk.Mask(mask), x)


def test_a_number_in_the_code() -> None:
    """The mask is made by hand. Shrinking says that the model is not the same without the channel."""

    class Scaled(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.layers[0](x))
            return self.layers[-1](hidden / hidden.shape[1])

    torch.manual_seed(0)
    model = Scaled().double()
    model.layers = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    mask = {name: torch.ones(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for name in ("layers.0.weight", "layers.0.bias"):
        mask[name][1] = False
    mask["layers.1.weight"][:, 1] = False
    with pytest.raises(MaskError, match=r"channel 1 of layers\.0 cannot be removed, for the model is not the same"):
        tk.shrink(model, tk.Mask(mask), x)


def test_optimizers_of_something_else() -> None:
    model, x = build("mlp")
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 0.5), x)
    small = tk.structure.rebuild(model, plan)
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(StructureError, match="parameter group 0"):
        tk.structure.shrink_optimizer(stranger, model, small, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.layers[0].weight]["rows"] = torch.zeros(8)
    with pytest.raises(StructureError, match=r"'rows' of 'layers\.0\.weight'"):
        tk.structure.shrink_optimizer(optimizer, model, small, plan)


def test_the_state_of_lbfgs_is_of_all_parameters_and_refused() -> None:
    """It stands under the first of them, here one that is not cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, optimizer = torch.randint(0, 10, (5,)), torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mask = tk.structure.channels(model, x, 0.8, scope=tk.scope(model, spare=["0"]))
    plan = tk.structure.shrink_plan(model, mask, x)
    with pytest.raises(StructureError, match=r"of several parameters at once \(LBFGS\)"):
        tk.structure.shrink_optimizer(optimizer, model, tk.structure.rebuild(model, plan), plan)


def test_a_number_that_the_trial_missed() -> None:
    """The trial removes half of the channels; this model counts them by threes."""

    class Threes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.a(x))
            return self.b(hidden * (2 if hidden.shape[1] % 3 else 1))

    torch.manual_seed(0)
    model, x = Threes().double(), torch.randn(3, 5, dtype=torch.float64)
    mask = tk.structure.channels(model, x, 8 / 12, keep_at_least=8)
    assert int(mask["a.bias"].sum()) == 8
    with pytest.raises(StructureError, match="a number in its code stands for a width"):
        tk.shrink(model, mask, x)
