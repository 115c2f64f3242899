"""Scores without data: weight magnitudes (Han et al. 2015) and random numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.computed_weights import effective_weights
from ticketry.core.scope import Scope
from ticketry.core.score.protocol import About, described
from ticketry_engine.support.entry_points import BY_NAME, Need, entry_point
from ticketry_engine.support.seeds import generator


@described(About(paper="Han et al. 2015", data="no", order=0, channels="l1, l2"))
@entry_point(Need(python=False, floats=False))
def magnitude(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: object = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score each weight by |w|; a computed weight (weight_norm, …) by the value that the layer uses; needs no data.

    Args:
        model: the model whose weights are scored.
        scope: the parameters to score.
        batches, loss, seed: ignored; all scores have the same signature.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> tk.score.magnitude(model, tk.scope(model))
        {'weight': tensor([[2., 3.]])}
    """
    return {name: weight.abs() for name, weight in effective_weights(model, scope.parameters(model)).items()}


@described(About(paper="a control", data="no", order=0, channels="summed"))
@entry_point(BY_NAME)
def random(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: object = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score weights by uniform random numbers in [0, 1), which depend only on the seed and the tensor's index.

    The numbers are float64, so that ties are rare.

    Args:
        model: the model whose weights are scored.
        scope: the parameters to score.
        batches, loss: ignored; all scores have the same signature.
        seed: seed of the random numbers.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> one, again = (tk.score.random(model, tk.scope(model), seed=1)["weight"] for _ in range(2))
        >>> one.shape, one.dtype, torch.equal(one, again)
        (torch.Size([2, 4]), torch.float64, True)
    """
    return {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random", index))
        for index, (name, shape) in enumerate(scope.shapes.items())
    }
