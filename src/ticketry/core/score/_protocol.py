"""What a score is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from ticketry.core.scope import Scope


class Loss(Protocol):
    """The mean loss of a batch: ``loss(model, batch) -> scalar``."""

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


@dataclass(frozen=True)
class ScoreInputs:
    """What scores are measured on, where they need it; `vars` of it are the arguments of a score."""

    batches: Iterable[object] | None = None
    """Of training data."""
    loss: Loss | None = None
    seed: int = 0


@dataclass(frozen=True)
class About:
    """Facts of a score, for lists: see `described`."""

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


F = TypeVar("F", bound=Callable[..., dict[str, Tensor]])


def described(about: About) -> Callable[[F], F]:
    """A decorator that tells of a score what lists show of it."""

    def tell(score: F) -> F:
        setattr(score, ABOUT, about)
        return score

    return tell


ABOUT = "about"
"""The attribute of a score that holds its facts."""
