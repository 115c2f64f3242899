"""GraSP as its authors' code has it: the logits divided by 200."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._protocol import About, Loss, described
from ticketry.core.score.grasp import grasp
from ticketry_engine.support.entry_points import CHANGES, entry_point


@described(About(paper="Wang et al. 2020 (code)", data="yes", order=2, channels="summed", signed=True))
@entry_point(CHANGES)
def grasp200(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """`grasp` at temperature 200, as in the authors' published code; needs data. For classifiers.

    Wang, Zhang & Grosse (2020, arXiv 2002.07376). A name of its own, so that a command can ask for it; arguments and
    errors are those of `grasp`.

    Args:
        model: whose weights are scored; it is afterwards as it was.
        scope: the parameters to score.
        batches: of training data; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: of what the model draws (dropout is off).
        norms: see `ticketry.score`.
        at: see `ticketry.score`.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> mask = tk.prune(model, 0.5, score="grasp200", batches=batches, loss=loss)
        >>> mask.kept
        6
    """
    return grasp(model, scope, batches=batches, loss=loss, seed=seed, norms=norms, at=at, temperature=200.0)
