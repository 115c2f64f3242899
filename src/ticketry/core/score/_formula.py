"""Scores that are a formula of each weight and of what its gradients say: the formula is all that their files have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score._measure import average, checked, given, hessian_gradient, measuring
from ticketry.core.score._protocol import ABOUT, About, Loss

Formula = Callable[[Tensor, Tensor], Tensor]
"""(weights of a parameter, what was measured of them) -> scores; all of one shape."""


class DataScore(Protocol):
    """A score that needs batches and a loss, with the options `norms` and `at`: see `ticketry.score`.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or one is not finite; of second derivatives, if an operation has none.
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

    >>> @of_gradients(About(paper="Lee et al. 2019"))
    ... def saliency(weight, gradient):
    ...     return (weight * gradient).abs()
    """
    return lambda formula: _score(
        formula, about, lambda model, weights, batches, loss, at: average(model, weights, batches, loss, each)
    )


def of_gradient_flow(about: About) -> Callable[[Formula], DataScore]:
    """Makes a score of a formula of w and Hg, g and H being of the mean loss over the batches: `hessian_gradient`."""
    return lambda formula: _score(formula, about, lambda *measured: hessian_gradient(formula.__name__, *measured))


def _score(formula: Formula, about: About, measure: Callable[..., dict[str, Tensor]]) -> DataScore:
    name = formula.__name__

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
        return checked(name, {key: formula(weight.detach(), measured[key]) for key, weight in weights.items()})

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):  # and not the formula's signature
        setattr(score, attribute, getattr(formula, attribute))
    setattr(score, ABOUT, about)
    return score
