"""Networks by name: how they are made, and how many parameters they have.

mlp-WIDTH[-WIDTH …] is a perceptron of any widths, for images and for rows of numbers, which are taken as images of 1x1
pixels: see `mlp`. A dense network with as many weights as a ticket keeps is the plainest rival of a ticket: see
`narrower`.
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
    """The papers' networks at their own width, and those of installed packages.

    `build` knows NAME@W, mlp-WIDTH…, timm:NAME, torchvision:NAME and package.module:object too.
    """
    return NETWORKS.names()


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
        return other_libraries.build(parsed, shape=shape, classes=classes)
    network = _network(parsed, name)
    if not parsed.is_outside:
        return network.make(shape, classes, scale=parsed.scaled)
    try:
        return network.make(shape=shape, classes=classes, **({"scale": parsed.scaled} if network.scales else {}))
    except TicketryError:
        raise
    except Exception as error:  # another's network may fail in any way
        raise TaskError(
            f"the network {name} cannot be made for inputs of {shape} and {classes} classes: {type(error).__name__}:"
            f" {error}"
        ) from error


def check(name: str, *, shape: tuple[int, int, int]) -> None:
    """Raise what `build` would raise, without building anything; another library's network is tried on no data."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        other_libraries.check(parsed, shape=shape)
        return
    smallest = _network(parsed, name).smallest
    if min(shape[1:]) < smallest:
        raise TaskError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            "choose another network or task"
        )


def _network(parsed: NetworkName, name: str) -> Network:
    if widths := hidden_widths(parsed.base):
        return Network(partial(MLP, hidden=widths))
    if parsed.base not in NETWORKS.built_in and not parsed.is_outside:
        raise unknown_network_error(name)
    network = NETWORKS.get(parsed.base)
    if parsed.width != 1 and not network.scales:
        raise TaskError(f"{name}: {parsed.base} does not take `scale`, so that it has no other width: leave @ away")
    return network


def identity(name: str) -> dict[str, str]:
    """Return the part of a task's key that identifies its network: `model`, its canonical name; for another library's
    also `library`, such as "timm 1.0.31", whose version decides what the name means; for custom ones
    also `source`, the digest of its source.

    Raises:
        TaskError: for a name of no known form, or a library that cannot be imported.
        MissingExtraError: if the library is not installed.
    """
    parsed = NetworkName.parse(name)
    model = {"model": str(parsed)}
    if parsed.is_outside:
        return {**model, "source": digest_source(NETWORKS.find_target(parsed.base), _network(parsed, name).make)}
    return {**model, "library": other_libraries.version(parsed)} if parsed.library else model


GRID = 64
"""Widths are tried in steps of 1/64: for a layer of 64 filters or fewer every possible width is among them."""


def parameters(name: str, *, shape: tuple[int, int, int], classes: int) -> int:
    """The number of parameters of the network, which is not allocated and draws no random numbers.

    Raises:
        TaskError, MissingExtraError: as `models.build`.
    """
    return _count(NetworkName.parse(name), shape, classes)


def narrower(name: str, *, shape: tuple[int, int, int], classes: int, parameters: int) -> str | None:
    """The widest form of the network, no wider than it is, that has at most so many parameters.

    Args:
        name: one of the papers' networks, at any width.
        shape: of its inputs: channels, height, width.
        classes: of its output.
        parameters: the most that it may have.

    Returns:
        `name` itself if it is small enough; or NAME@W with a W that is a multiple of 1/64; or None if even the
        narrowest of these is too large.

    Raises:
        TaskError: as `models.build`; and for another library's network, whose width cannot be chosen.
    """
    parsed = NetworkName.parse(name)
    if parsed.library:
        raise TaskError(
            f"{name}: the width of {parsed.library}'s networks cannot be chosen: name one of this package's"
        )

    return widest(parsed, lambda candidate: _count(candidate, shape, classes), parameters)


def rival(name: str, *, shape: tuple[int, int, int], classes: int, parameters: int) -> str | None:
    """Return `narrower` for a network of another library; None if its width cannot be chosen."""
    parsed = NetworkName.parse(name)
    if parsed.library or not _network(parsed, name).scales:
        return None
    return narrower(name, shape=shape, classes=classes, parameters=parameters)


def widest(name: NetworkName, count: Callable[[NetworkName], int], parameters: int) -> str | None:
    """The widest form of a network that has at most so many parameters; see `narrower` for what it returns.

    Args:
        count: how many parameters the network of a name has, its own or with another width.
    """

    def fits(width: Fraction) -> bool:
        return count(NetworkName(name.base, width)) <= parameters

    if fits(name.width):
        return str(name)
    # A network never has fewer parameters than a narrower one: bisection finds the last width that fits.
    few, many = 0, ceil(name.width * GRID)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(Fraction(middle, GRID)) else (few, middle)
    return str(NetworkName(name.base, Fraction(few, GRID))) if few else None


def _count(name: NetworkName, shape: tuple[int, int, int], classes: int) -> int:
    if name.library:
        return other_libraries.parameters(name, shape=shape, classes=classes)
    with torch.device("meta"):
        model = build(str(name), shape=shape, classes=classes)
    return sum(parameter.numel() for parameter in model.parameters())
