"""Change of the outputs without single weights, against models without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from composed import Composed, Conv1D
from ticketry.budgets.request import score_finder
from ticketry.core.output_change import output_change
from ticketry.core.score import ScoreInputs
from ticketry.errors import UsageError


def removed(model: nn.Module, x: torch.Tensor, name: str, index: tuple[int, ...]) -> float:
    """Return the change of the outputs when a weight is set to 0, as a share of their energy."""
    with torch.no_grad():
        whole, weight = model(x), model.get_parameter(name)
        kept = weight[index].clone()
        weight[index] = 0
        thinner = model(x)
        weight[index] = kept
    return float((whole - thinner).square().sum() / whole.square().sum())


def random_places(shape: torch.Size, count: int) -> list[tuple[int, ...]]:
    drawn = torch.Generator().manual_seed(1)
    return [tuple(int(torch.randint(size, (), generator=drawn)) for size in shape) for _ in range(count)]


@pytest.mark.parametrize("kind", ["linear", "groups", "strided", "twice"])
def test_output_change_is_that_without_a_weight(kind: str) -> None:
    """The estimate is exact up to sampling if the model is linear and its inputs are uncorrelated."""
    torch.manual_seed(0)

    model: nn.Module = {
        "linear": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 8, bias=False)),
        "groups": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(6, 4, 1, bias=False)),
        "strided": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, bias=False), nn.Flatten(), nn.Linear(16, 5)),
        "twice": lambda: Composed(
            lambda self, x: torch.cat([self.shared(input=x[:, :6]), self.shared(x[:, 6:])], 1),
            shared=nn.Linear(6, 6, bias=False),
        ),
    }[kind]().double()
    shapes = {"linear": (6,), "groups": (4, 8, 8), "strided": (3, 4, 4), "twice": (12,)}
    x = torch.randn(8000 if kind in ("linear", "twice") else 1500, *shapes[kind]).double()
    scale = torch.linspace(0.3, 2, x.shape[1]).view(-1, *[1] * (x.dim() - 2))
    x = x * scale if kind != "twice" else x
    change = output_change(model, tk.scope(model), x)
    for name, found in change.items():
        assert found.shape == model.get_parameter(name).shape
        if name == "1.weight" or (kind == "strided" and name == "2.weight"):
            continue  # their inputs are correlated
        for place in random_places(found.shape, 12):
            assert float(found[place]) == pytest.approx(removed(model, x, name, place), rel=0.15)


def test_all_outputs_have_equal_weight() -> None:
    torch.manual_seed(0)

    model = Composed(
        lambda self, x: {"one": self.one(x), "other": (1e6 * self.other(x), x.argmax(1))},
        one=nn.Linear(8, 30, bias=False),
        other=nn.Linear(8, 30, bias=False),
    )
    change = output_change(model, tk.scope(model), torch.randn(300, 8))
    assert float(change["one.weight"].sum() / change["other.weight"].sum()) == pytest.approx(1, rel=0.2)


def test_the_model_is_not_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(24, 3)).train()
    model[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, state = torch.randn(2, 3, 4, 4), torch.random.get_rng_state()
    with torch.inference_mode():
        once = output_change(model, tk.scope(model), x.clone())
    again = output_change(model, tk.scope(model), x)
    assert all(torch.equal(once[name], value) for name, value in again.items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {"1.weight"}
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_of_zeros_and_single_examples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(1), nn.Linear(24, 3))
    blind = output_change(model, tk.scope(model), torch.zeros(2, 4, 4, 4))
    assert float(blind["0.weight"].min()) > 0
    alone = output_change(nn.Sequential(*model[:1]), tk.scope(model[:1]), torch.randn(4, 4, 4))
    assert alone["0.weight"].shape == (6, 4, 3, 3)


def computed() -> nn.Module:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    model(torch.randn(2, 3))
    return model.eval()


def recurrent(kind: str) -> nn.Module:
    inner = getattr(nn, kind)(3, 4, batch_first=True)
    return Composed(lambda self, x: self.last(self.inner(x)[0]), inner=inner, last=nn.Linear(4, 2))


def looked_up() -> nn.Module:
    return Composed(
        lambda self, x: self.last(torch.tanh(self.norm(self.table(x)))),
        table=nn.Embedding(6, 5),
        norm=nn.LayerNorm(5),
        last=nn.Linear(5, 3),
    )


def experts() -> nn.Module:
    return Composed(
        lambda self, x: self.last(torch.tanh(torch.einsum("bi,eoi->bo", x, self.up))),
        up=nn.Parameter(torch.randn(2, 5, 3)),
        last=nn.Linear(5, 2),
    )


STEPS, ROWS = torch.randn(3, 4, 3), torch.randn(5, 3)
OTHERS = {
    "LSTM": (lambda: recurrent("LSTM"), STEPS, {}),
    "GRU": (lambda: recurrent("GRU"), STEPS, {}),
    "embedding and norm": (looked_up, torch.randint(0, 6, (4, 3)), {"embeddings": True, "norms": True, "biases": True}),
    "experts": (experts, ROWS, {"include": ["up"]}),
    "computed": (computed, ROWS, {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_weights_use_their_own_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the Jacobian of all outputs, whose sum of squares random projections estimate."""
    monkeypatch.setattr("ticketry.core.output_change._DRAWS", 500)
    torch.manual_seed(0)
    make, x, choice = OTHERS[kind]
    model = make()
    change = output_change(model, tk.scope(model, **choice), x)
    outputs = model(x)
    rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True, allow_unused=True)
            for one in outputs.flatten()]  # fmt: skip
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if name not in change or name == "last.weight" or (kind == "computed" and name == "2.weight"):
            continue  # products assume uncorrelated inputs and gradients
        squared = sum(row[number].double().square() for row in rows if row[number] is not None)
        expected = squared * parameter.detach().double().square() / outputs.detach().double().square().sum()
        torch.testing.assert_close(change[name], expected, rtol=0.35, atol=1e-12)
    assert all(value.requires_grad for value in model.parameters())
    assert list(change) == list(tk.scope(model, **choice))


