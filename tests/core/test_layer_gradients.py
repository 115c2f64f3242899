"""Weights used by functions instead of layers score as in the same network written with layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from ticketry.core.output_change import output_change


class Written(nn.Module):
    """Attention with a layer for each projection."""

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


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.last(self.mix(query, key, value, need_weights=False)[0])


class Twice(nn.Module):
    """Uses the first layer's weight again, in a function or in the layer."""

    def __init__(self, whole: nn.Linear, layers: bool) -> None:
        super().__init__()
        self.first, self.layers = whole, layers

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.first(hidden) if self.layers else F.linear(hidden, self.first.weight, bias=self.first.bias)


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
    model = Attention().eval()
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
    """Torch would run it as one operation."""
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
    function, layers = (Twice(whole, layers) for layers in (False, True))
    for model in (function, layers):
        model.add_module("other", nn.MultiheadAttention(4, 2))  # not called, but it makes products be watched
    spared = {"spare": ("other",)}
    found, wanted = (output_change(model, tk.scope(model, **spared), x) for model in (function, layers))
    assert torch.equal(found["first.weight"], wanted["first.weight"])
    alone = output_change(Twice(whole, True), tk.scope(Twice(whole, True)), x)
    assert torch.equal(found["first.weight"], alone["first.weight"])


def test_a_product_from_the_right_counts_as_a_layer() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.only = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.seen(x) @ self.only.weight.t()

    torch.manual_seed(0)
    model, x = Bare(), torch.randn(3, 6)
    written = nn.Sequential(model.seen, nn.Linear(6, 4, bias=False))
    written[1].weight = model.only.weight
    found, expected = output_change(model, tk.scope(model), x), output_change(written, tk.scope(written), x)
    torch.testing.assert_close(list(found.values()), list(expected.values()))


class Autoencoder(nn.Module):
    """Decodes with the transposed weight of the encoder, or with its own layer."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6, bias=False) if own else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encoder(x))
        return self.decoder(hidden) if self.decoder else F.linear(hidden, self.encoder.weight.t())


def test_a_weight_that_is_also_used_transposed_counts_twice() -> None:
    torch.manual_seed(0)
    tied, written, x = Autoencoder(False), Autoencoder(True), torch.randn(10, 6)
    written.encoder.load_state_dict(tied.encoder.state_dict())
    assert written.decoder is not None
    written.decoder.weight.data = tied.encoder.weight.data.t().clone()
    kfac = tk.score.kfac
    for found, wanted in (
        (output_change(tied, tk.scope(tied), x), output_change(written, tk.scope(written), x)),
        *[[kfac(each, tk.scope(each), batches=[(x,)], loss=loss) for each in (tied, written)]],
    ):
        both = wanted["encoder.weight"] + wanted["decoder.weight"].t()
        torch.testing.assert_close(found["encoder.weight"], both, rtol=1e-5, atol=1e-12)


class OtherUse(nn.Module):
    """A layer whose weight another function uses, instead of the layer or in addition to it."""

    def __init__(self, how: str, called: bool) -> None:
        super().__init__()
        self.how, self.called = how, called
        self.first = nn.Conv2d(3, 3, 3, padding=1) if how == "conv2d" else nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        if self.called:
            x = torch.tanh(self.first(x))
        if self.how == "einsum":
            x = torch.einsum("...i,oi->...o", x, weight)
        elif self.how == "matmul":
            x = torch.matmul(x, weight.t())
        else:
            x = F.conv2d(x, weight, self.first.bias, padding=1)
        return self.last(torch.tanh(x))


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["einsum", "matmul", "conv2d"])
def test_other_uses_of_a_layers_weight_are_scored(how: str, called: bool) -> None:
    torch.manual_seed(0)
    model, x = OtherUse(how, called), torch.randn(4, 3, 5, 5)
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
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.table(x))

    model = Bare()
    known = tk.scope(model, embeddings=True)
    found = tk.score.kfac(model, known, batches=[(torch.arange(6),)], loss=loss)["table.weight"]
    value = loss(model, (torch.arange(6),))
    (gradient,) = torch.autograd.grad(value, [model.table.weight])
    torch.testing.assert_close(found, (model.table.weight * gradient).detach().double().square() * 3)  # 6 examples / 2
