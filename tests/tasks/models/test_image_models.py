"""Image networks: parameter counts, operations written out, shapes, initial weights and their pinned bits."""

from __future__ import annotations

import hashlib
import math
import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks import models

GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)
QUICK = ["lenet-300-100", "lenet-5", "conv-4-16", "resnet-20-8", "resnet-18-imagenet", "vgg-11", "wrn-40-2"]
"""One network of each kind."""


def build(name: str, device: str = "cpu") -> nn.Module:
    """Build a network for the images that it was published with."""
    shape = GREY if name.startswith("lenet") else LARGE if name.endswith("imagenet") else COLOUR
    with torch.device(device):
        return models.build(name, shape=shape, classes=1000 if shape == LARGE else 10)


# -- parameter counts --------------------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return (inputs * kernel * kernel + bias) * outputs


def plain(*widths: int) -> int:
    """Conv-2, -4, -6: pairs of convolutions, and 16, 8 or 4 pixels left on a side."""
    chain = [3] + [width for width in widths for _ in range(2)]
    side = 32 // 2 ** len(widths)
    head = linear(widths[-1] * side * side, 256) + linear(256, 256) + linear(256, 10)
    return sum(conv(a, b, 3) for a, b in pairwise(chain)) + head


def narrow(width: int, blocks: int, projections: bool = True) -> int:
    """One of the 2 `blocks` convolutions of a stage changes the width; batch norm has 2 parameters a channel."""
    a, b, c = width, 2 * width, 4 * width

    def with_norm(inputs: int, outputs: int, kernel: int = 3) -> int:
        return conv(inputs, outputs, kernel, bias=False) + 2 * outputs

    same = 2 * blocks - 1
    main = with_norm(3, a) + (same + 1) * with_norm(a, a)
    main += with_norm(a, b) + same * with_norm(b, b) + with_norm(b, c) + same * with_norm(c, c)
    return main + projections * (with_norm(a, b, 1) + with_norm(b, c, 1)) + linear(c, 10)