@pytest.mark.parametrize("kind", OTHERS)
def test_every_budget_has_a_default_importance(kind: str) -> None:
    torch.manual_seed(0)
    make, x, choice = OTHERS[kind]
    model = make()
    scope = tk.scope(model, **choice)
    batches = ScoreInputs([x], lambda model, batch: model(batch).square().mean())
    for inputs in (ScoreInputs(), batches):
        scores = score_finder(None, model, scope, None, inputs, "weights", x)()
        assert {name: tuple(values.shape) for name, values in scores.items()} == dict(scope.shapes)
        assert all(bool(values.any()) for name, values in scores.items() if "bias" not in name)


def test_a_linear_layer_of_transformers_counts_as_one() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Conv1D(6, 5), nn.Tanh(), Conv1D(5, 4)), torch.randn(7, 3, 6)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    for number in (0, 2):
        plain[number].load_state_dict({"weight": model[number].weight.t(), "bias": model[number].bias})
    found, expected = (output_change(each, tk.scope(each), x) for each in (model, plain))
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name].t())
    assert 0 < tk.prune(model, flops=0.6, example_inputs=x).density <= 0.6
    assert tk.prune(model, flops=0.6, example_inputs=x).kept == tk.prune(plain, flops=0.6, example_inputs=x).kept


def test_weights_without_effect_on_outputs_are_named() -> None:
    model = Composed(lambda self, x: self.seen(x) + self.cut(x).detach(), seen=nn.Linear(3, 4), cut=nn.Linear(3, 4))
    with pytest.raises(UsageError, match=r"what cut\.weight does to the model's outputs is not known: no gradient"):
        output_change(model, tk.scope(model), torch.randn(2, 3))
    assert all(value.requires_grad for value in model.parameters())


