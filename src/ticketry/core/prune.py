"""Score, then allocate: a mask in one call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ticketry.core.allocate import allocate
from ticketry.core.iterate import densities, measures_at_mask, scores_in
from ticketry.core.layout import layouts
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, get
from ticketry.core.score._measure import seeded
from ticketry.errors import UsageError


def prune(
    model: nn.Module,
    density: float | None = None,
    *,
    sparsity: float | None = None,
    score: str | Score = "magnitude",
    scope: Scope | None = None,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    keep_at_least: int = 0,
    pattern: str | Pattern = "unstructured",
    iterations: int = 1,
    schedule: str = "exponential",
    regrow: bool = False,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Mask:
    """The mask that keeps a share `density` of the weights of `model`, chosen by `score`.

    The model itself is not changed: see `Mask.apply_` and `hold`.

    Args:
        density: share of the scope that is kept, 0 < density <= 1, met to the element (with a pattern of blocks, as
            closely as whole ones permit; with N:M at most N/M, which it is if left out).
        sparsity: share removed, instead of density.
        score: a name of `ticketry.score`, or a function of that form.
        scope: the parameters to choose among; by default `ticketry.scope(model)`, or those of `within`.
        distribution, within, half_rate, collapse, keep_at_least: see `allocate`. A score with the option `at` (those
            that need data, and synflow) measures the network that `within` leaves.
        pattern: what is kept or removed together: ``unstructured``, ``4x1``, ``16x1``, ``channel``, ``2:4`` …, see
            `core.pattern.Pattern`. Blocks are chosen by the mean score of their weights.
        iterations: cuts on the way, each by the scores of the network that the one before leaves, on the same batches.
        schedule: densities on the way, exponential or halving: see `iterate.densities`.
        regrow: whether weights removed on the way may return (FORCE; de Jorge et al. 2021), or only those still kept
            are candidates.
        batches, loss, seed: what the score needs, if it needs any. Several iterations, and scores with second
            derivatives, keep the batches in memory.

    Raises:
        UsageError: for a request that cannot be meant, or a score that lacks batches or loss. With N:M several
            iterations must begin at N/M or below.
        ScoreError: if the scores say nothing.
        LayerCollapseError: if a layer would be left empty, on the way or at the end.

        >>> mask = prune(model, density=0.1)                    # doctest: +SKIP
        >>> mask = prune(model, sparsity=0.95, score="random")  # doctest: +SKIP
        >>> mask = prune(model, density=0.25, pattern="4x1")    # doctest: +SKIP
        >>> mask = prune(model, 0.02, score="snip", batches=batches, loss=loss, iterations=5)  # doctest: +SKIP
    """
    if scope is None:
        everything = scope_of(model)
        scope = everything if within is None else Scope(within.shapes, everything.parameters_total)
    function = get(score)
    if regrow and not measures_at_mask(function):
        raise UsageError(
            "regrow needs a score that tells what removed weights would be worth, by the option `at`: such as snip,"
            " taylor, fisher, crop, grasp or synflow"
        )
    pattern = Pattern.parse(pattern)
    wanted = pattern.check_density(density, sparsity)
    initial = within.density if within is not None and iterations > 1 else 1.0
    if iterations > 1 and batches is not None:
        with seeded(seed, model):  # a loader that shuffles draws from the global generator
            batches = list(batches)
    mask = within
    for target in densities(wanted, iterations, schedule, initial=initial):
        # The first time, a score without `at` sees the model as the caller gave it.
        seen = None if mask is within and not measures_at_mask(function) else mask
        scores = scores_in(function, model, scope, seen, batches=batches, loss=loss, seed=seed)
        mask = allocate(
            scores,
            target,
            distribution=distribution,
            within=within if regrow else mask,
            half_rate=half_rate,
            collapse=collapse,
            keep_at_least=keep_at_least,
            pattern=pattern,
            layouts=None if pattern.unstructured else layouts(model, scope),
        )
    assert mask is not None
    return mask
