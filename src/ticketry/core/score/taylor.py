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

    Args:
        model: whose weights are scored; it is afterwards as it was.
        scope: the parameters to score.
        batches: of training data; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: of what the model draws (dropout is off).
        norms: see `ticketry.score`.
        at: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.taylor(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return weight.abs() * size
