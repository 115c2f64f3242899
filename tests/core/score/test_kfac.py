"""The score kfac against gradients of every example, and against the Fisher information itself where both agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ticketry as tk
from ticketry.core.scope import scope

Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 4)).double()


def convolutional(groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups), nn.Tanh(), nn.Flatten(), nn.Linear(54, 4)]
    return nn.Sequential(*layers).double()


def drawn(*shape: int) -> Batch:
    return torch.randn(*shape).double(), torch.arange(shape[0]) % 4


def test_of_single_examples_it_is_the_empirical_fisher_information() -> None:
    """Where each example passes a layer once, a gradient is the input times the gradient of the output."""
    model = linear()
    batches = [drawn(1, 6) for _ in range(5)]
    found = tk.score.kfac(model, scope(model), batches=batches, loss=loss)
    exact = tk.score.fisher(model, scope(model), batches=batches, loss=loss, norms="running")
    for name, values in exact.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_of_batches_it_is_written_out(groups: int) -> None:
    model = convolutional(groups)
    batches = [drawn(7, 4, 6, 6), drawn(7, 4, 6, 6)]
    expected = [torch.zeros_like(model[0].weight), torch.zeros_like(model[3].weight)]
    for images, targets in batches:
        outputs = model[0](images)
        hidden = torch.tanh(outputs).flatten(1)
        each = functional.cross_entropy(model[3](hidden), targets, reduction="none")
        scores = model[3](hidden)
        by_output = torch.stack(
            [torch.autograd.grad(one, outputs, retain_graph=True)[0][index] for index, one in enumerate(each)]
        )
        by_score = torch.softmax(scores, 1) - functional.one_hot(targets, 4)
        wide = 6 // groups
        for row in range(6):
            for column in range(4 // groups):
                brought = images[:, (row // wide) * (4 // groups) + column].square().mean()
                pulled = by_output[:, row].square().sum((1, 2)).mean()
                expected[0][row, column] += model[0].weight[row, column].detach() ** 2 / 4 * brought * pulled.detach()
        factors = by_score.square().mean(0)[:, None] * hidden.square().mean(0)
        expected[1] += (model[3].weight ** 2 / 4 * factors).detach()
    found = tk.score.kfac(model, scope(model), batches=batches, loss=loss)
    torch.testing.assert_close(found["0.weight"], expected[0].detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found["3.weight"], expected[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_the_convolution_that_computes_the_same(groups: int) -> None:
    """With stride 1 that of the reversed kernel; where windows do not overlap, one to a pixel for each tap."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)).double()
    batches = [drawn(7, 4, 5, 5), drawn(7, 4, 5, 5)]

    def found(layer: nn.Module, *between: nn.Module) -> Tensor:
        model = nn.Sequential(layer, *between, head)
        return tk.score.kfac(model, scope(model), batches=batches, loss=loss)["0.weight"]

    def turned(weight: Tensor) -> Tensor:
        """[I, O / groups, ...] -> [O, I / groups, ...]"""
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

    up, same = nn.ConvTranspose2d(4, 6, 3, padding=1, groups=groups), nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    head(up(batches[0][0].float()).double())  # makes its last layer
    same.weight.data, same.bias = turned(up.weight.data).flip(2, 3).clone(), up.bias
    torch.testing.assert_close(turned(found(up.double())), found(same.double()).flip(2, 3), rtol=1e-9, atol=0)

    head[2] = nn.LazyLinear(4).double()
    up, pixels = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.Conv2d(4, 24, 1, groups=groups)
    head(up(batches[0][0].float()).double())
    up.weight.data.fill_(0.3)
    pixels.weight.data.fill_(0.3)
    pixels.bias.data = up.bias.data.repeat_interleave(4)
    each = found(pixels.double(), nn.PixelShuffle(2)).view(6, 4, -1)
    torch.testing.assert_close(turned(found(up.double())).sum((2, 3)), each.sum(1), rtol=1e-9, atol=0)


def test_at_a_mask_and_by_norms_of_the_batch() -> None:
    model, batch = linear(), drawn(9, 6)
    mask = tk.Mask({name: torch.rand(shape) < 0.5 for name, shape in scope(model).shapes.items()})
    there = tk.score.kfac(model, scope(model), batches=[batch], loss=loss, at=mask)
    pruned = linear()
    mask.apply_(pruned)
    own = tk.score.kfac(pruned, scope(pruned), batches=[batch], loss=loss)
    for name, kept in mask.items():
        torch.testing.assert_close(there[name][kept], own[name][kept], rtol=1e-9, atol=0)
    by_batch = tk.score.kfac(model, scope(model), batches=[batch], loss=loss, norms="batch", at=mask)
    assert not torch.allclose(by_batch["0.weight"], there["0.weight"])


def test_recurrent_weights_have_the_squares_of_their_gradients() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Embedding(5, 6), nn.LSTM(6, 3)), [torch.arange(5), torch.arange(4)]

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch)[0].logsumexp(-1).mean()

    found = tk.score.kfac(model, scope(model), batches=batches, loss=loss)
    for name, values in found.items():
        weight = model.get_parameter(name)
        gradients = [torch.autograd.grad(loss(model, batch), [weight])[0] for batch in batches]
        expected = sum((weight * g).detach().double().square() / 2 for g in gradients) / 2
        torch.testing.assert_close(values, expected)
    assert list(found) == ["1.weight_ih_l0", "1.weight_hh_l0"]


def test_an_expert_that_no_example_is_sent_to_is_worth_nothing() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            made = x.new_zeros(len(x), 4)
            for number, expert in enumerate(self.experts):
                sent = (x[:, 0] > 9).long() == number
                made[sent] = expert(x[sent])
            return made

    model = Routed().double()
    found = tk.score.kfac(model, scope(model), batches=[drawn(4, 6)], loss=loss)
    assert float(found["experts.1.weight"].abs().sum()) == 0 < float(found["experts.0.weight"].min())


def test_gradients_whose_squares_are_no_floats_count() -> None:
    """Of a network that is sure of all it sees, as after training, the loss and its gradients are tiny."""
    model = linear().float()
    batch = drawn(8, 6)[0].float(), torch.arange(8) % 4

    def faint(model: nn.Module, batch: Batch) -> Tensor:
        return 1e-25 * loss(model, batch)

    plain = tk.score.kfac(model, scope(model), batches=[batch], loss=loss)
    found = tk.score.kfac(model, scope(model), batches=[batch], loss=faint)
    for name, values in plain.items():
        torch.testing.assert_close(1e50 * found[name], values, rtol=1e-4, atol=0)
