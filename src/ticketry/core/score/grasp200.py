"""GraSP as its authors' code has it: the logits divided by 200."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._protocol import About, Loss, described
from ticketry.core.score.grasp import grasp


@described(About(paper="Wang et al. 2020 (code)", data="yes", order=2, channels="summed"))
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
    """
    return grasp(model, scope, batches=batches, loss=loss, seed=seed, norms=norms, at=at, temperature=200.0)
