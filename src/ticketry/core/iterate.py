"""Iterated scores: cut a little, score what is left, cut again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ticketry.core.density import check_density
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.score import Loss, Score
from ticketry.core.score._measure import pruned_to
from ticketry.errors import UsageError

SCHEDULES = ("exponential", "halving")


def densities(density: float, steps: int, schedule: str = "exponential", *, initial: float = 1.0) -> tuple[float, ...]:
    """The density after each of `steps` cuts, from `initial` (not in the result) to `density` (its last).

    Args:
        schedule: ``exponential``: each cut keeps the same share, density^(k/steps) for k = 1 … steps (SynFlow: Tanaka
            et al. 2020; Iter-SNIP and FORCE: de Jorge et al. 2021). ``halving``: the first cut goes to a sparsity of
            0.5 (0.25 if the last is not above 0.5), then each halves the way to the last, k - (k - 0.5) * 0.5^i, where
            k is the sparsity wanted and i = 0 … steps - 2; the last cut is to k itself (published code of EarlyCroP,
            with 7 steps: Rachwan et al. 2022).

        >>> densities(0.01, 4)
        (0.316227766017, 0.1, 0.0316227766017, 0.01)
        >>> densities(0.1, 4, "halving")
        (0.5, 0.3, 0.2, 0.1)

    Raises:
        UsageError: for less than one step, an unknown schedule, or densities that are not 0 < density <= initial <= 1.
    """
    if steps < 1:
        raise UsageError(f"a score is iterated at least once, not {steps} times")
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule {schedule!r} is not known: {', '.join(SCHEDULES)}")
    if check_density(density) > check_density(initial):
        raise UsageError(f"density {density:g} is above the {initial:g} that pruning begins with: masks only shrink")
    share = density / initial
    if schedule == "exponential":
        shares = [share ** (step / steps) for step in range(1, steps)]
    else:
        first = 0.5 if share < 0.5 else 0.75
        shares = [share + max(first - share, 0) * 0.5**index for index in range(steps - 1)]
    return (*(float(f"{initial * each:.12g}") for each in shares), density)


def iterated(
    score: str | Score, steps: int = 100, schedule: str = "exponential", *, regrow: bool = False
) -> Callable[..., Mask]:
    """A score iterated, as a function of the model and the density: ``iterated(…)(model, density, …) -> Mask``.

    It takes what `prune` takes besides, and is `prune` with these iterations:

    ==================  ==============================================  ==========================
    SynFlow             ``iterated("synflow", 100)``                    Tanaka et al. 2020
    Iter-SNIP           ``iterated("snip", steps)``                     de Jorge et al. 2021
    FORCE               ``iterated("snip", steps, regrow=True)``        de Jorge et al. 2021
    CroPit, EarlyCroP   ``iterated("crop", 7, "halving")``              Rachwan et al. 2022
    ==================  ==============================================  ==========================
    """
    from ticketry.core.prune import prune

    return partial(prune, score=score, iterations=steps, schedule=schedule, regrow=regrow)


def measures_at_mask(score: Score) -> bool:
    """Whether a score takes the option `at`."""
    return "at" in inspect.signature(score).parameters


def scores_in(
    score: Score,
    model: nn.Module,
    scope: Scope,
    mask: Mask | None,
    *,
    batches: Iterable[object] | None,
    loss: Loss | None,
    seed: int,
) -> dict[str, Tensor]:
    """A score of the network that a mask leaves of `model`: by the option `at`, or else with weights set to 0."""
    given: dict[str, Any] = {"batches": batches, "loss": loss, "seed": seed}
    if mask is None:
        return score(model, scope, **given)
    if measures_at_mask(score):
        return score(model, scope, at=mask, **given)  # type: ignore[call-arg]
    with pruned_to(mask, scope.parameters(model)):
        return {name: values.clone() for name, values in score(model, scope, **given).items()}
