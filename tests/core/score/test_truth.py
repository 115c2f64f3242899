"""Each score against a slow computation written out, in double precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional

from composed import Composed
from ticketry.core import score
from ticketry.core.mask import Mask
from ticketry.core.scope import scope

exactly = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-14)


def conv_net() -> nn.Module:
    """A convolution, a batch norm, an output layer: 20 + 8 prunable weights."""
    return Composed(
        lambda self, images: self.fc(self.drop(torch.tanh(self.bn(self.conv(images)))).flatten(1)),
        conv=nn.Conv2d(1, 2, 3, bias=False),
        bn=nn.BatchNorm2d(2),
        drop=nn.Dropout(0.5),
        fc=nn.Linear(8, 3),
    )


def dense_net() -> nn.Module:
    return Composed(lambda self, x: self.two(torch.sigmoid(self.one(x))), one=nn.Linear(4, 5), two=nn.Linear(5, 3))


def conv_formula(model: nn.Module, norms: str, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    maps = functional.conv2d(images, weights["conv.weight"])
    if norms == "batch":
        mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = model.bn.running_mean, model.bn.running_var
    across = (1, 2, 1, 1)
    maps = (maps - mean.view(across)) / (variance.view(across) + 1e-5).sqrt()
    maps = maps * model.bn.weight.detach().view(across) + model.bn.bias.detach().view(across)
    return torch.tanh(maps).flatten(1) @ weights["fc.weight"].T + model.fc.bias.detach()


def dense_formula(model: nn.Module, norms: str, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    hidden = torch.sigmoid(inputs @ weights["one.weight"].T + model.one.bias.detach())
    return hidden @ weights["two.weight"].T + model.two.bias.detach()


class Truth:
    """A model, its batches, and the loss of each batch as a function of one flat vector of the prunable weights."""

    def __init__(self, kind: str, norms: str = "batch") -> None:
        torch.manual_seed(3)
        self.model = {"conv": conv_net, "dense": dense_net}[kind]().double()
        shape = (1, 4, 4) if kind == "conv" else (4,)
        self.formula = partial({"conv": conv_formula, "dense": dense_formula}[kind], self.model, norms)
        if kind == "conv":
            with torch.no_grad():
                self.model.bn.weight.uniform_(0.5, 2)
                self.model.bn.running_mean.normal_()
                self.model.bn.running_var.uniform_(0.5, 2)
        self.batches = [(torch.randn(6, *shape).double(), torch.randint(3, (6,))) for _ in range(3)]
        self.scope = scope(self.model)
        self.flat = torch.cat([p.detach().flatten() for p in self.scope.parameters(self.model).values()])
        self.divisor = 1.0

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def batch_loss(self, index: int, flat: Tensor) -> Tensor:
        inputs, targets = self.batches[index]
        logits = self.formula(self.shaped(flat), inputs) / self.divisor
        chosen = logits.log_softmax(1)[torch.arange(len(targets)), targets]
        return -chosen.mean()

    def mean_loss(self, flat: Tensor) -> Tensor:
        return sum(self.batch_loss(index, flat) for index in range(3)) / 3

    def shaped(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(list(self.scope.sizes.values()))
        return {name: part.view(shape) for (name, shape), part in zip(self.scope.shapes.items(), parts, strict=True)}

    def gradient(self, index: int | None = None, at: Tensor | None = None) -> Tensor:
        return jacobian(self.mean_loss if index is None else partial(self.batch_loss, index), at)

    def product(self, at: Tensor, kept: Tensor) -> Tensor:
        """The whole Hessian, times the gradient."""
        return hessian(self.mean_loss, at) @ (self.gradient(at=at) * kept)


REFERENCES: dict[str, Callable[[Truth, Tensor, Tensor], Tensor]] = {
    "snip": lambda truth, at, kept: (truth.flat * truth.gradient(at=at)).abs(),
    "taylor": lambda truth, at, kept: sum((truth.flat * truth.gradient(index, at)).abs() for index in range(3)) / 3,
    "fisher": lambda truth, at, kept: sum(truth.flat**2 * truth.gradient(index, at) ** 2 for index in range(3)) / 6,
    "crop": lambda truth, at, kept: (truth.flat * truth.product(at, kept)).abs(),
    "grasp": lambda truth, at, kept: truth.flat * truth.product(at, kept),
}


def reference(name: str, truth: Truth, mask: Mask | None = None) -> dict[str, Tensor]:
    """The score as the papers have it, in the network that a mask leaves."""
    kept = torch.ones_like(truth.flat) if mask is None else torch.cat([each.flatten() for each in mask.values()])
    return truth.shaped(REFERENCES[name](truth, truth.flat * kept, kept))


@pytest.mark.parametrize("norms", ["batch", "running"])
@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("name", REFERENCES)
def test_scores_are_what_the_papers_say(name, kind, norms):
    truth = Truth(kind, norms)
    found = score.get(name)(truth.model, truth.scope, batches=truth.batches, loss=truth.loss, norms=norms)
    exactly(found, reference(name, truth))


@pytest.mark.parametrize("name", REFERENCES)
def test_single_precision_comes_close(name):
    truth = Truth("conv")
    exact = score.get(name)(truth.model, truth.scope, batches=truth.batches, loss=truth.loss)
    truth.model.float()
    batches = [(inputs.float(), targets) for inputs, targets in truth.batches]
    found = score.get(name)(truth.model, truth.scope, batches=batches, loss=truth.loss)
    for key, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), exact[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("warm", [partial(score.grasp, temperature=200), score.get("grasp200")])
def test_grasp_at_the_temperature_of_the_published_code(warm):
    truth = Truth("conv")
    truth.divisor = 200.0
    found = warm(truth.model, truth.scope, batches=truth.batches, loss=truth.loss)
    exactly(found, reference("grasp", truth), atol=1e-20)
    assert not truth.model._forward_hooks


@pytest.mark.parametrize("name", REFERENCES)
def test_at_a_mask_removed_weights_are_0_but_have_a_score(name):
    truth = Truth("conv")
    mask = Mask({key: torch.rand(shape) < 0.6 for key, shape in truth.scope.shapes.items()})
    found = score.get(name)(truth.model, truth.scope, batches=truth.batches, loss=truth.loss, at=mask)
    exactly(found, reference(name, truth, mask))
    assert torch.equal(torch.cat([p.flatten() for p in truth.scope.parameters(truth.model).values()]), truth.flat)


def test_tied_weights_have_the_gradient_of_all_places(build):
    """The decoder and the embedding of a language model are one matrix: against a model that has two."""
    case = build("lstm")
    model = case.model.double()
    found = score.snip(model, scope(model), batches=case.batches[:2], loss=case.loss)
    assert "decoder.weight" not in found

    def mean_loss(matrix: Tensor) -> Tensor:
        swapped = {"encoder.weight": matrix, "decoder.weight": matrix}
        losses = [
            functional.cross_entropy(
                torch.func.functional_call(model, swapped, (inputs,)).flatten(0, -2), targets.flatten()
            )
            for inputs, targets in case.batches[:2]
        ]
        return sum(losses) / 2

    matrix = model.encoder.weight.detach()
    exactly(found["encoder.weight"], (matrix * jacobian(mean_loss, matrix)).abs())
