from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from composed import Composed
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.score import synflow
from ticketry.errors import LayerCollapseError, ScoreError, UsageError

exactly = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-14)


def chain(*widths: int, bias: bool = False) -> nn.Sequential:
    layers = [layer for ins, outs in pairwise(widths) for layer in (nn.Linear(ins, outs, bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def ones(*shape: int) -> list[Tensor]:
    return [torch.zeros(1, *shape)]


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.group = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.relu(self.norm(self.first(images)))
        maps = functional.relu(self.group(self.second(maps)))
        return self.out(self.drop(functional.adaptive_avg_pool2d(maps, 1).flatten(1)))


def total_of_conv(model: Conv, weights: dict[str, Tensor]) -> Tensor:
    """R by the formula: linear, for all numbers are positive, and norms and dropout are not there."""
    image = torch.ones(1, 2, 6, 6).double()
    bias = model.first.bias.detach().double().abs()
    maps = functional.conv2d(image, weights["first.weight"], bias, padding=1)
    maps = functional.conv2d(maps, weights["second.weight"], stride=2).mean((2, 3))
    return (maps @ weights["out.weight"].T).sum()


def test_against_what_each_weight_adds_to_the_sum():
    """R is linear in every single weight: its derivative is what R gains when the weight grows by 1."""
    torch.manual_seed(0)
    model = Conv()
    weights = {name: p.detach().double().abs() for name, p in scope(model).parameters(model).items()}
    base = total_of_conv(model, weights)
    expected = {}
    for name, weight in weights.items():
        expected[name] = torch.zeros_like(weight)
        for place in range(weight.numel()):
            one_more = weight.clone()
            one_more.view(-1)[place] += 1
            gain = total_of_conv(model, weights | {name: one_more}) - base
            expected[name].view(-1)[place] = weight.view(-1)[place] * gain
    found = synflow(model, scope(model), batches=ones(2, 6, 6))
    assert all(values.dtype == torch.float64 for values in found.values())
    exactly(found, expected, rtol=1e-6, atol=1e-9)


def test_conservation_at_a_mask():
    """Without biases the kept scores of every layer add up to R (Tanaka et al. 2020, theorem 2)."""
    torch.manual_seed(1)
    model = chain(5, 8, 8, 3)
    mask = prune(model, 0.5, score="random")
    found = synflow(model, scope(model), batches=ones(5), at=mask)
    kept = torch.stack([values[mask[name]].sum() for name, values in found.items()])
    product = torch.ones(5).double()
    for name, parameter in scope(model).parameters(model).items():
        product = (parameter.detach().double().abs() * mask[name]) @ product
    exactly(kept, product.sum().expand(3))
    assert any(values[~mask[name]].any() for name, values in found.items()), "removed weights have a score too"


def test_a_deep_network_does_not_overflow():
    torch.manual_seed(2)
    model = chain(*([64] * 150))
    sums = torch.stack([values.sum() for values in synflow(model, scope(model), batches=ones(64)).values()])
    assert torch.isfinite(sums).all()
    assert sums[0] > torch.finfo(torch.float32).max
    exactly(sums, sums[:1].expand(149))


def test_only_shapes_matter():
    torch.manual_seed(3)
    model = Conv()
    images = torch.randn(1, 2, 6, 6)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(network(images=batch[0]), batch[1])

    plain = synflow(model, scope(model), batches=ones(2, 6, 6))
    exactly(synflow(model, scope(model), batches=[(images * float("nan"), torch.tensor([1]))], loss=loss), plain)
    exactly(synflow(model, scope(model), batches=[(images,)]), plain)


def test_an_embedding_counts_all_its_rows():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2, bias=False))
    table, matrix = model[0].weight.detach().double().abs(), model[1].weight.detach().double().abs()
    found = synflow(model, scope(model, embeddings=True), batches=[torch.tensor([[3]])])
    exactly(found["0.weight"], table * matrix.sum(0))
    exactly(found["1.weight"], matrix * table.sum(0))


def test_iterated_it_empties_no_layer_where_one_shot_does():
    """The paper's finding, with layers of very different size (Tanaka et al. 2020, theorem 3)."""
    torch.manual_seed(5)
    model = chain(20, 300, 8, 300, 300, 10)
    few = 0.004
    with pytest.raises(LayerCollapseError):
        prune(model, few, score="magnitude")
    mask = prune(model, few, score="synflow", iterations=40, batches=ones(20))
    assert all(row.kept for row in mask.table())
    product = torch.ones(20)
    for name, parameter in mask.parameters(model).items():
        product = (parameter.detach().abs() * mask[name]) @ product
    assert product.sum() > 0, "something passes from the inputs to the outputs"


class Packed(nn.Module):
    def __init__(self, pack) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)
        self.pack = pack

    def forward(self, inputs, scale=None, **more):
        return self.pack(self.fc(inputs) if scale is None else self.fc(inputs) * scale)


