"""Score, then allocate: a mask in one call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ticketry.core.allocate import allocate
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, get


def prune(
    model: nn.Module,
    density: float | None = None,
    *,
    sparsity: float | None = None,
    score: str | Score = "magnitude",
    scope: Scope | None = None,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Mask:
    """The mask that keeps a share `density` of the weights of `model`, chosen by `score`.

    The model itself is not changed: see `Mask.apply_` and `hold`.

    Args:
        density: share of the scope that is kept, 0 < density <= 1, met to the element.
        sparsity: share removed, instead of density.
        score: a name of `ticketry.score`, or a function of that form.
        scope: the parameters to choose among; by default `ticketry.scope(model)`, or those of `within`.
        distribution, within, half_rate, collapse: see `allocate`.
        batches, loss, seed: what the score needs, if it needs any.

        >>> mask = prune(model, density=0.1)                    # doctest: +SKIP
        >>> mask = prune(model, sparsity=0.95, score="random")  # doctest: +SKIP
    """
    if scope is None:
        everything = scope_of(model)
        scope = everything if within is None else Scope(within.shapes, everything.parameters_total)
    scores = get(score)(model, scope, batches=batches, loss=loss, seed=seed)
    return allocate(
        scores,
        density,
        sparsity=sparsity,
        distribution=distribution,
        within=within,
        half_rate=half_rate,
        collapse=collapse,
    )
