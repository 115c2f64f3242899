"""What a score is, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ticketry.core.scope import Scope


class Loss(Protocol):
    """The mean loss of a batch: ``loss(model, batch) -> scalar``."""

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


@dataclass(frozen=True)
class About:
    """Facts of a score, for lists: the constant ``ABOUT`` of its file."""

    paper: str = "not said"
    """A short citation."""
    data: str = "not said"
    """What it looks at beside the weights: no, shapes (of the inputs) or yes (batches of examples)."""
    order: int | None = None
    """Of the highest derivative of the loss that it needs."""
    channels: str = "summed"
    """Its own form for whole channels, a word of `structure.channels`; others are summed over each channel."""


class Score(Protocol):
    """How much each weight is worth."""

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]: ...
