"""Weights that hooks and quantisers compute: scores, masks and densities are of the weight that the layer uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import ticketry as tk
from ticketry.core.computed_weights import computed_weights
from ticketry.errors import ScopeError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:.*quantization.*", "ignore:.*reduce_range.*")
Put = Callable[[nn.Module], Any]


def own_hook(layer: nn.Module, compute: Callable[..., Tensor] | None = None) -> None:
    """A weight that a hook of the user's own computes: here divided by its norm."""
    raw = nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["weight"]
    layer.register_parameter("raw", raw)
    layer.weight = raw.detach()

    def hook(module: nn.Module, inputs: Any) -> None:
        module.weight = compute(module.raw, *inputs) if compute else module.raw / module.raw.norm()

    layer.register_forward_pre_hook(hook)


def torch_pruned(layer: nn.Module) -> None:
    torch_prune.l1_unstructured(layer, "weight", 0.5)


def torch_pruned_twice(layer: nn.Module) -> None:
    torch_prune.l1_unstructured(layer, "weight", 0.3)
    torch_prune.random_unstructured(layer, "weight", 0.3)


def spectral_and_pruned(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)
    torch_prune.l1_unstructured(layer, "weight_orig", 0.5)


def weight_norm_and_pruned(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)
    torch_prune.l1_unstructured(layer, "weight_v", 0.5)


PUTS: dict[str, tuple[Put, str]] = {
    "spectral_norm": (nn.utils.spectral_norm, "weight_orig"),
    "weight_norm": (nn.utils.weight_norm, "weight_v"),
    "own hook": (own_hook, "raw"),
    "pruned": (torch_pruned, "weight_orig"),
    "pruned twice": (torch_pruned_twice, "weight_orig"),
    "spectral_norm and pruned": (spectral_and_pruned, "weight_orig_orig"),
    "weight_norm and pruned": (weight_norm_and_pruned, "weight_v_orig"),
}


def network(put: Put | None = None, factor: float = 1.0) -> nn.Sequential:
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


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).logsumexp(1).mean()


@pytest.mark.parametrize("kind", PUTS)
def test_magnitudes_are_of_the_weight_in_use(kind: str) -> None:
    put, name = PUTS[kind]
    model = network(put)
    expected = model[0].weight.detach().abs()  # as the last call left it
    scores = tk.score.magnitude(model, tk.scope(model))
    torch.testing.assert_close(scores[f"0.{name}"], expected)
    assert list(scores) == [f"0.{name}", "2.weight"]


@pytest.mark.parametrize("kind", PUTS)
def test_a_mask_removes_weights_in_use(kind: str) -> None:
    put, name = PUTS[kind]
    model = network(put)
    mask = tk.prune(model, 0.3, distribution="layerwise")
    in_use = model[0].weight.detach().abs().flatten()
    kept = mask[f"0.{name}"]
    assert set(in_use.argsort(descending=True)[:120].tolist()) == set(kept.flatten().nonzero().flatten().tolist())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tk.hold(model, mask) as held:
        for _ in range(2):
            optimizer.zero_grad()
            loss(model.train(), example()).backward()
            optimizer.step()
        held.check(optimizer)
    model.eval()(example())
    model(example())
    assert not model[0].weight[~kept].any()
    assert model[0].weight[kept].count_nonzero() > 110


@pytest.mark.parametrize("score", ["magnitude", "snip", "fisher", "taylor", "synflow", "grasp", "crop"])
def test_the_older_spectral_norm_scores_as_the_parametrisation(score: str) -> None:
    factor = 100.0
    given: dict[str, Any] = {} if score == "magnitude" else {"batches": [example()], "loss": loss}
    new, older = network(parametrizations.spectral_norm, factor), network(nn.utils.spectral_norm, factor)
    rule = new[0].parametrizations.weight[0]
    older[0].weight_u, older[0].weight_v = rule._u.clone(), rule._v.clone()  # drawn anew by each
    older(example())
    torch.testing.assert_close(older[0].weight, new[0].weight)
    one, other = (tk.prune(model, 0.6, score=score, collapse="keep", **given) for model in (new, older))
    differ = sum(int((a != b).sum()) for a, b in zip(one.values(), other.values(), strict=True))
    assert differ <= 4  # of 800, by rounding


@pytest.mark.parametrize("kind", ["spectral_norm", "own hook", "spectral_norm and pruned"])
def test_what_leaves_the_layer_alone_changes_no_mask(kind: str) -> None:
    put, name = PUTS[kind]
    one, other = (tk.prune(network(put, factor), 0.6, collapse="keep")[f"0.{name}"] for factor in (1.0, 64.0))
    assert (one != other).float().mean() < 0.01


def test_what_torch_has_pruned_goes_first() -> None:
    model = network(torch_pruned)
    mask = tk.prune(model, 0.5, collapse="keep")
    assert not mask["0.weight_orig"][model[0].weight_mask == 0].any()
    channel = tk.structure.channels(model, example(), 0.5)
    assert channel["0.weight_orig"].any(1).sum() < 20


@pytest.mark.parametrize("kind", PUTS)
def test_nothing_of_the_model_changes(kind: str) -> None:
    model = network(PUTS[kind][0]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model[0].weight.detach().clone()
    tk.prune(model, 0.5, collapse="keep")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight, weight)


def test_a_hook_that_needs_a_call_is_refused() -> None:
    model = network(lambda layer: own_hook(layer, lambda raw, x: raw * x.mean()))
    with pytest.raises(ScopeError, match=r"hook computes the weight of a Linear.*register_parametrization"):
        tk.prune(model, 0.5)


def test_a_hook_whose_zeros_do_not_pass_is_refused() -> None:
    model = network(lambda layer: own_hook(layer, lambda raw, *_: raw.softmax(1)))
    with pytest.raises(ScopeError, match=r"'weight' of '0'.*spare=.*remove the hook"):
        tk.prune(model, 0.5)
    assert tk.prune(model, 0.5, scope=tk.scope(model, spare=["0"])).kept == 200


def test_hooks_that_compute_no_weight_do_not_run() -> None:
    model, calls = network(), []
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
