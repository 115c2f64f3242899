"""How many parameters a network has, and how narrow it must be to have no more than a given number.

A dense network with as many weights as a ticket keeps is the plainest rival of a ticket.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil

import torch

from ticketry.errors import TaskError
from ticketry.tasks.models import networks, zoo
from ticketry.tasks.network_name import NetworkName

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
        return zoo.parameters(name, shape=shape, classes=classes)
    with torch.device("meta"):
        model = networks.build(str(name), shape=shape, classes=classes)
    return sum(parameter.numel() for parameter in model.parameters())
