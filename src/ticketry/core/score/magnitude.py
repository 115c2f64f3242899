"""Magnitude of the weights (Han et al. 2015; the score of the lottery ticket papers)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score._protocol import About

ABOUT = About(paper="Han et al. 2015", data="no", order=0, channels="l1, l2")


def magnitude(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: object = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """|w| of every weight in scope; needs no data and nothing random."""
    return {name: parameter.detach().abs() for name, parameter in scope.parameters(model).items()}
