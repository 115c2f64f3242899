"""First-order Taylor expansion of the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._gradients import average, checked, given
from ticketry.core.score._measure import measuring
from ticketry.core.score._protocol import About, Loss

ABOUT = About(paper="Molchanov et al. 2019", data="yes", order=1, channels="taylor")


def taylor(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """Mean over the batches of |w * dL/dw|, the first-order change of the loss without w (Taylor); needs data.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference" (2017, arXiv 1611.06440),
    for single weights in place of feature maps. The absolute value is taken of each batch, so that changes
    of opposite sign do not cancel as they do in `snip`; with one batch the two are the same.

    Args:
        norms, at: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite.
    """
    batches, loss = given("taylor", batches, loss)
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights:
        size = average(model, weights, batches, loss, of=torch.abs)
    return checked("taylor", {name: weight.detach().abs() * size[name] for name, weight in weights.items()})
