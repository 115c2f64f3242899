"""Second-order change of the loss by the diagonal of the Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.core.score._formula import of_gradients
from ticketry.core.score._protocol import About


@of_gradients(About(paper="Theis et al. 2018", data="yes", order=1, channels="summed"), torch.square)
def fisher(weight: Tensor, square: Tensor) -> Tensor:
    """w^2 / 2 * mean of (dL/dw)^2 over the batches (empirical Fisher); needs data.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018, arXiv 1801.05787), for
    single weights. The mean is over what is given as batches: with batches of one example, which need
    ``norms="running"``, it is the published form; the gradient of a larger batch is a mean already, whose square is
    smaller.
    """
    return weight**2 / 2 * square
