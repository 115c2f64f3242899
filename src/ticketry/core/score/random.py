"""Random scores: the control that every other score must beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score._protocol import About, described
from ticketry_engine.support.entry_points import BY_NAME, entry_point
from ticketry_engine.support.seeds import generator


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
    """Uniform numbers in [0, 1), a pure function of (seed, position of the tensor); float64, so that ties are rare.

    Args:
        model: of the parameters.
        scope: the parameters to score.
        batches: has no use, like ``loss``: scores have one form.
        seed: of the numbers.

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
