"""Connection sensitivity (SNIP)."""

from __future__ import annotations

from torch import Tensor

from ticketry.core.score._formula import of_gradients
from ticketry.core.score._protocol import About


@of_gradients(About(paper="Lee et al. 2019", data="yes", order=1, channels="snap"))
def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w * dL/dw|, of the loss averaged over the batches (SNIP); needs data.

    Lee, Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (2019, arXiv 1810.02340),
    without its normalisation by the sum, which changes no order. Iterated, it is Iter-SNIP and FORCE: see `prune`.
    """
    return (weight * gradient).abs()
