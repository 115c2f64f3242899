"""What every network has to do: shapes, export, order of operations, initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn

from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks import models

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
SHAPES = {"lenet-300-100": GREY, "lenet-5": GREY}

LARGE = {"resnet-50", "resnet-56", "vgg-13", "vgg-19", "wrn-16-8", "wrn-28-10"}
"""Their smaller relatives stand for them where time is short."""
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in models.names()]


def build(name: str, shape: tuple[int, int, int] | None = None) -> nn.Module:
    return models.build(name, shape=shape or SHAPES.get(name, COLOUR), classes=10)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", sample([((1, 28, 28),), ((3, 33, 47),), ((3, 32, 32),), ((1, 16, 20),)], 2))
def test_every_shape_gives_logits(name: str, shape: tuple[int, int, int]) -> None:
    if name.endswith("imagenet"):
        shape = (shape[0], 2 * shape[1], 2 * shape[2])
    model = models.build(name, shape=shape, classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("lenet-300-100", 1),
        ("lenet-5", 16),
        ("conv-2", 2),
        ("conv-4", 4),
        ("conv-6", 8),
        ("resnet-20", 4),
        ("resnet-18", 8),
        ("resnet-50-imagenet", 32),
        ("wrn-40-2", 4),
        ("vgg-11", 16),
        ("vgg-16", 16),
    ],
)
def test_images_that_are_too_small_are_refused(name: str, smallest: int) -> None:
    model = models.build(name, shape=(1, smallest, 32), classes=10).eval()
    assert model(torch.zeros(1, 1, smallest, 32)).shape == (1, 10)
    with pytest.raises(TaskError, match=f"at least {smallest}x{smallest} pixels, not {smallest - 1}x32"):
        models.build(name, shape=(1, smallest - 1, 32), classes=10)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"'alexnet'.*lenet-300-100.*vgg-16"):
        models.build("alexnet", shape=COLOUR, classes=10)


@pytest.mark.parametrize("name", sample(EVERY, 5))
def test_export_gives_the_same_outputs_for_any_batch(name: str) -> None:
    shape = SHAPES.get(name, COLOUR)
    model = build(name).eval()
    exported = torch.export.export(
        model, (torch.randn(2, *shape),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},)
    ).module()
    inputs = torch.randn(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(exported(inputs), model(inputs))


def test_lenet_300_100_is_three_matrices() -> None:
    model = build("lenet-300-100")
    x = torch.randn(4, 1, 28, 28)
    a, b, c = (parameter.detach() for name, parameter in model.named_parameters() if name.endswith("weight"))
    expected = (((x.reshape(4, 784) @ a.T).clamp(min=0) @ b.T).clamp(min=0)) @ c.T  # biases start at 0
    torch.testing.assert_close(model(x).detach(), expected)


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("lenet-5", "conv2d max_pool2d conv2d max_pool2d flatten linear relu linear"),
        (
            "conv-4",
            "conv2d relu conv2d relu max_pool2d conv2d relu conv2d relu max_pool2d "
            "flatten linear relu linear relu linear",
        ),
        ("conv-2", "conv2d relu conv2d relu max_pool2d flatten linear relu linear relu linear"),
        ("conv-6", "conv2d relu conv2d relu max_pool2d " * 3 + "flatten linear relu linear relu linear"),
        (
            "vgg-11",
            "max_pool2d ".join("conv2d batch_norm relu " * depth for depth in (1, 1, 2, 2, 2))
            + "adaptive_avg_pool2d flatten linear",
        ),
        (
            "vgg-19",
            "max_pool2d ".join("conv2d batch_norm relu " * depth for depth in (2, 2, 4, 4, 4))
            + "adaptive_avg_pool2d flatten linear",
        ),
        (
            "vgg-16",
            "max_pool2d ".join("conv2d batch_norm relu " * depth for depth in (2, 2, 3, 3, 3))
            + "adaptive_avg_pool2d flatten linear",
        ),
    ],
)
def test_order_of_operations(name: str, operations: str) -> None:
    model = build(name)
    modules = dict(model.named_modules())
    found = []
    for node in fx.symbolic_trace(model).graph.nodes:
        if node.op == "call_module":
            found.append(type(modules[node.target]).__name__.lower())
        elif node.op in ("call_function", "call_method"):
            found.append(node.target if isinstance(node.target, str) else node.target.__name__)
    same = {"maxpool2d": "max_pool2d", "boolean_dispatch": "max_pool2d", "batchnorm2d": "batch_norm"}
    assert [same.get(operation, operation) for operation in found] == operations.split()


@pytest.mark.parametrize("name", EVERY)
def test_initial_weights_have_the_stated_spread(name: str) -> None:
    torch.manual_seed(0)
    for module in build(name).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        assert module.bias is None or not module.bias.any()
        weight = module.weight.detach().double()
        fan_in = weight[0].numel()
        fan_out = weight.shape[0] * weight[0, 0].numel()
        if name == "lenet-5":
            assert weight.abs().max() <= math.sqrt(3 / fan_in)
            variance = 1 / fan_in
        elif name.startswith(("lenet", "conv")):
            variance = 2 / (fan_in + fan_out)
        else:
            variance = 2 / fan_in
        # The standard error of a sample's standard deviation is sigma / sqrt(2 n) for a normal distribution.
        assert abs(weight.std() / math.sqrt(variance) - 1) < 5 / math.sqrt(2 * weight.numel())
        assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.numel())


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_decides_the_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in build(name).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
