"""Second-order change of the loss by the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._gradients import average, checked, given
from ticketry.core.score._measure import measuring
from ticketry.core.score._protocol import About, Loss

ABOUT = About(paper="Theis et al. 2018", data="yes", order=1, channels="summed")


def fisher(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """w^2 / 2 * mean of (dL/dw)^2 over the batches (empirical Fisher); needs data.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018, arXiv 1801.05787), for
    single weights. The mean is over what is given as batches: with batches of one example it is the published form;
    the gradient of a larger batch is a mean already, whose square is smaller.

    Args:
        norms, at: see `ticketry.score`. Batches of one example need ``norms="running"``.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite.
    """
    batches, loss = given("fisher", batches, loss)
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights:
        squares = average(model, weights, batches, loss, of=torch.square)
    return checked("fisher", {name: weight.detach() ** 2 / 2 * squares[name] for name, weight in weights.items()})
