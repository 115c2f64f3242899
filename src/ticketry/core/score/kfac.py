"""Second-order change of the loss by the diagonal of K-FAC's approximation of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ticketry.core.costs.layer_gradients import add_gradients, has_factors, squares, watched
from ticketry.core.example_call import frozen_parameters
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._measure import batch_loss, checked, given, mean_of_all, measuring, no_batch
from ticketry.core.score._protocol import About, Loss, described
from ticketry.errors import UsageError


@described(About(paper="Martens & Grosse 2015", data="yes", order=1, channels="summed"))
def kfac(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "running",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """w^2 / 2 * E[x^2] * E[g^2], of each weight's input x and the loss's gradient g at its output; needs data.

    The diagonal of the empirical Fisher information where inputs and gradients are uncorrelated: Martens & Grosse,
    "Optimizing neural networks with Kronecker-factored approximate curvature" (ICML 2015, arXiv 1503.05671), of
    convolutions Grosse & Martens (ICML 2016, arXiv 1602.01407), whose places count as uncorrelated too. Unlike `fisher`
    it tells examples of a batch apart, and so is less noisy of as many examples. It can be added up over weights and
    compared between layers: what ``structure="auto"`` goes by. Float64; of weights of linear layers, attention and
    convolutions.

    Args:
        model: whose weights are scored; it is afterwards as it was.
        scope: the parameters to score.
        batches: of training data, of equal size; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: of what the model draws (dropout is off).
        norms: see `ticketry.score`; running by default, so that examples do not depend on one another.
        at: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss, for a parameter that is no weight of a linear layer or a convolution, or
            for one that the model uses in another way than by calling that layer or torch's `linear`.
        ScoreError: if all scores are 0 or one is not finite.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.kfac(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2.0000, 4.5000]], dtype=torch.float64)}
    """
    batches, loss = given("kfac", batches, loss)
    _refuse(_of_other_layers(model, scope))
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights, frozen_parameters(model):
        scores = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        count = 0
        for count, batch in enumerate(batches, start=1):
            with watched(model, weights) as calls:
                value = batch_loss(model, batch, loss, count)
                _refuse(_unused(model, weights, calls))
                add_gradients(value, calls)
                size = max((call.examples for made in calls.values() for call in made), default=0) or 1
            for name, made in calls.items():
                found = squares(weights[name], made) * (size / 2)  # g of the mean loss is that of one example / size
                scores[name] += found.to(scores[name].device)
        if not count:
            raise no_batch()
        mean = mean_of_all(model, weights, {name: values / count for name, values in scores.items()})
    return checked("kfac", mean)


_OTHERS = (nn.RNNBase, nn.RNNCellBase)
"""Layers whose weights are known to have no such score before anything is computed."""


def _of_other_layers(model: nn.Module, scope: Scope) -> list[str]:
    theirs = {id(own) for module in model.modules() if isinstance(module, _OTHERS) for own in module.parameters(False)}
    return [name for name, weight in scope.parameters(model).items() if id(weight) in theirs]


def _unused(model: nn.Module, weights: Mapping[str, nn.Parameter], calls: Mapping[str, Sequence[object]]) -> list[str]:
    """Weights that no product was seen of; those of layers that have a score are not used, and worth nothing."""
    layers = {id(module._parameters.get("weight")) for module in model.modules() if has_factors(module)}
    return [name for name, weight in weights.items() if not calls[name] and id(weight) not in layers]


def _refuse(others: list[str]) -> None:
    if others:
        raise UsageError(
            f"score 'kfac' is of weights of linear layers and convolutions, not of"
            f" {', '.join(others)}: spare that in the scope, or take fisher"
        )
