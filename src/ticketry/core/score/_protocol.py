"""What a score is, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from ticketry.core.scope import Scope


class Loss(Protocol):
    """The mean loss of a batch: ``loss(model, batch) -> scalar``."""

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


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
