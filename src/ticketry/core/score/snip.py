"""Connection sensitivity (SNIP)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._gradients import average, checked, given
from ticketry.core.score._measure import measuring
from ticketry.core.score._protocol import About, Loss

ABOUT = About(paper="Lee et al. 2019", data="yes", order=1, channels="snap")


def snip(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """|w * dL/dw|, of the loss averaged over the batches (SNIP); needs data.

    Lee, Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (2019, arXiv 1810.02340),
    without its normalisation by the sum, which changes no order. Iterated, it is Iter-SNIP and FORCE: see `prune`.

    Args:
        norms, at: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite.
    """
    batches, loss = given("snip", batches, loss)
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights:
        gradient = average(model, weights, batches, loss)
    return checked("snip", {name: (weight.detach() * gradient[name]).abs() for name, weight in weights.items()})
