"""Keeping the gradient flow as it is (CroP)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._gradients import checked, given, hessian_gradient
from ticketry.core.score._measure import measuring
from ticketry.core.score._protocol import About, Loss

ABOUT = About(paper="Rachwan et al. 2022", data="yes", order=2, channels="crop_gates")


def crop(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """|w * Hg|: what leaves the gradient flow unchanged goes first (CroP); needs data.

    Rachwan et al., "Winning the lottery ahead of time: efficient early network pruning" (2022, arXiv 2206.10451). The
    gradient flow g'g changes by about -2 w * Hg without w. g and H are of the mean loss over all batches, and of the
    weights in scope. Iterated with the schedule ``halving`` it is CroPit, and EarlyCroP's saliency: see `prune`.

    Args:
        norms, at: see `ticketry.score`. The published code measures with ``norms="running"``.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0, one is not finite, or an operation has no second derivative.
    """
    batches, loss = given("crop", batches, loss)
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights:
        product = hessian_gradient("crop", model, weights, batches, loss, at)
    return checked("crop", {name: (weight.detach() * product[name]).abs() for name, weight in weights.items()})
