"""The papers' networks, by name. One file a family; each says what it is, where it is from and how it starts.

conv-4-16 and resnet-20-8 are narrow relatives for small experiments; their last number is the first layer's width.
resnet-18 and resnet-50 are for images of CIFAR's size, resnet-18-imagenet and resnet-50-imagenet for those of
ImageNet's (224x224).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ticketry.errors import TaskError
from ticketry.tasks.models.conv import Conv
from ticketry.tasks.models.lenet import LeNet5, LeNet300100
from ticketry.tasks.models.resnet import Bottleneck, ResNet
from ticketry.tasks.models.vgg import VGG
from ticketry.tasks.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class _Network:
    make: Callable[[tuple[int, int, int], int], nn.Module]
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
    """The networks that `build` knows."""
    return tuple(_NETWORKS)


def build(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A new network for inputs of `shape` = (channels, height, width), its weights drawn from torch's global state.

    Its input is float32 [n, channels, height, width], its output the logits [n, classes].

    Raises:
        TaskError: for a name that is not one of `names`, or a shape that is too small for the network.
    """
    check(name, shape=shape)
    return _NETWORKS[name].make(shape, classes)


def check(name: str, *, shape: tuple[int, int, int]) -> None:
    """Raise what `build` would raise, without building anything."""
    if name not in _NETWORKS:
        raise TaskError(f"there is no network {name!r}: choose one of {', '.join(_NETWORKS)}")
    smallest = _NETWORKS[name].smallest
    if min(shape[1:]) < smallest:
        raise TaskError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            "choose another network or task"
        )