def resnet18(stem: int, classes: int) -> int:
    """Two blocks a stage: 4 x 9 b^2 weights and 8 b of batch norm, less 4.5 b^2 where the input has b / 2 channels,
    plus a projection of b^2 / 2 weights and 2 b of batch norm there."""
    stages = sum(36 * b * b + 8 * b for b in (64, 128, 256, 512))
    changes = sum(-9 * b * b // 2 + b * b // 2 + 2 * b for b in (128, 256, 512))
    return 3 * stem * stem * 64 + 2 * 64 + stages + changes + linear(512, classes)


def resnet50(stem: int, classes: int) -> int:
    """A block of f filters has 4 f^2 + 9 f^2 + 4 f^2 weights and 12 f of batch norm, except the first of a stage: its
    input has half of the usual channels (a quarter in the first stage), and a projection to 4 f."""
    total = 3 * stem * stem * 64 + 2 * 64 + linear(2048, classes)
    for f, blocks, inputs in ((64, 3, 64), (128, 4, 256), (256, 6, 512), (512, 3, 1024)):
        total += blocks * (17 * f * f + 12 * f) + (inputs - 4 * f) * f + inputs * 4 * f + 8 * f
    return total


def wide(depth: int, k: int) -> int:
    """3x3 convolutions in pairs, each after batch norm; a projection a stage; batch norm at the end."""
    pairs, total, inputs = (depth - 4) // 6, 3 * 9 * 16, 16
    for filters in (16 * k, 32 * k, 64 * k):
        total += 9 * filters * (inputs + (2 * pairs - 1) * filters)
        total += 2 * inputs + 2 * (2 * pairs - 1) * filters + inputs * filters
        inputs = filters
    return total + 2 * inputs + linear(inputs, 10)


def vgg(*repeats: int) -> int:
    widths = [width for width, count in zip((64, 128, 256, 512, 512), repeats, strict=True) for _ in range(count)]
    return sum(conv(a, b, 3, bias=False) + 2 * b for a, b in pairwise((3, *widths))) + linear(512, 10)


CLOSED_FORMS = {
    "lenet-300-100": linear(784, 300) + linear(300, 100) + linear(100, 10),
    "lenet-5": conv(1, 20, 5) + conv(20, 50, 5) + linear(50 * 4 * 4, 500) + linear(500, 10),
    "conv-2": plain(64),
    "conv-4": plain(64, 128),
    "conv-4-16": plain(16, 32),
    "conv-6": plain(64, 128, 256),
    "resnet-20": narrow(16, 3),
    "resnet-20-8": narrow(8, 3),
    "resnet-32": narrow(16, 5),
    "resnet-56": narrow(16, 9),
    "resnet-18": resnet18(3, 10),
    "resnet-50": resnet50(3, 10),
    "resnet-18-imagenet": resnet18(7, 1000),
    "resnet-50-imagenet": resnet50(7, 1000),
    "wrn-16-8": wide(16, 8),
    "wrn-28-10": wide(28, 10),
    "wrn-40-2": wide(40, 2),
    "vgg-11": vgg(1, 1, 2, 2, 2),
    "vgg-13": vgg(2, 2, 2, 2, 2),
    "vgg-16": vgg(2, 2, 3, 3, 3),
    "vgg-19": vgg(2, 2, 4, 4, 4),
}
PUBLISHED = {
    "lenet-300-100": (266_610, 0),  # 266K: Frankle and Carbin 2019, figure 2
    "lenet-5": (431_080, 0),  # 431K: Lee et al. 2019, table 1
    "resnet-18-imagenet": (11_689_512, 0),  # torchvision
    "resnet-50-imagenet": (25_557_032, 0),  # torchvision
    "wrn-28-10": (36_479_194, 0),  # 36.5M: Zagoruyko and Komodakis 2016, table 5
    "wrn-16-8": (11_000_000, 5),  # 11.0M: the same
    "wrn-40-2": (2_200_000, 5),  # 2.2M: the same
    "conv-2": (4_300_000, 5),  # 4.3M: Frankle and Carbin 2019, figure 2
    "conv-4": (2_400_000, 5),  # 2.4M: the same
    "vgg-16": (14_700_000, 5),
    "vgg-19": (20_000_000, 5),  # 20.0M: Frankle and Carbin 2019, figure 2
}
"""Parameters, and to how many digits they are rounded."""
CONVOLUTIONS = {"conv-2": (38_000, 3), "conv-4": (260_000, 3), "conv-6": (1_100_000, 5)}
"""Frankle and Carbin 2019, figure 2: 38K, 260K, 1.1M weights; the first is cut off, not rounded (38,592)."""


@pytest.mark.parametrize("name", models.names())
def test_parameters_and_depth(name: str) -> None:
    """A VGG's name counts three linear layers; that of a Wide ResNet its projections, but not its linear layer."""
    model = build(name, "meta")
    count = parameters(model)
    assert count == CLOSED_FORMS[name]
    if name in PUBLISHED:
        assert round(count, -PUBLISHED[name][1]) == PUBLISHED[name][0]
    layers = {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    if name in CONVOLUTIONS:
        published, digits = CONVOLUTIONS[name]
        weights = sum(layer.weight.numel() for layer in layers.values() if isinstance(layer, nn.Conv2d))
        assert published in (weights // 10**digits * 10**digits, round(weights, -digits))
    depth = int(re.findall(r"\d+", name)[0])
    if name.startswith("resnet"):
        assert sum("shortcut" not in key for key in layers) == depth
    elif name.startswith(("vgg", "wrn")):
        assert len(layers) == (depth - 2 if name.startswith("vgg") else depth + 1)


def test_narrow_resnets_are_those_of_he_et_al_plus_projections() -> None:
    """He et al. 2016, table 6, in millions; ResNet-20 with running statistics in Frankle et al. 2019, figure 2."""
    for blocks, published in ((3, 0.27), (5, 0.46), (9, 0.85)):
        assert round(narrow(16, blocks, projections=False) / 1e6, 2) == published
    model = build("resnet-20", "meta")
    running = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim > 0)
    assert round(parameters(model) + running, -3) == 274_000


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])
def test_small_and_large_form_differ_in_the_stem_alone(name: str) -> None:
    with torch.device("meta"):
        small, large = (models.build(form, shape=COLOUR, classes=10) for form in (name, f"{name}-imagenet"))
    shapes = {key: tensor.shape for key, tensor in small.state_dict().items()}
    others = {key: tensor.shape for key, tensor in large.state_dict().items()}
    assert (shapes.pop("conv.weight"), others.pop("conv.weight")) == ((64, 3, 3, 3), (64, 3, 7, 7))
    assert others == shapes


