"""Layers whose weight is computed: by torch's parametrisations, by the older norms of weights, by one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import ticketry as tk
from ticketry.core.computed_weights import computed_weights
from ticketry.core.gates import attach
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError, MaskError, ScopeError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:.*quantization.*", "ignore:.*reduce_range.*")


class Symmetric(nn.Module):
    """torch's tutorial on parametrisations: a zero below the diagonal is a zero of nothing."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Scaled(nn.Module):
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


def own_hook(layer: nn.Module, compute: Callable[..., Tensor] | None = None) -> nn.Module:
    """A weight that a hook of the user's own computes: here divided by its norm."""
    raw = nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["weight"]
    layer.register_parameter("raw", raw)
    layer.weight = raw.detach()

    def hook(module: nn.Module, inputs: Any) -> None:
        module.weight = compute(module.raw, *inputs) if compute else module.raw / module.raw.norm()

    layer.register_forward_pre_hook(hook)
    return layer


def torch_pruned(layer: nn.Module, name: str = "weight") -> nn.Module:
    return torch_prune.l1_unstructured(layer, name, 0.5)


PARAMETRISED = {
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
    "scaled": (own(lambda layer: Scaled(layer.weight.shape[0])), "parametrizations.weight.original"),
    "one after another": (twice, "parametrizations.weight.original1"),
}
HOOKED = {
    "older weight_norm": (nn.utils.weight_norm, "weight_v"),
    "older spectral_norm": (nn.utils.spectral_norm, "weight_orig"),
    "own hook": (own_hook, "raw"),
    "pruned": (torch_pruned, "weight_orig"),
    "pruned twice": (lambda layer: torch_prune.random_unstructured(torch_pruned(layer), "weight", 0.3), "weight_orig"),
    "spectral_norm and pruned": (
        lambda layer: torch_pruned(nn.utils.spectral_norm(layer), "weight_orig"),
        "weight_orig_orig",
    ),
    "weight_norm and pruned": (lambda layer: torch_pruned(nn.utils.weight_norm(layer), "weight_v"), "weight_v_orig"),
}
PASSING = PARAMETRISED | HOOKED
REFUSED = {
    "orthogonal": parametrizations.orthogonal,
    "symmetric": own(lambda _: Symmetric()),
    "low rank": own(lambda layer: LowRank(*layer.weight.shape)),
    "positive": own(lambda _: Positive()),
}


def network(put) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), put(nn.Linear(20, 20)), nn.ReLU(), nn.Linear(20, 5))


def loss(model: nn.Module) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return model(torch.randn(16, 30, generator=draw)).logsumexp(1).mean()


@pytest.mark.parametrize("kind", PASSING)
def test_a_layer_is_pruned_through_what_its_weight_is_computed_from(kind):
    put, original = PASSING[kind]
    model = network(put)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    mask = prune(model, 0.3, distribution="layerwise")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert list(mask) == ["0.weight", f"2.{original}", "4.weight"]
    removed = ~mask[f"2.{original}"]
    assert int(removed.sum()) == 280  # of 400
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    names, start = [name for name, _ in model.named_parameters()], None
    with hold(model, mask):
        assert [name for name, _ in model.named_parameters()] == names
        for _ in range(5):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            model(torch.ones(1, 30))  # what is computed by hooks is now of the weights as they are
            weight = model[2].weight.detach().clone()
            start = weight if start is None else start
            assert not weight[removed].any()
            assert weight[~removed].count_nonzero() > 110  # of 120; a mask of torch may have more zeros
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


def hooked(put: Callable[[nn.Module], Any] | None = None, factor: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    with torch.no_grad():
        model[0].weight.mul_(factor)
    if put is not None:
        put(model[0])
    for _ in range(30):  # the power iteration settles
        model(example())
    model.eval()(example())
    return model


def example() -> Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(1))


def batch_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).logsumexp(1).mean()


