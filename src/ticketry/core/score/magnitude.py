"""Magnitude of the weights (Han et al. 2015; the score of the lottery ticket papers)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.computed_weights import weights_in_use
from ticketry.core.scope import Scope
from ticketry.core.score._protocol import About, described
from ticketry_engine.support.entry_points import Need, entry_point


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
    """|w| of every weight in scope, of a computed one (weight_norm, …) as the layer uses it; needs no data.

    Args:
        model: whose weights are scored.
        scope: the parameters to score.
        batches: has no use, like ``loss`` and ``seed``: scores have one form.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> tk.score.magnitude(model, tk.scope(model))
        {'weight': tensor([[2., 3.]])}
    """
    return {name: weight.abs() for name, weight in weights_in_use(model, scope.parameters(model)).items()}