@pytest.mark.parametrize(
    ("pack", "times"),
    [
        (lambda out: (out, None, torch.arange(3)), 1),
        (lambda out: [out, {"twice": 2 * out, "count": torch.ones(2, dtype=torch.long)}], 3),
        (lambda out: {"logits": out.float()}, 1),
        (lambda out: (out, (), [None]), 1),
    ],
)
def test_all_numbers_that_a_model_returns_are_added_up(pack, times):
    """With inputs of 1 each weight adds its magnitude to the sum, for each time that the output is in it."""
    model = Packed(pack)
    found = synflow(model, scope(model), batches=[torch.zeros(1, 3)])["fc.weight"]
    torch.testing.assert_close(found, times * model.fc.weight.detach().double().abs(), rtol=1e-6, atol=0)
    assert found.dtype == torch.float64


def test_inputs_of_any_structure_are_ones_and_the_rest_stays_as_it_is():
    seen = {}

    class Looking(Packed):
        def forward(self, inputs, scale=None, **more):
            seen.update(more, inputs=inputs, scale=scale)
            return super().forward(inputs, scale)

    model = Looking(lambda out: out)

    def loss(network, batch):
        parts = {"some": [batch, 3], "index": torch.tensor([7])}
        return network(batch, scale=torch.tensor(0.5), parts=parts, word="w").sum()

    found = synflow(model, scope(model), batches=[torch.full((4, 3), 9.0)], loss=loss)["fc.weight"]
    torch.testing.assert_close(found, 4 * 0.5 * model.fc.weight.detach().double().abs(), rtol=1e-6, atol=0)
    assert seen["inputs"].tolist() == seen["parts"]["some"][0].tolist() == [[1.0] * 3] * 4
    assert (seen["scale"], seen["parts"]["some"][1], seen["parts"]["index"], seen["word"]) == (0.5, 3, 7, "w")


def test_scores_of_a_network_that_draws_are_those_of_a_seed():
    model = Composed(lambda self, x: self.fc(x * torch.rand(x.shape[1])), fc=nn.Linear(3, 2, bias=False))
    torch.manual_seed(3)
    plain, again, other = (
        synflow(model, scope(model), batches=[torch.ones(1, 3)], **seed)["fc.weight"]
        for seed in ({}, {"seed": 0}, {"seed": 1})
    )
    assert torch.equal(plain, again)
    assert not torch.equal(plain, other)


