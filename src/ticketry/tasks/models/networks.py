"""Build networks by name, and count their parameters.

The name mlp-WIDTH[-WIDTH …] means a perceptron (`MLP`) of any widths, for images and for rows of numbers, which count
as images of 1x1 pixels. `narrower` finds a dense network with as many parameters as a ticket, a baseline for the
ticket.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import ceil

import torch
from torch import nn

from ticketry.errors import TaskError, TicketryError
from ticketry.registry import digest_source
from ticketry.tasks.models import other_libraries
from ticketry.tasks.models.image_models import MLP, Network, hidden_widths
from ticketry.tasks.network_name import NETWORKS, NetworkName, unknown_network_error


def names() -> tuple[str, ...]:
    """Return the names of all registered networks: those of this package and of installed plugins.

    `build` also accepts NAME@W, mlp-WIDTH…, timm:NAME, torchvision:NAME and package.module:object.
    """
    return NETWORKS.names()


def build(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a new network for inputs of `shape`, with weights drawn from torch's global random state.

    The network maps float32 [n, *shape], where `shape` is (channels, height, width), to logits [n, classes].

    Raises:
        TaskError: for an unknown network, a width that is not in (0, 4], or a shape that the network does not take.
        MissingExtraError: if the library that defines the network is not installed.
    """
    check(name, shape=shape)
    parsed = NetworkName.parse(name)
    if parsed.library:
        return other_libraries.build(parsed, shape=shape, classes=classes)
    network = _find_network(parsed, name)
    if not parsed.is_outside:
        return network.make(shape, classes, scale=parsed.scaled)
    try:
        return network.make(shape=shape, classes=classes, **({"scale": parsed.scaled} if network.scales else {}))
    except TicketryError:
        raise
    except Exception as error:  # a custom network may fail in any way
        raise TaskError(
            f"the network {name} cannot be made for inputs of {shape} and {classes} classes: {type(error).__name__}:"
            f" {error}"
        ) from error


def check(name: str, *, shape: tuple[int, int, int]) -> None:
    """Raise the errors that `build` would raise, without building the network.

    A network of timm or torchvision is built on the meta device, where it takes no memory."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        other_libraries.check(parsed, shape=shape)
        return
    smallest = _find_network(parsed, name).smallest
    if min(shape[1:]) < smallest:
        raise TaskError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            "choose another network or task"
        )


def _find_network(parsed: NetworkName, name: str) -> Network:
    if widths := hidden_widths(parsed.base):
        return Network(partial(MLP, hidden=widths))
    if parsed.base not in NETWORKS.built_in and not parsed.is_outside:
        raise unknown_network_error(name)
    network = NETWORKS.get(parsed.base)
    if parsed.width != 1 and not network.scales:
        raise TaskError(f"{name}: {parsed.base} does not take `scale`, so that it has no other width: leave @ away")
    return network


def identity(name: str) -> dict[str, str]:
    """Return the part of a task's key that identifies its network.

    The entry `model` is the canonical name. A network of timm or torchvision also has `library`, such as "timm 1.0.31",
    because the version decides what the name means. A custom network also has `source`, the digest of its source code.

    Raises:
        TaskError: for a name of unknown form, or a library that cannot be imported.
        MissingExtraError: if the library is not installed.
    """
    parsed = NetworkName.parse(name)
    model = {"model": str(parsed)}
    if parsed.is_outside:
        return {**model, "source": digest_source(NETWORKS.find_target(parsed.base), _find_network(parsed, name).make)}
    return {**model, "library": other_libraries.version(parsed)} if parsed.library else model


WIDTH_STEPS = 64
"""`widest` tries widths in steps of 1/64: these include every width of a layer of at most 64 filters."""


def parameters(name: str, *, shape: tuple[int, int, int], classes: int) -> int:
    """Return the number of parameters of the network, without allocating it or drawing random numbers.

    Raises:
        TaskError, MissingExtraError: as `models.build`.
    """
    return _count_parameters(NetworkName.parse(name), shape, classes)


def narrower(name: str, *, shape: tuple[int, int, int], classes: int, parameters: int) -> str | None:
    """Return the name of the widest network with at most `parameters` parameters: `name` or a narrower variant.

    Args:
        name: name of a network of this package, at any width.
        shape: channels, height and width of the inputs.
        classes: number of classes.
        parameters: the largest number of parameters allowed.

    Returns:
        `name` itself if the network is small enough; otherwise NAME@W, where W is a multiple of 1/64; or None if even
        the narrowest variant is too large.

    Raises:
        TaskError: as `models.build`; and for another library's network, whose width cannot be chosen.
    """
    parsed = NetworkName.parse(name)
    if parsed.library:
        raise TaskError(
            f"{name}: the width of {parsed.library}'s networks cannot be chosen: name one of this package's"
        )

    return widest(parsed, lambda candidate: _count_parameters(candidate, shape, classes), parameters)


def rival(name: str, *, shape: tuple[int, int, int], classes: int, parameters: int) -> str | None:
    """Return the result of `narrower` for the network `name`, or None if the width of the network cannot be chosen."""
    parsed = NetworkName.parse(name)
    if parsed.library or not _find_network(parsed, name).scales:
        return None
    return narrower(name, shape=shape, classes=classes, parameters=parameters)


def widest(name: NetworkName, count: Callable[[NetworkName], int], parameters: int) -> str | None:
    """Return the name of the widest network with at most `parameters` parameters, as `narrower` does.

    Args:
        name: parsed name of the network.
        count: function that returns the number of parameters of a named network.
        parameters: the largest number of parameters allowed.
    """

    def fits(width: Fraction) -> bool:
        return count(NetworkName(name.base, width)) <= parameters

    if fits(name.width):
        return str(name)
    # A network never has fewer parameters than a narrower one: bisection finds the last width that fits.
    few, many = 0, ceil(name.width * WIDTH_STEPS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(Fraction(middle, WIDTH_STEPS)) else (few, middle)
    return str(NetworkName(name.base, Fraction(few, WIDTH_STEPS))) if few else None


def _count_parameters(name: NetworkName, shape: tuple[int, int, int], classes: int) -> int:
    if name.library:
        return other_libraries.parameters(name, shape=shape, classes=classes)
    with torch.device("meta"):
        model = build(str(name), shape=shape, classes=classes)
    return sum(parameter.numel() for parameter in model.parameters())
