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
        >>> tk.score.snip(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return (weight * gradient).abs()
