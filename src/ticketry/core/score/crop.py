"""Keeping the gradient flow as it is (CroP)."""

from __future__ import annotations

from torch import Tensor

from ticketry.core.score._formula import of_gradient_flow
from ticketry.core.score._protocol import About


@of_gradient_flow(About(paper="Rachwan et al. 2022", data="yes", order=2, channels="crop_gates"))
def crop(weight: Tensor, product: Tensor) -> Tensor:
    """|w * Hg|: what leaves the gradient flow unchanged goes first (CroP); needs data.

    Rachwan et al., "Winning the lottery ahead of time: efficient early network pruning" (2022, arXiv 2206.10451). The
    gradient flow g'g changes by about -2 w * Hg without w. g and H are of the mean loss over all batches, and of the
    weights in scope. Iterated with the schedule ``halving`` it is CroPit, and EarlyCroP's saliency: see `prune`. The
    published code measures with ``norms="running"``.
    """
    return (weight * product).abs()
