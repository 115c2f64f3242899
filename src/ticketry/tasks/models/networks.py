"""The papers' networks, by name.

conv-4-16 and resnet-20-8 are narrow relatives for small experiments; their last number is the first layer's width.
resnet-18 and resnet-50 are for images of CIFAR's size, resnet-18-imagenet and resnet-50-imagenet for those of
ImageNet's (224x224). mlp-WIDTH[-WIDTH …] is a perceptron of any widths, for images and for rows of numbers, which are
taken as images of 1x1 pixels: see `mlp`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ticketry.errors import TaskError
from ticketry.tasks.models import zoo
from ticketry.tasks.models.conv import Conv
from ticketry.tasks.models.lenet import LeNet5, LeNet300100
from ticketry.tasks.models.mlp import MLP, hidden_widths
from ticketry.tasks.models.resnet import Bottleneck, ResNet
from ticketry.tasks.models.vgg import VGG
from ticketry.tasks.models.wide_resnet import WideResNet
from ticketry.tasks.network_name import NetworkName, unknown


@dataclass(frozen=True)
class _Network:
    make: Callable[..., nn.Module]
    """Of shape, classes and, by name, `scale`: what becomes of a hidden width."""
    smallest: int
    """Height and width, in pixels, below which its poolings and strides leave less than one."""


_RESNET18 = partial(ResNet, repeats=(2, 2, 2, 2), width=64)
_RESNET50 = partial(ResNet, repeats=(3, 4, 6, 3), width=64, block=Bottleneck)

_NETWORKS = {
    "lenet-300-100": _Network(LeNet300100, 1),
    "lenet-5": _Network(LeNet5, 16),
    "conv-2": _Network(partial(Conv, widths=(64,)), 2),
    "conv-4": _Network(partial(Conv, widths=(64, 128)), 4),
    "conv-4-16": _Network(partial(Conv, widths=(16, 32)), 4),
    "conv-6": _Network(partial(Conv, widths=(64, 128, 256)), 8),
    "resnet-20": _Network(partial(ResNet, repeats=(3, 3, 3), width=16), 4),
    "resnet-20-8": _Network(partial(ResNet, repeats=(3, 3, 3), width=8), 4),
    "resnet-32": _Network(partial(ResNet, repeats=(5, 5, 5), width=16), 4),
    "resnet-56": _Network(partial(ResNet, repeats=(9, 9, 9), width=16), 4),
    "resnet-18": _Network(_RESNET18, 8),
    "resnet-50": _Network(_RESNET50, 8),
    "resnet-18-imagenet": _Network(partial(_RESNET18, imagenet=True), 32),
    "resnet-50-imagenet": _Network(partial(_RESNET50, imagenet=True), 32),
    "wrn-16-8": _Network(partial(WideResNet, depth=16, factor=8), 4),
    "wrn-28-10": _Network(partial(WideResNet, depth=28, factor=10), 4),
    "wrn-40-2": _Network(partial(WideResNet, depth=40, factor=2), 4),
    "vgg-11": _Network(partial(VGG, depth=11), 16),
    "vgg-13": _Network(partial(VGG, depth=13), 16),
    "vgg-16": _Network(partial(VGG, depth=16), 16),
    "vgg-19": _Network(partial(VGG, depth=19), 16),
}


def names() -> tuple[str, ...]:
    """The papers' networks at their own width; `build` knows NAME@W, mlp-WIDTH…, timm:NAME and torchvision:NAME too."""
    return tuple(_NETWORKS)


def build(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A new network for inputs of `shape` = (channels, height, width), its weights drawn from torch's global state.

    Its input is float32 [n, channels, height, width], its output the logits [n, classes].

    Raises:
        TaskError: for an unknown network, a width that is not in (0, 4], or a shape that the network does not take.
        MissingExtraError: if the library that has the network is not installed.
    """
    check(name, shape=shape)
    parsed = NetworkName.parse(name)
    if parsed.library:
        return zoo.build(parsed, shape=shape, classes=classes)
    return _network(parsed, name).make(shape, classes, scale=parsed.scaled)


def check(name: str, *, shape: tuple[int, int, int]) -> None:
    """Raise what `build` would raise, without building anything; another library's network is tried on no data."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        zoo.check(parsed, shape=shape)
        return
    smallest = _network(parsed, name).smallest
    if min(shape[1:]) < smallest:
        raise TaskError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            "choose another network or task"
        )


def _network(parsed: NetworkName, name: str) -> _Network:
    if widths := hidden_widths(parsed.base):
        return _Network(partial(MLP, hidden=widths), 1)
    if parsed.base not in _NETWORKS:
        raise unknown(name, _NETWORKS)
    return _NETWORKS[parsed.base]


def identity(name: str) -> dict[str, str]:
    """What a task's key says of its network: `model`, its name in the one form that counts; for another library's
    also `library`, such as "timm 1.0.31", whose version decides what the name means.

    Raises:
        TaskError: for a name of no known form, or a library that cannot be imported.
        MissingExtraError: if the library is not installed.
    """
    parsed = NetworkName.parse(name)
    model = {"model": str(parsed)}
    return {**model, "library": zoo.version(parsed)} if parsed.library else model
