"""First-order Taylor expansion of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.core.score._formula import of_gradients
from ticketry.core.score._protocol import About


@of_gradients(About(paper="Molchanov et al. 2019", data="yes", order=1, channels="taylor"), torch.abs)
def taylor(weight: Tensor, size: Tensor) -> Tensor:
    """Mean over the batches of |w * dL/dw|, the first-order change of the loss without w (Taylor); needs data.

    Molchanov et al., "Pruning convolutional neural networks for resource efficient inference" (2017, arXiv 1611.06440),
    for single weights in place of feature maps. The absolute value is taken of each batch, so that changes
    of opposite sign do not cancel as they do in `snip`; with one batch the two are the same.
    """
    return weight.abs() * size
