"""Gradient signal preservation (GraSP)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._measure import checked, given, hessian_gradient, measuring
from ticketry.core.score._protocol import About, Loss, described
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point


@described(About(paper="Wang et al. 2020", data="yes", order=2, channels="summed", signed=True))
@entry_point(CHANGES)
def grasp(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """w * Hg, with its sign: kept is what the gradient flow would lose most by (GraSP); needs data.

    Wang, Zhang & Grosse, "Picking winning tickets before training by preserving gradient flow" (2020, arXiv
    2002.07376). There the weights with the largest -w * Hg are removed, so those with the largest w * Hg
    are kept here. The sign matters: code that keeps the largest -w * Hg, or takes absolute values (`crop`), does
    something else.

    Args:
        norms, at: see `ticketry.score`.
        temperature: what the model's output (one tensor of logits) is divided by before the loss. The published code
            uses 200, which evens out the classes' probabilities: ``functools.partial(score.grasp, temperature=200)``.
        model: whose weights are scored; it is afterwards as it was.
        scope: the parameters to score.
        batches: of training data; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: of what the model draws (dropout is off).

    Raises:
        UsageError: without batches or loss; for a temperature that is not positive, or cannot be applied.
        ScoreError: if all scores are 0, one is not finite, or an operation has no second derivative.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 1): Hg = (-2, -2)
        >>> tk.score.grasp(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=half_square)
        {'weight': tensor([[-4.,  6.]])}
    """
    batches, loss = given("grasp", batches, loss)
    with measuring(model, scope, norms=norms, at=at, seed=seed) as weights, _tempered(model, temperature):
        product = hessian_gradient("grasp", model, weights, batches, loss, at)
    return checked("grasp", {name: weight.detach() * product[name] for name, weight in weights.items()})


@contextmanager
def _tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """The model's output divided by a temperature, wherever the loss calls the model."""
    if not 0 < temperature < inf:
        raise UsageError(f"a temperature is a positive number, not {temperature}")
    if temperature == 1:
        yield
        return
    divided = []

    def divide(_: nn.Module, __: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise UsageError(
                f"a temperature divides the tensor that a model returns, and {type(model).__name__} returns a"
                f" {type(output).__name__}: divide the logits in the loss instead"
            )
        divided.append(True)
        return output / temperature

    handle = model.register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
    if not divided:
        raise UsageError("the loss does not call the model it is given: divide the logits in the loss instead")