# -- operations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sample(models.names(), QUICK))
def test_shapes_and_export(name: str) -> None:
    """Grey images, odd sizes, and any batch of an exported network."""
    for shape in ((1, 28, 28), (3, 33, 47)):
        if name.endswith("imagenet"):
            shape = (shape[0], 2 * shape[1], 2 * shape[2])
        model = models.build(name, shape=shape, classes=7).eval()
        inputs = torch.randn(2, *shape)
        with torch.no_grad():
            outputs = model(inputs)
        assert outputs.shape == (2, 7)
    if name == "lenet-5":
        dynamic = ({0: torch.export.Dim("n", min=1, max=64)},)
        exported = torch.export.export(model, (inputs,), dynamic_shapes=dynamic).module()
        with torch.no_grad():
            torch.testing.assert_close(exported(inputs[:1]), outputs[:1])


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("lenet-5", 16), ("conv-6", 8), ("resnet-20", 4), ("resnet-50-imagenet", 32), ("wrn-40-2", 4), ("vgg-11", 16)],
)
def test_images_that_are_too_small_are_refused(name: str, smallest: int) -> None:
    model = models.build(name, shape=(1, smallest, 32), classes=10).eval()
    assert model(torch.zeros(1, 1, smallest, 32)).shape == (1, 10)
    with pytest.raises(TaskError, match=f"at least {smallest}x{smallest} pixels, not {smallest - 1}x32"):
        models.build(name, shape=(1, smallest - 1, 32), classes=10)


def test_lenet_300_100_is_three_matrices() -> None:
    model = build("lenet-300-100")
    x = torch.randn(4, 1, 28, 28)
    a, b, c = (parameter.detach() for name, parameter in model.named_parameters() if name.endswith("weight"))
    expected = (((x.reshape(4, 784) @ a.T).clamp(min=0) @ b.T).clamp(min=0)) @ c.T  # biases start at 0
    torch.testing.assert_close(model(x).detach(), expected)


def vgg_operations(*repeats: int) -> str:
    blocks = "max_pool2d ".join("conv2d batch_norm relu " * depth for depth in repeats)
    return f"{blocks}adaptive_avg_pool2d flatten linear"


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("lenet-5", "conv2d max_pool2d conv2d max_pool2d flatten linear relu linear"),
        ("conv-6", "conv2d relu conv2d relu max_pool2d " * 3 + "flatten linear relu linear relu linear"),
        ("vgg-11", vgg_operations(1, 1, 2, 2, 2)),
        ("vgg-19", vgg_operations(2, 2, 4, 4, 4)),
    ],
)
def test_order_of_operations(name: str, operations: str) -> None:
    model = build(name, "meta")
    modules = dict(model.named_modules())
    found = []
    for node in fx.symbolic_trace(model).graph.nodes:
        if node.op == "call_module":
            found.append(type(modules[node.target]).__name__.lower())
        elif node.op in ("call_function", "call_method"):
            found.append(node.target if isinstance(node.target, str) else node.target.__name__)
    same = {"maxpool2d": "max_pool2d", "boolean_dispatch": "max_pool2d", "batchnorm2d": "batch_norm"}
    assert [same.get(operation, operation) for operation in found] == operations.split()


# -- residual networks written out with functions of tensors -----------------------------------------------------------

State = dict[str, Tensor]