def test_buffers_keep_their_sign_and_their_kind():
    model = Composed(
        lambda self, inputs: self.fc(inputs)[:, self.order] * self.sign,
        fc=nn.Linear(2, 2, bias=False),
        sign=torch.tensor([1.0, -3.0]),
        order=torch.tensor([1, 0]),
    )
    found = synflow(model, scope(model), batches=[torch.ones(1, 2)])["fc.weight"]
    expected = model.fc.weight.detach().double().abs() * torch.tensor([[-3.0], [1.0]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


class OwnNorm(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / inputs.norm(dim=-1, keepdim=True)


def test_norms_of_your_own_are_passed_by_when_named():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), OwnNorm(), nn.Linear(5, 2, bias=False))
    found = synflow(model, scope(model), batches=ones(4), bypass=(OwnNorm,))
    exactly(found["0.weight"].sum(), found["2.weight"].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_checkpoints_compute_with_the_same_weights_again(dtype):
    torch.manual_seed(7)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(checkpoint(lambda x: functional.relu(self.first(x)).square(), inputs, use_reentrant=False))

    model = Composed(forward, first=nn.Linear(4, 5, bias=False), last=nn.Linear(5, 2, bias=False)).to(dtype)
    first, last = (layer.weight.detach().double().abs() for layer in (model.first, model.last))
    hidden = first.sum(1)
    found = synflow(model, scope(model), batches=[torch.zeros(1, 4, dtype=dtype)])
    exactly(found["first.weight"], first * (2 * hidden * last.sum(0))[:, None])
    exactly(found["last.weight"], last * hidden.square())


def own_floats(dtype: torch.dtype | None) -> nn.Module:
    """Makes tensors in its forward pass: a first hidden state and a matrix without a type, or one of float32."""
    return Composed(
        lambda self, x: self.cell(x, torch.ones(len(x), 4)) @ torch.eye(4, dtype=dtype),
        cell=nn.RNNCell(3, 4, bias=False, nonlinearity="relu"),
    )


def test_tensors_that_a_model_makes_without_a_type_are_float64():
    model = own_floats(None)
    weights = {name: weight.detach().double().abs() for name, weight in model.named_parameters()}
    found = synflow(model, scope(model, include="*"), batches=[torch.zeros(1, 3)])
    exactly({f"cell.{name.split('.')[-1]}": values for name, values in found.items()}, weights)
    assert torch.get_default_dtype() == torch.float32


class TestRefused:
    def test_a_model_that_returns_no_tensors(self):
        model = Packed(lambda out: "text")
        with pytest.raises(ScoreError, match=r"^synflow adds up tensors, and the model returns a str$"):
            synflow(model, scope(model), batches=[torch.zeros(1, 3)])

    def test_a_model_that_insists_on_its_type(self):
        model = own_floats(torch.float32)
        with pytest.raises(ScoreError, match=r"in float64, and there torch says: .*same dtype.*x\.new_zeros"):
            synflow(model, scope(model, include="*"), batches=[torch.zeros(1, 3)])
        assert torch.get_default_dtype() == torch.float32

    def test_an_error_of_the_model_is_its_own(self):
        model = chain(2, 2)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            synflow(model, scope(model), batches=ones(3))

    @pytest.mark.parametrize(
        ("batches", "said"),
        [
            (None, "needs the shape of the inputs"),
            ([], "there is no batch"),
            ([{"x": torch.ones(1, 2)}], "a batch is the model's input"),
        ],
    )
    def test_batches_that_are_no_inputs(self, batches, said):
        model = chain(2, 2)
        with pytest.raises(UsageError, match=said):
            synflow(model, scope(model), batches=batches)

    def test_a_loss_that_goes_around_the_model(self):
        model = chain(2, 2)
        with pytest.raises(UsageError, match="does not call the model"):
            synflow(model, scope(model), batches=ones(2), loss=lambda model, batch: model[0](batch).sum())
        assert not model._forward_pre_hooks

    def test_a_norm_in_scope(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        with pytest.raises(UsageError, match=r"no score for '1\.weight'"):
            synflow(model, scope(model, norms=True), batches=ones(2))

    def test_a_network_that_nothing_passes(self):
        model = chain(3, 3, 3)
        empty = Mask({name: torch.zeros(shape) for name, shape in scope(model).shapes.items()})
        with pytest.raises(ScoreError, match="is 0 for every weight"):
            synflow(model, scope(model), batches=ones(3), at=empty)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.again = self.first
        self.norm = nn.BatchNorm1d(3)
        self.layers = nn.ModuleList([self.first, self.norm])
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.again(self.norm(self.first(inputs))))


def test_a_model_with_a_layer_under_two_names_keeps_its_tensors():
    model = Shared()
    before = {name: (id(tensor), tensor.dtype) for name, tensor in model.state_dict(keep_vars=True).items()}
    weight = model.first.weight.detach().double().abs().requires_grad_(True)
    (torch.ones(1, 3).double() @ torch.linalg.matrix_power(weight.t(), 3)).sum().backward()

    found = synflow(model, scope(model), batches=ones(3))

    assert {name: (id(tensor), tensor.dtype) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    exactly(found, {"first.weight": (weight * weight.grad).detach()})
