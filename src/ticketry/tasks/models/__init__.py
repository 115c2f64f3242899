"""The papers' networks, by name. One file a family; each says what it is, where it is from and how it starts.

conv-4-16 and resnet-20-8 are narrow relatives for small experiments; their last number is the first layer's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ticketry.errors import TaskError
from ticketry.tasks.models.conv import Conv4
from ticketry.tasks.models.lenet import LeNet5, LeNet300100
from ticketry.tasks.models.resnet import ResNet
from ticketry.tasks.models.vgg import VGG16


@dataclass(frozen=True)
class _Network:
    make: Callable[[tuple[int, int, int], int], nn.Module]
    smallest: int
    """Height and width, in pixels, below which nothing is left after its convolutions and poolings."""


_NETWORKS = {
    "lenet-300-100": _Network(LeNet300100, 1),
    "lenet-5": _Network(LeNet5, 16),
    "conv-4": _Network(partial(Conv4, widths=(64, 128)), 4),
    "conv-4-16": _Network(partial(Conv4, widths=(16, 32)), 4),
    "resnet-20": _Network(partial(ResNet, depth=20, width=16), 4),
    "resnet-20-8": _Network(partial(ResNet, depth=20, width=8), 4),
    "vgg-16": _Network(VGG16, 16),
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
