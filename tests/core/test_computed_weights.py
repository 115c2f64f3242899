"""Layers whose weight is computed: by torch's parametrisations, by the older norms of weights, by one's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from ticketry.core.gates import attach
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError, MaskError, ScopeError


class Symmetric(nn.Module):
    """torch's tutorial on parametrisations: a zero below the diagonal is a zero of nothing."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Scaled(nn.Module):
    """Each row times a number that is learned too."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(rows, 1))

    def forward(self, weight):
        return weight * self.scale


class LowRank(nn.Module):
    """An adapter that is 0 to begin with, as LoRA's is: at first zeros seem to pass."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, columns)), nn.Parameter(torch.zeros(rows, 2))

    def forward(self, weight):
        return weight + self.up @ self.down


class Positive(nn.Module):
    def forward(self, weight):
        return nn.functional.softplus(weight)


def own(rule):
    def put(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", rule(layer))
        return layer

    return put


def twice(layer: nn.Module) -> nn.Module:
    return own(lambda layer: Scaled(layer.weight.shape[0]))(parametrizations.weight_norm(layer))


PASSING = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original1"),
    "weight_norm of columns": (
        lambda layer: parametrizations.weight_norm(layer, dim=1),
        "parametrizations.weight.original1",
    ),
    "weight_norm of all": (
        lambda layer: parametrizations.weight_norm(layer, dim=None),
        "parametrizations.weight.original1",
    ),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original"),
    "older weight_norm": (nn.utils.weight_norm, "weight_v"),
    "older spectral_norm": (nn.utils.spectral_norm, "weight_orig"),
    "scaled": (own(lambda layer: Scaled(layer.weight.shape[0])), "parametrizations.weight.original"),
    "one after another": (twice, "parametrizations.weight.original1"),
}
REFUSED = {
    "orthogonal": parametrizations.orthogonal,
    "symmetric": own(lambda _: Symmetric()),
    "low rank": own(lambda layer: LowRank(*layer.weight.shape)),
    "positive": own(lambda _: Positive()),
}
older = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*")


def network(put) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), put(nn.Linear(20, 20)), nn.ReLU(), nn.Linear(20, 5))


def loss(model: nn.Module) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return model(torch.randn(16, 30, generator=draw)).logsumexp(1).mean()


@older
@pytest.mark.parametrize("kind", PASSING)
def test_a_layer_is_pruned_through_what_its_weight_is_computed_from(kind):
    put, name = PASSING[kind]
    model = network(put)
    mask = prune(model, 0.3, distribution="layerwise")
    assert list(mask) == ["0.weight", f"2.{name}", "4.weight"]
    removed = ~mask[f"2.{name}"]
    assert int(removed.sum()) == 280  # of 400
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    start = None
    with hold(model, mask):
        for _ in range(5):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            model(torch.ones(1, 30))  # what is computed by hooks is now of the weights as they are
            weight = model[2].weight.detach().clone()
            start = weight if start is None else start
            assert torch.equal(weight == 0, removed)
    assert not torch.equal(start, weight)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_whose_zeros_do_not_pass_is_named(kind):
    model = network(REFUSED[kind])
    with pytest.raises(ScopeError, match=r"no weight can be removed from 'weight' of '2' \("):
        scope(model)
    assert list(scope(model, spare="2")) == ["0.weight", "4.weight"]
    everything = scope(model, include="2.parametrizations.weight.original")
    mask = prune(model, 0.5, scope=everything, distribution="layerwise")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match=r"mask of '2\.parametrizations\.weight\.original' does not remove"):
        hold(model, mask)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@older
