"""Scores that are a formula of each weight and of what its gradients say: the formula is all that their files have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._measure import average, checked, given, hessian_gradient, measuring
from ticketry.core.score._protocol import ABOUT, About, Loss
from ticketry_engine.support.entry_points import CHANGES, entry_point

Formula = Callable[[Tensor, Tensor], Tensor]
"""(weights of a parameter, what was measured of them) -> scores; all of one shape."""


class DataScore(Protocol):
    """A score that needs batches and a loss, with the options `norms` and `at`: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite; of second derivatives, if an operation has none.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> snip: tk.score.DataScore = tk.score.snip
        >>> batches, loss = [torch.ones(1, 2)], lambda model, batch: model(batch).sum()
        >>> snip(model, tk.scope(model), batches=batches, loss=loss)["weight"]
        tensor([[2., 3.]])
        >>> snip(model, tk.scope(model))
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: score 'snip' needs batches and a loss: give batches= (of training data) and ...
    """

    __name__: str

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        norms: str = "batch",
        at: Mask | None = None,
    ) -> dict[str, Tensor]: ...


def of_gradients(
    about: About, each: Callable[[Tensor], Tensor] = lambda gradient: gradient
) -> Callable[[Formula], DataScore]:
    """Makes a score of a formula of w and g, where g is the mean over the batches of ``each(dL/dw)``.

    Args:
        about: facts for lists, see `described`.
        each: what is done to the gradient of each batch before they are averaged, such as `torch.square`.

    Examples:
        >>> @tk.score.of_gradients(tk.score.About(paper="Lee et al. 2019", data="yes", order=1))
        ... def saliency(weight, gradient):
        ...     return (weight * gradient).abs()
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> saliency(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return lambda formula: _score(
        formula, about, lambda model, weights, batches, loss, at: average(model, weights, batches, loss, each)
    )


def of_gradient_flow(about: About) -> Callable[[Formula], DataScore]:
    """Makes a score of a formula of w and Hg, g and H being of the mean loss over the batches: `hessian_gradient`.

    Args:
        about: facts for lists, see `described`.

    Examples:
        >>> @tk.score.of_gradient_flow(tk.score.About(paper="ours", data="yes", order=2))
        ... def flow(weight, flow):
        ...     return (weight * flow).abs()
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 0): Hg = (1, 0)
        >>> flow(model, tk.scope(model), batches=[torch.tensor([[1.0, 0.0]])], loss=half_square)
        {'weight': tensor([[1., 0.]])}
    """
    return lambda formula: _score(formula, about, lambda *measured: hessian_gradient(formula.__name__, *measured))


def _score(formula: Formula, about: About, measure: Callable[..., dict[str, Tensor]]) -> DataScore:
    name = formula.__name__

    @entry_point(CHANGES)
    def score(
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        norms: str = "batch",
        at: Mask | None = None,
    ) -> dict[str, Tensor]:
        batches, loss = given(name, batches, loss)
        with measuring(model, scope, norms=norms, at=at, seed=seed) as weights:
            measured = measure(model, weights, batches, loss, at)
            wide = {key: weight.detach().to(measured[key].dtype) for key, weight in weights.items()}
        return checked(name, {key: formula(wide[key], measured[key]) for key in weights})

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):  # and not the formula's signature
        setattr(score, attribute, getattr(formula, attribute))
    setattr(score, ABOUT, about)
    return score
