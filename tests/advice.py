"""Messages that say what to do, and calls that do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ticketry.errors import TicketryError

Call = Callable[[], Any]


class Advice:
    """A call that is refused, the advice in its message, and calls that follow it, one for each way it names."""

    def __init__(self, text: str, refused: Call, *follow: Call) -> None:
        self.text, self.refused, self.follow = text, refused, follow


def check(case: Advice) -> None:
    """Require that the message has the advice, and that every way to follow it works."""
    torch.manual_seed(0)
    with pytest.raises(TicketryError) as found:
        case.refused()
    assert case.text in str(found.value)
    assert case.follow
    for call in case.follow:
        call()


def net() -> nn.Sequential:
    """Two linear layers, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def convolutions() -> nn.Sequential:
    """A convolution with a norm and two linear layers; its channels can be removed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = (nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 8))
        return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *head).eval()


def x() -> Tensor:
    """Inputs of `net`."""
    return torch.randn(4, 8)


def images() -> Tensor:
    """Inputs of `convolutions`."""
    return torch.randn(2, 2, 4, 4)


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Two batches of inputs and classes for `net`."""
    return [(x(), torch.arange(4)) for _ in range(2)]


def loss(model: nn.Module, batch: Any) -> Tensor:
    """The mean cross-entropy of a batch of `pairs`."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