class Written(nn.Module):
    def __init__(self, of: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = of.embed_dim, of.num_heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        assert of.in_proj_weight is not None
        assert of.in_proj_bias is not None
        for number, layer in enumerate((self.q, self.k, self.v)):
            layer.weight.data = of.in_proj_weight.data[width * number : width * (number + 1)].clone()
            layer.bias.data = of.in_proj_bias.data[width * number : width * (number + 1)].clone()
        self.out.load_state_dict(of.out_proj.state_dict())
        self.last = nn.Linear(width, 3)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        return self.last(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def twice(whole: nn.Linear, layers: bool) -> nn.Module:
    """Uses the layer's weight again, in a function or in the layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.first(hidden) if layers else F.linear(hidden, self.first.weight, bias=self.first.bias)

    return Composed(forward, first=whole)


def given(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    one, two, three = (torch.randn(3, 5, 8) for _ in range(3))
    return {"self": (one, one, one), "three": (one, two, three)}[kind]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(*batch).square().mean(0).sum()


def together(found: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = torch.cat([found[f"{name}.weight"] for name in "qkv"])
    return {"mix.in_proj_weight": rows, "mix.out_proj.weight": found["out.weight"], "last.weight": found["last.weight"]}


@pytest.mark.parametrize("kind", ["self", "three"])
def test_attention_scores_as_written_with_layers(kind: str) -> None:
    torch.manual_seed(0)
    model = Composed(
        lambda self, *qkv: self.last(self.mix(*qkv, need_weights=False)[0]),
        mix=nn.MultiheadAttention(8, 2, batch_first=True),
        last=nn.Linear(8, 3),
    ).eval()
    written, x = Written(model.mix).eval(), given(kind)
    written.last.load_state_dict(model.last.state_dict())
    with torch.no_grad():
        assert torch.allclose(model(*x), written(*x), atol=1e-6)
    found = output_change(model, tk.scope(model), x)
    assert set(found) == {"mix.in_proj_weight", "mix.out_proj.weight", "last.weight"}
    wanted = together(output_change(written, tk.scope(written), x))
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-12)
    kfac = tk.score.kfac(model, tk.scope(model), batches=[x], loss=loss)
    for name, values in together(tk.score.kfac(written, tk.scope(written), batches=[x], loss=loss)).items():
        torch.testing.assert_close(kfac[name], values, rtol=1e-4, atol=1e-12)


def test_a_transformer_layer_in_evaluation_mode_is_scored() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        before = layer(x)
    found = output_change(layer, tk.scope(layer), x)
    assert set(found) == {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert all(bool((values > 0).any()) for values in found.values())
    with torch.no_grad():
        assert torch.equal(layer(x), before)
    assert tk.prune(layer, 0.5, score="kfac", batches=[(x,)], loss=loss).kept > 0


def test_a_function_counts_as_a_layer() -> None:
    torch.manual_seed(0)
    whole, x = nn.Linear(6, 6), torch.randn(10, 6)
    function, layers = (twice(whole, layers) for layers in (False, True))
    for model in (function, layers):
        model.add_module("other", nn.MultiheadAttention(4, 2))  # not called, but it makes products be watched
    spared = {"spare": ("other",)}
    found, wanted = (output_change(model, tk.scope(model, **spared), x) for model in (function, layers))
    assert torch.equal(found["first.weight"], wanted["first.weight"])
    alone = output_change(twice(whole, True), tk.scope(twice(whole, True)), x)
    assert torch.equal(found["first.weight"], alone["first.weight"])


def test_a_product_from_the_right_counts_as_a_layer() -> None:
    torch.manual_seed(0)
    model = Composed(lambda self, x: self.seen(x) @ self.only.weight.t(), seen=nn.Linear(6, 6), only=nn.Linear(6, 4))
    x = torch.randn(3, 6)
    written = nn.Sequential(model.seen, nn.Linear(6, 4, bias=False))
    written[1].weight = model.only.weight
    found, expected = output_change(model, tk.scope(model), x), output_change(written, tk.scope(written), x)
    torch.testing.assert_close(list(found.values()), list(expected.values()))


def autoencoder(own: bool) -> nn.Module:
    """Decodes with the transposed weight of the encoder, or with its own layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encoder(x))
        return self.decoder(hidden) if own else F.linear(hidden, self.encoder.weight.t())

    return Composed(forward, encoder=nn.Linear(6, 4), **{"decoder": nn.Linear(4, 6, bias=False)} if own else {})


def test_a_weight_that_is_also_used_transposed_counts_twice() -> None:
    torch.manual_seed(0)
    tied, written, x = autoencoder(False), autoencoder(True), torch.randn(10, 6)
    written.encoder.load_state_dict(tied.encoder.state_dict())
    written.decoder.weight.data = tied.encoder.weight.data.t().clone()
    kfac = tk.score.kfac
    for found, wanted in (
        (output_change(tied, tk.scope(tied), x), output_change(written, tk.scope(written), x)),
        *[[kfac(each, tk.scope(each), batches=[(x,)], loss=loss) for each in (tied, written)]],
    ):
        both = wanted["encoder.weight"] + wanted["decoder.weight"].t()
        torch.testing.assert_close(found["encoder.weight"], both, rtol=1e-5, atol=1e-12)


OTHER_USES = {
    "einsum": lambda x, layer: torch.einsum("...i,oi->...o", x, layer.weight),
    "conv2d": lambda x, layer: F.conv2d(x, layer.weight, layer.bias, padding=1),
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", OTHER_USES)
def test_other_uses_of_a_layers_weight_are_scored(how: str, called: bool) -> None:
    """Another function uses the weight, instead of its layer or in addition to it."""
    torch.manual_seed(0)
    model = Composed(
        lambda self, x: self.last(torch.tanh(OTHER_USES[how](torch.tanh(self.first(x)) if called else x, self.first))),
        first=nn.Conv2d(3, 3, 3, padding=1) if how == "conv2d" else nn.Linear(5, 5),
        last=nn.Linear(5, 2),
    )
    x = torch.randn(4, 3, 5, 5)
    change = output_change(model, tk.scope(model), x)["first.weight"]
    score = tk.score.kfac(model, tk.scope(model), batches=[(x,)], loss=loss)["first.weight"]
    for found in (change, score):
        assert (found > 0).float().mean() > 0.99
    spared = tk.scope(model, spare=["first"])
    assert float(tk.score.kfac(model, spared, batches=[(x,)], loss=loss)["last.weight"].sum()) > 0


def test_a_penalty_on_weights_in_the_loss_does_not_count() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Embedding(7, 5), nn.Tanh(), nn.Linear(5, 7)), torch.arange(7)
    model[2].weight = model[0].weight  # looked up as well, which is no product

    def penalised(model: nn.Module, batch: Any) -> Tensor:
        return loss(model, batch) + sum(weight.square().sum() for weight in model.parameters())

    plain, found = (tk.score.kfac(model, tk.scope(model), batches=[(x,)], loss=each) for each in (loss, penalised))
    assert float(plain["0.weight"].min()) > 0
    torch.testing.assert_close(found, plain)


def test_kfac_of_weights_outside_products_uses_their_gradients() -> None:
    model = Composed(lambda self, x: self.last(self.table(x)), table=nn.Embedding(6, 6), last=nn.Linear(6, 4))
    known = tk.scope(model, embeddings=True)
    found = tk.score.kfac(model, known, batches=[(torch.arange(6),)], loss=loss)["table.weight"]
    value = loss(model, (torch.arange(6),))
    (gradient,) = torch.autograd.grad(value, [model.table.weight])
    torch.testing.assert_close(found, (model.table.weight * gradient).detach().double().square() * 3)  # 6 examples / 2
