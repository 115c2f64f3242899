"""Score by the change of the loss without a weight, to second order, by K-FAC's approximation of the Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ticketry.core.example_call import without_parameter_gradients
from ticketry.core.mask import Mask
from ticketry.core.output_change import (
    add_output_gradients,
    is_linear_or_convolution,
    record_calls,
    squared_output_change,
)
from ticketry.core.scope import Scope
from ticketry.core.score.measurement import (
    average_over_processes,
    batch_loss,
    call_loss,
    check_loss,
    check_scores,
    no_batch_error,
    prepare_for_measurement,
    require_data,
)
from ticketry.core.score.protocol import About, Loss, described
from ticketry_engine.support.entry_points import CHANGES, entry_point


@described(About(paper="Martens & Grosse 2015", data="yes", order=1, channels="summed"))
@entry_point(CHANGES)
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
    """Score each weight by w^2 / 2 * E[x^2] * E[g^2], where x is its input and g its output's gradient; needs data.

    E[x^2] * E[g^2] is the diagonal of the empirical Fisher information if inputs and gradients are uncorrelated:
    Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature" (ICML 2015, arXiv
    1503.05671). For convolutions, Grosse & Martens (ICML 2016, arXiv 1602.01407) also assume that positions are
    uncorrelated. The score uses each example of a batch separately, so it is less noisy than `fisher`. The score of
    several weights is the sum of their scores, and layers are comparable; ``structure="auto"`` is based on it. It is
    computed in float64.

    The formula applies to weights of linear layers, attention and convolutions. Any other weight (of recurrent layers,
    embeddings, norms, computed weights) gets w^2 / 2 * size * g^2, where g is the weight's gradient of the mean loss of
    a batch of `size` examples. This has the same expectation, because gradients of different examples cancel.

    Args:
        model: the model whose weights are scored; it is restored afterwards.
        scope: the parameters to score.
        batches: batches of training data, of equal size; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: seed of random numbers that the model draws (dropout is off).
        norms: see `ticketry.score`; by default ``running``, so that examples do not influence one another.
        at: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.kfac(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2.0000, 4.5000]], dtype=torch.float64)}
    """
    batches, loss = require_data("kfac", batches, loss)
    with (
        prepare_for_measurement(model, scope, norms=norms, at=at, seed=seed) as weights,
        without_parameter_gradients(model),
    ):
        scores = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        count, others = 0, set[str]()
        for count, batch in enumerate(batches, start=1):
            with record_calls(model, weights, others) as calls:
                value = call_loss(loss, model, batch)
                others |= set(_find_without_product(model, weights, calls))
                known = {name: made for name, made in calls.items() if name not in others}
                check_loss(value, count, reached=not others)
                if value.requires_grad and any(known.values()):
                    add_output_gradients(value.reshape(()), known)
                size = max((call.examples for made in calls.values() for call in made), default=0) or 1
            found = {name: squared_output_change(weights[name], made) for name, made in known.items()}
            theirs = {name: weight for name, weight in weights.items() if name in others}
            found |= _batch_gradient_squares(model, theirs, batch, loss, count)
            for name, values in found.items():  # g of the mean loss is that of one example / size
                scores[name] += values.to(scores[name].device) * (size / 2)
        if not count:
            raise no_batch_error()
        mean = average_over_processes(model, weights, {name: values / count for name, values in scores.items()})
    return check_scores("kfac", mean)


def _batch_gradient_squares(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batch: object, loss: Loss, count: int
) -> dict[str, Tensor]:
    """Return (weight * gradient of the batch's loss)^2 for each parameter, by name.

    `count` is the number of the batch in error messages.
    """
    if not weights:
        return {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        value = batch_loss(model, batch, loss, count)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    found = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        own = torch.zeros_like(weight) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        found[name] = (weight.detach().double() * own.double()).square()
    return found


def _find_without_product(
    model: nn.Module, weights: Mapping[str, nn.Parameter], calls: Mapping[str, Sequence[object]]
) -> list[str]:
    """Return the weights whose product with an input was not recorded; leave out layers that the model never calls."""
    layers = {id(module._parameters.get("weight")) for module in model.modules() if is_linear_or_convolution(module)}
    return [name for name, weight in weights.items() if not calls[name] and id(weight) not in layers]
