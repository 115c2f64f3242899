"""The networks' parameter counts against closed forms and against what is published."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from ticketry.tasks import models

GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)


def build(name: str) -> nn.Module:
    """Without memory for the weights."""
    with torch.device("meta"):
        if name.endswith("imagenet"):
            return models.build(name, shape=LARGE, classes=1000)
        return models.build(name, shape=GREY if name.startswith("lenet") else COLOUR, classes=10)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return (inputs * kernel * kernel + bias) * outputs


def plain(*widths: int) -> int:
    """Conv-2, -4, -6: pairs of convolutions, and 16, 8 or 4 pixels left on a side."""
    chain = [3] + [width for width in widths for _ in range(2)]
    convolutions = sum(conv(a, b, 3) for a, b in pairwise(chain))
    side = 32 // 2 ** len(widths)
    return convolutions + linear(widths[-1] * side * side, 256) + linear(256, 256) + linear(256, 10)


def narrow(width: int, blocks: int, projections: bool = True) -> int:
    """Of the 2 `blocks` convolutions of a stage, with batch norm (2 parameters a channel), one changes the width."""
    a, b, c = width, 2 * width, 4 * width

    def with_norm(inputs: int, outputs: int, kernel: int = 3) -> int:
        return conv(inputs, outputs, kernel, bias=False) + 2 * outputs

    same = 2 * blocks - 1
    main = with_norm(3, a) + (same + 1) * with_norm(a, a)
    main += with_norm(a, b) + same * with_norm(b, b) + with_norm(b, c) + same * with_norm(c, c)
    shortcuts = with_norm(a, b, 1) + with_norm(b, c, 1)
    return main + projections * shortcuts + linear(c, 10)


def resnet18(stem: int, classes: int) -> int:
    """Two blocks a stage: 4 x 9 b^2 weights and 8 b of batch norm, less 4.5 b^2 where the input has b / 2 channels,
    plus a projection of b^2 / 2 weights and 2 b of batch norm there."""
    stages = sum(36 * b * b + 8 * b for b in (64, 128, 256, 512))
    changes = sum(-9 * b * b // 2 + b * b // 2 + 2 * b for b in (128, 256, 512))
    return 3 * stem * stem * 64 + 2 * 64 + stages + changes + linear(512, classes)


def resnet50(stem: int, classes: int) -> int:
    """A block of f filters has 4 f^2 + 9 f^2 + 4 f^2 weights and 12 f of batch norm, but for the first of a stage.

    That one sees half of the usual channels (a quarter in the first stage), and projects them to 4 f.
    """
    total = 3 * stem * stem * 64 + 2 * 64 + linear(2048, classes)
    for f, blocks, inputs in ((64, 3, 64), (128, 4, 256), (256, 6, 512), (512, 3, 1024)):
        total += blocks * (17 * f * f + 12 * f) + (inputs - 4 * f) * f + inputs * 4 * f + 8 * f
    return total


def wide(depth: int, k: int) -> int:
    """3x3 convolutions in pairs, each after batch norm; a projection a stage; batch norm at the end."""
    pairs, total, inputs = (depth - 4) // 6, 3 * 9 * 16, 16
    for filters in (16 * k, 32 * k, 64 * k):
        total += 9 * filters * (inputs + (2 * pairs - 1) * filters)
        total += 2 * inputs + 2 * (2 * pairs - 1) * filters
        total += inputs * filters
        inputs = filters
    return total + 2 * inputs + linear(inputs, 10)


def vgg(*widths: int) -> int:
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
    "vgg-11": vgg(64, 128, 256, 256, 512, 512, 512, 512),
    "vgg-13": vgg(64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg-16": vgg(64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    "vgg-19": vgg(64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512),
}


@pytest.mark.parametrize("name", models.names())
def test_parameter_count_in_closed_form(name: str) -> None:
    assert parameters(build(name)) == CLOSED_FORMS[name]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("lenet-300-100", 266_610),  # 266K: Frankle and Carbin 2019, figure 2
        ("lenet-5", 431_080),  # 431K: Lee et al. 2019, table 1
        ("resnet-18-imagenet", 11_689_512),  # torchvision
        ("resnet-50-imagenet", 25_557_032),  # torchvision
        ("wrn-28-10", 36_479_194),  # 36.5M: Zagoruyko and Komodakis 2016, table 5
    ],
)
def test_published_parameter_count(name: str, published: int) -> None:
    assert parameters(build(name)) == published


@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [
        ("conv-2", 4_300_000, 5),  # 4.3M: Frankle and Carbin 2019, figure 2
        ("conv-4", 2_400_000, 5),  # 2.4M: the same
        ("vgg-16", 14_700_000, 5),
        ("vgg-19", 20_000_000, 5),  # 20.0M: Frankle and Carbin 2019, figure 2
        ("wrn-16-8", 11_000_000, 5),  # 11.0M: Zagoruyko and Komodakis 2016, table 5
        ("wrn-40-2", 2_200_000, 5),  # 2.2M: the same
    ],
)
def test_published_parameter_count_rounded(name: str, published: int, digits: int) -> None:
    assert round(parameters(build(name)), -digits) == published


@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [("conv-2", 38_000, 3), ("conv-4", 260_000, 3), ("conv-6", 1_100_000, 5)],
)
def test_published_convolutional_weights(name: str, published: int, digits: int) -> None:
    """Frankle and Carbin 2019, figure 2: 38K, 260K, 1.1M; the first is cut off, not rounded (38,592)."""
    weights = sum(module.weight.numel() for module in build(name).modules() if isinstance(module, nn.Conv2d))
    unit = 10**digits
    assert published in (weights // unit * unit, round(weights, -digits))


@pytest.mark.parametrize(
    ("blocks", "published"),
    [(3, 0.27), (5, 0.46), (9, 0.85)],  # millions: He et al. 2016, table 6
)
def test_narrow_resnets_are_those_of_he_et_al_plus_projections(blocks: int, published: float) -> None:
    assert round(narrow(16, blocks, projections=False) / 1e6, 2) == published


def test_resnet_20_without_projections() -> None:
    assert narrow(16, 3, projections=False) == 269_722
    model = build("resnet-20")
    running = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim > 0)
    assert round(parameters(model) + running, -3) == 274_000  # 274K: Frankle et al. 2019, figure 2


@pytest.mark.parametrize("name", [name for name in models.names() if name.startswith(("resnet", "vgg", "wrn"))])
def test_depth_is_that_of_the_name(name: str) -> None:
    """A VGG's name counts three linear layers; that of a Wide ResNet its projections, but not its linear layer."""
    depth = int(re.findall(r"\d+", name)[0])
    model = build(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if name.startswith("resnet"):
        assert sum("shortcut" not in key for key in layers) == depth
    elif name.startswith("vgg"):
        assert len(layers) == depth - 2
    else:
        assert len(layers) == depth + 1