@pytest.mark.parametrize("kind", HOOKED)
def test_magnitudes_are_of_the_weight_in_use_and_nothing_changes(kind: str) -> None:
    put, name = HOOKED[kind]
    model = hooked(put)
    weight = model[0].weight.detach().clone()  # as the last call left it
    scores = tk.score.magnitude(model, tk.scope(model))
    torch.testing.assert_close(scores[f"0.{name}"], weight.abs())
    assert list(scores) == [f"0.{name}", "2.weight"]
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    tk.prune(model, 0.5, collapse="keep")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("score", ["magnitude", "snip", "fisher", "taylor", "synflow", "grasp", "crop"])
def test_the_older_spectral_norm_scores_as_the_parametrisation(score: str) -> None:
    factor = 100.0
    given: dict[str, Any] = {} if score == "magnitude" else {"batches": [example()], "loss": batch_loss}
    new, older = hooked(parametrizations.spectral_norm, factor), hooked(nn.utils.spectral_norm, factor)
    rule = new[0].parametrizations.weight[0]
    older[0].weight_u, older[0].weight_v = rule._u.clone(), rule._v.clone()  # drawn anew by each
    older(example())
    torch.testing.assert_close(older[0].weight, new[0].weight)
    one, other = (tk.prune(model, 0.6, score=score, collapse="keep", **given) for model in (new, older))
    differ = sum(int((a != b).sum()) for a, b in zip(one.values(), other.values(), strict=True))
    assert differ <= 4  # of 800, by rounding


def test_what_torch_has_pruned_goes_first() -> None:
    model = hooked(torch_pruned)
    mask = tk.prune(model, 0.5, collapse="keep")
    assert not mask["0.weight_orig"][model[0].weight_mask == 0].any()
    channel = tk.structure.channels(model, example(), 0.5)
    assert channel["0.weight_orig"].any(1).sum() < 20


def test_a_hook_that_needs_a_call_is_refused() -> None:
    model = hooked(lambda layer: own_hook(layer, lambda raw, x: raw * x.mean()))
    with pytest.raises(ScopeError, match=r"hook computes the weight of a Linear.*register_parametrization"):
        tk.prune(model, 0.5)


def test_a_hook_whose_zeros_do_not_pass_is_refused() -> None:
    model = hooked(lambda layer: own_hook(layer, lambda raw, *_: raw.softmax(1)))
    with pytest.raises(ScopeError, match=r"'weight' of '0'.*spare=.*remove the hook"):
        tk.prune(model, 0.5)
    assert tk.prune(model, 0.5, scope=tk.scope(model, spare=["0"])).kept == 200


def test_hooks_that_compute_no_weight_do_not_run() -> None:
    model, calls = hooked(), []
    model[0].register_forward_pre_hook(lambda *_: calls.append(1))
    assert not list(computed_weights(model))
    tk.prune(model, 0.5)
    assert not calls


class TestQuantisers:
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).train()
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        prepared = quantization.prepare_qat(model)
        prepared(torch.randn(4, 16))
        return prepared

    def test_scores_are_of_the_quantised_weight(self) -> None:
        model = self.model()
        scores = tk.score.magnitude(model, tk.scope(model))
        for number in (0, 2):
            layer = model[number]
            expected = copy.deepcopy(layer.weight_fake_quant)(layer.weight).abs()
            assert torch.equal(scores[f"{number}.weight"], expected.detach())

    def test_removed_weights_are_zeros_of_the_quantised_weight(self) -> None:
        model = self.model()
        mask = tk.prune(model, 0.5)
        with tk.hold(model, mask):
            model(torch.randn(4, 16)).sum().backward()
        layer = model[0]
        assert not layer.weight_fake_quant(layer.weight)[~mask["0.weight"]].any()

    def test_quantised_layers_are_refused(self) -> None:
        plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        for model in (
            quantization.convert(self.model().eval()),
            quantization.quantize_dynamic(plain, {nn.Linear}),
        ):
            with pytest.raises(ScopeError, match=r"'0' of Sequential is a quantised layer.*prune before"):
                tk.prune(model, 0.5)

    def test_whole_numbers_are_refused(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[0].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
        with pytest.raises(ScopeError, match=r"'0\.weight' of Sequential holds torch\.int8.*spare="):
            tk.prune(model, 0.5)
        assert tk.prune(model, 0.5, scope=tk.scope(model, spare=["0"])).kept == 32
