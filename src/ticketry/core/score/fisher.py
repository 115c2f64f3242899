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
        >>> tk.score.fisher(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2.0000, 4.5000]])}
    """
    return weight**2 / 2 * square
