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
        ScoreError: if all scores are 0 or one is not finite; if an operation has no second derivative.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 1): Hg = (-2, -2)
        >>> tk.score.crop(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=half_square)
        {'weight': tensor([[4., 6.]])}
    """
    return (weight * product).abs()