def unusual(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, State]:
    """Return a network in float64 whose batch norms all do something, and its state."""
    torch.manual_seed(1)
    model = models.build(name, shape=shape, classes=10).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return model, dict(model.state_dict())


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def convolve(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def check_logits(model: nn.Module, state: State, x: Tensor, features: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), features.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"])


def test_resnet_20_adds_each_block_to_its_shortcut() -> None:
    model, state = unusual("resnet-20-8", (3, 32, 32))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = norm(state, "bn", convolve(state, "conv", x)).relu()
    for block in range(9):
        name, stride = f"blocks.{block}", 2 if block in (3, 6) else 1
        carried = out
        if stride == 2:
            carried = norm(state, f"{name}.shortcut.1", convolve(state, f"{name}.shortcut.0", out, stride))
        inner = norm(state, f"{name}.bn1", convolve(state, f"{name}.conv1", out, stride)).relu()
        out = (norm(state, f"{name}.bn2", convolve(state, f"{name}.conv2", inner)) + carried).relu()
    assert out.shape == (2, 32, 8, 8)
    check_logits(model, state, x, out)


def test_resnet_50_for_imagenet_has_bottlenecks_and_a_pooling_stem() -> None:
    model, state = unusual("resnet-50-imagenet", (3, 32, 48))
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    out = norm(state, "bn", convolve(state, "conv", x, 2)).relu()
    out = F.max_pool2d(F.pad(out, (1, 1, 1, 1)), 3, 2)  # zeros change no maximum of rectified values
    assert out.shape == (1, 64, 8, 12)
    firsts = (0, 3, 7, 13)
    for block in range(16):
        name, stride = f"blocks.{block}", 2 if block in firsts[1:] else 1
        carried = out
        if block in firsts:
            carried = norm(state, f"{name}.shortcut.1", convolve(state, f"{name}.shortcut.0", out, stride))
        inner = norm(state, f"{name}.bn1", convolve(state, f"{name}.conv1", out)).relu()
        inner = norm(state, f"{name}.bn2", convolve(state, f"{name}.conv2", inner, stride)).relu()
        out = (norm(state, f"{name}.bn3", convolve(state, f"{name}.conv3", inner)) + carried).relu()
    assert out.shape == (1, 2048, 1, 2)
    check_logits(model, state, x, out)


def test_wide_resnet_normalises_and_rectifies_before_each_convolution() -> None:
    model, state = unusual("wrn-16-8@0.25", (3, 16, 16))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    out = convolve(state, "conv", x)
    for block in range(6):
        name, stride = f"blocks.{block}", 2 if block in (2, 4) else 1
        active = norm(state, f"{name}.bn1", out).relu()
        carried = convolve(state, f"{name}.shortcut", active, stride) if block in (0, 2, 4) else out
        inner = norm(state, f"{name}.bn2", convolve(state, f"{name}.conv1", active, stride)).relu()
        out = convolve(state, f"{name}.conv2", inner) + carried
    assert out.shape == (2, 128, 4, 4)
    check_logits(model, state, x, norm(state, "bn", out).relu())


# -- initial weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sample(models.names(), QUICK))
def test_initial_weights_have_the_stated_spread(name: str) -> None:
    torch.manual_seed(0)
    for module in build(name).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        assert module.bias is None or not module.bias.any()
        weight = module.weight.detach()
        fan_in = weight[0].numel()
        fan_out = weight.shape[0] * weight[0, 0].numel()
        if name == "lenet-5":
            assert weight.abs().max() <= math.sqrt(3 / fan_in)
            variance = 1 / fan_in
        else:
            variance = 2 / (fan_in + fan_out) if name.startswith(("lenet", "conv")) else 2 / fan_in
        # The standard error of a sample's standard deviation is sigma / sqrt(2 n) for a normal distribution.
        assert abs(weight.std() / math.sqrt(variance) - 1) < 5 / math.sqrt(2 * weight.numel())
        assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.numel())


DIGESTS = {
    "lenet-300-100": "2a2af5203ea27d91afc46f892fac82134022b771e76f983c31b79559afecca1e",
    "lenet-5": "d0bcbf5e8fdcca961f07841f59200b7bffc5828dfac41d6452508a54ae1ccbd6",
    "conv-4": "82ac00941cb7e2e1f11f929d5146e08519f0fea1f27ec2d52751ed7b690e33fc",
    "conv-4-16": "3cffdcc68f8ab4e0f950a6e042240201b2a4bd6ab0429e934334addf77fdaaa9",
    "resnet-20": "a9e3bc3ea4d6c6fb6a1d3ae0e3c0a96d317ec0aa2401288be9d731f0c145a94f",
    "resnet-20-8": "d260c960f155a0326f335e8deedb91e1e877f0a675e4e13c2625d04f4a6cb433",
    "vgg-16": "9375a341ae43b808578022846337395ebc52748e9f20df72e029f6d9e87811f0",
}


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch draws normal numbers with other roundings where it has no AVX2",
)
@pytest.mark.parametrize("name", DIGESTS)
def test_initial_weights_keep_their_bits(name: str) -> None:
    """Stored results depend on them."""
    torch.manual_seed(0)
    digest = hashlib.sha256()
    for key, tensor in build(name).state_dict().items():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == DIGESTS[name]
    torch.manual_seed(1)
    other = build(name).state_dict()
    assert not torch.equal(next(iter(other.values())), next(iter(build(name).state_dict().values())))