@pytest.mark.parametrize("kind", PASSING)
def test_asking_for_the_scope_changes_nothing(kind):
    model = network(PASSING[kind][0])
    before, drawn = copy.deepcopy(dict(model.state_dict())), torch.get_rng_state()
    mask = prune(model, 0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    names = [name for name, _ in model.named_parameters()]
    with hold(model, mask):
        assert [name for name, _ in model.named_parameters()] == names


@older
@pytest.mark.parametrize("kind", ["weight_norm", "older weight_norm"])
def test_a_row_that_weight_norm_would_divide_by_0_is_an_error(kind):
    put, name = PASSING[kind]
    model = network(put)
    kept = torch.ones(20, 20, dtype=torch.bool)
    kept[3] = False
    said = r"1 of 20 rows .* no numbers \(rows 3 of 'weight'.*a row that is removed altogether"
    with pytest.raises(MaskError, match=said):
        Mask({f"2.{name}": kept}).apply_(model)
    with pytest.raises(MaskError, match=said):
        hold(model, Mask({f"2.{name}": kept}))
    with pytest.raises(MaskError, match=said):
        attach(model, within=Mask({f"2.{name}": kept}))
    assert bool(dict(model.named_parameters())[f"2.{name}"].detach()[3].any())
    assert bool(loss(model).isfinite())
    kept[3, 7] = True  # one weight is enough
    with hold(model, Mask({f"2.{name}": kept})):
        loss(model).backward()
        assert torch.equal(model[2].weight.detach()[3] != 0, kept[3])


@older
@pytest.mark.parametrize("kind", ["weight_norm", "older weight_norm"])
@pytest.mark.parametrize("gates", ["continuous", "hard-concrete", "stochastic"])
def test_gates_that_close_a_row_of_weight_norm_are_an_error(kind, gates):
    put, _ = PASSING[kind]
    model = network(put).eval()
    handle = attach(model, kind=gates, init=2.0, scope=scope(model, spare=("0", "4")))
    with handle.hardened():
        assert bool(loss(model).isfinite())
    (s,) = handle.parameters()
    with torch.no_grad():
        s[5] = s[9] = -50.0
    said = r"what gates leave .* 2 of 20 rows .*\(rows 5, 9 of 'weight'"
    with handle.hardened(), pytest.raises(MaskError, match=said):
        model(torch.ones(1, 30))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match=said):
        handle.detach(apply=True)
    with torch.no_grad():
        s[5, 0] = s[9, 1] = 2.0
    with handle.hardened():
        assert bool(loss(model).isfinite())
    assert all(torch.equal(before[each], value) for each, value in model.state_dict().items())
    handle.detach(apply=True)
    assert bool(loss(model).isfinite())
    assert int((model[2].weight[5] != 0).sum()) == 1


@older
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "older weight_norm", "older spectral_norm"])
def test_convolutions(kind):
    put, name = PASSING[kind]
    torch.manual_seed(0)
    model = nn.Sequential(put(nn.Conv2d(3, 4, 3)), nn.ReLU(), put(nn.ConvTranspose2d(4, 3, 3)))
    mask = prune(model, 0.5, distribution="layerwise")
    assert list(mask) == [f"0.{name}", f"2.{name}"]
    with hold(model, mask):
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        for place in (0, 2):
            assert not model[place].weight.detach()[~mask[f"{place}.{name}"]].any()
    assert list(scope(model, first_conv=False)) == [f"2.{name}"]
    assert list(scope(model, output=False)) == [f"0.{name}"]


def test_a_column_of_weight_norm_has_its_zeros_in_its_norm():
    """v / |v| is a sign where a row has one weight: only g is 0 there."""
    layer = parametrizations.weight_norm(nn.Linear(1, 6))
    mask = prune(layer, 0.5)
    assert list(mask) == ["parametrizations.weight.original0"]
    mask.apply_(layer)
    assert torch.equal(layer.weight != 0, mask["parametrizations.weight.original0"])


def test_a_weight_that_is_computed_in_another_way_since_is_told():
    """The parameter behind it has its name and its zeros still."""
    layer = parametrizations.spectral_norm(nn.Linear(8, 8))
    held = hold(layer, prune(layer, 0.5))
    parametrize.register_parametrization(layer, "weight", Positive())
    with pytest.raises(HoldError, match=r"pruned weights computed from 'parametrizations\.weight\.original' are not 0"):
        held.check()
    held.release()
