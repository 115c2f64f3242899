"""The networks against closed forms and the counts that their papers publish."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.tasks import models

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
SHAPES = {"lenet-300-100": GREY, "lenet-5": GREY}


def build(name: str, shape: tuple[int, int, int] | None = None) -> nn.Module:
    return models.build(name, shape=shape or SHAPES.get(name, COLOUR), classes=10)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return (inputs * kernel * kernel + bias) * outputs


def conv4(a: int, b: int) -> int:
    convolutions = conv(3, a, 3) + conv(a, a, 3) + conv(a, b, 3) + conv(b, b, 3)
    return convolutions + linear(b * 8 * 8, 256) + linear(256, 256) + linear(256, 10)


def resnet20(width: int, projections: bool = True) -> int:
    """Six convolutions with batch norm (2 parameters a channel) a stage, of which one changes the width."""
    a, b, c = width, 2 * width, 4 * width

    def with_norm(inputs: int, outputs: int, kernel: int = 3) -> int:
        return conv(inputs, outputs, kernel, bias=False) + 2 * outputs

    main = with_norm(3, a) + 6 * with_norm(a, a)
    main += with_norm(a, b) + 5 * with_norm(b, b) + with_norm(b, c) + 5 * with_norm(c, c)
    shortcuts = with_norm(a, b, 1) + with_norm(b, c, 1)
    return main + projections * shortcuts + linear(c, 10)


def vgg16() -> int:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return sum(conv(a, b, 3, bias=False) + 2 * b for a, b in pairwise(widths)) + linear(512, 10)


CLOSED_FORMS = {
    "lenet-300-100": linear(784, 300) + linear(300, 100) + linear(100, 10),
    "lenet-5": conv(1, 20, 5) + conv(20, 50, 5) + linear(50 * 4 * 4, 500) + linear(500, 10),
    "conv-4": conv4(64, 128),
    "conv-4-16": conv4(16, 32),
    "resnet-20": resnet20(16),
    "resnet-20-8": resnet20(8),
    "vgg-16": vgg16(),
}


@pytest.mark.parametrize("name", models.names())
def test_parameter_count_in_closed_form(name: str) -> None:
    assert parameters(build(name)) == CLOSED_FORMS[name]


def test_published_parameter_counts() -> None:
    assert CLOSED_FORMS["lenet-300-100"] == 266_610  # 266K: Frankle and Carbin 2019, figure 2
    assert CLOSED_FORMS["lenet-5"] == 431_080  # 431K: Lee et al. 2019, table 1
    assert round(CLOSED_FORMS["conv-4"], -5) == 2_400_000  # 2.4M: Frankle and Carbin 2019, figure 2
    assert round(CLOSED_FORMS["vgg-16"], -5) == 14_700_000


def test_resnet_is_that_of_he_et_al_plus_projections() -> None:
    assert resnet20(16, projections=False) == 269_722  # 0.27M: He et al. 2016, table 6
    model = build("resnet-20")
    running = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim > 0)
    assert round(parameters(model) + running, -3) == 274_000  # 274K: Frankle et al. 2019, figure 2
    weighted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == 20


def test_conv4_has_the_published_number_of_convolutional_weights() -> None:
    weights = [module.weight.numel() for module in build("conv-4").modules() if isinstance(module, nn.Conv2d)]
    assert round(sum(weights), -4) == 260_000  # 260K: Frankle and Carbin 2019, figure 2


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 16, 20), (3, 33, 47)])
def test_every_shape_gives_logits(name: str, shape: tuple[int, int, int]) -> None:
    model = models.build(name, shape=shape, classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "smallest"), [("lenet-300-100", 1), ("lenet-5", 16), ("conv-4", 4), ("resnet-20", 4), ("vgg-16", 16)]
)
def test_images_that_are_too_small_are_refused(name: str, smallest: int) -> None:
    model = models.build(name, shape=(1, smallest, 32), classes=10).eval()
    assert model(torch.zeros(1, 1, smallest, 32)).shape == (1, 10)
    with pytest.raises(TaskError, match=f"at least {smallest}x{smallest} pixels, not {smallest - 1}x32"):
        models.build(name, shape=(1, smallest - 1, 32), classes=10)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"'resnet-18'.*lenet-300-100.*vgg-16"):
        models.build("resnet-18", shape=COLOUR, classes=10)


@pytest.mark.parametrize("name", models.names())
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


def test_resnet_adds_each_block_to_its_shortcut() -> None:
    model = build("resnet-20-8").eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif "running_mean" in name or "bn" in name:
            tensor.copy_(torch.randn_like(tensor.double()))
    state = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = torch.randn(2, 3, 32, 32)
    expected = norm(F.conv2d(x, state["conv.weight"], padding=1), "bn").clamp(min=0)
    for block in range(9):
        name, stride = f"blocks.{block}", 2 if block in (3, 6) else 1
        carried = expected
        if stride == 2:
            carried = norm(F.conv2d(expected, state[f"{name}.shortcut.0.weight"], stride=2), f"{name}.shortcut.1")
        inner = F.conv2d(expected, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = F.conv2d(norm(inner, f"{name}.bn1").clamp(min=0), state[f"{name}.conv2.weight"], padding=1)
        expected = (norm(inner, f"{name}.bn2") + carried).clamp(min=0)
    assert expected.shape == (2, 32, 8, 8)
    expected = expected.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", models.names())
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


@pytest.mark.parametrize("name", models.names())
def test_the_seed_decides_the_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in build(name).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
