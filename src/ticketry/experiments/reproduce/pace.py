"""How fast a task is trained on this machine now, by a few seconds of training in a store that is thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.seeds import generator
from ticketry.experiments.reproduce.work import dense
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Segment

_WARM, _FEWEST, _MOST = 3, 4, 1000
"""Steps that are trained before those that are timed; of these the fewest and the most."""
_LONG_ENOUGH = 2.0
"""Seconds after which no more steps are timed, and that an evaluation may take to be timed: a few milliseconds are no
measure where others compute too."""
_FORWARD = 1 / 3
"""What the forward pass takes of a step."""

Elsewhere = Callable[[Path], AbstractContextManager[Lab]]
"""Opens a lab like the campaign's over another folder."""


@dataclass(frozen=True)
class Pace:
    """How fast a task is trained."""

    step: float
    """Seconds."""
    training: float
    """Seconds of a training beside its steps: evaluation, reading, writing, getting sparse kernels ready."""
    masked_step: float | None = None
    """Seconds of a step of a network under a mask, where that trains in sparse kernels; None if as without a mask."""


def measured(
    lab: Lab, request: SearchRequest, kernels: str, density: float | None, elsewhere: Elsewhere | None
) -> Pace:
    """By the first steps of a dense training, and of one under a random mask where sparse kernels compute with those.

    What a store tells was trained some time ago, perhaps on another machine or beside other work: so steps are always
    trained anew.

    Args:
        kernels: that the campaign's run is trained in: auto, dense or sparse.
        density: of the mask; None where it is not known.
        elsewhere: None where workers are on other machines, whose steps cannot be timed here: then the lab itself
            trains the first steps of the dense network.
    """
    if elsewhere is None:
        with lab.training_in(kernels):
            return Pace(*_timed(lab, dense(lab, request)))
    with (
        tempfile.TemporaryDirectory(prefix="ticketry-pace-") as folder,
        elsewhere(Path(folder)) as other,
        other.training_in(kernels),
    ):
        whole = dense(other, request)
        step, training = _timed(other, whole)
        masked = None if density is None else _masked(other, request, whole, density)
        if masked is None:
            return Pace(step, training)
        masked_step, masked_training = _timed(other, masked)
        return Pace(step, max(training, masked_training), masked_step)


def _masked(lab: Lab, request: SearchRequest, whole: Segment, density: float) -> Segment | None:
    """The same training under a random mask, if it is in other kernels."""
    drawn, whole_mask = generator("pace"), Mask.ones(scope(lab.model(request.task)))
    mask = Mask({name: torch.rand(kept.shape, generator=drawn) < density for name, kept in whole_mask.items()})
    seed = request.seeds.initialisation
    found = lab.segment(request.task, start=seed, order_seed=whole.order_seed, recipe=request.recipe, mask=mask)
    return found if found.arithmetic.kernels != whole.arithmetic.kernels else None


def _timed(lab: Lab, whole: Segment) -> tuple[float, float]:
    """Seconds of a step, and of a training beside its steps.

    Pieces of the training are timed, each twice as long as the one before. What every piece takes once (kernels that
    are got ready) is the same in all of them: so the difference of two tells what steps take.
    """
    at = min(_WARM, whole.last - 1)
    seconds, beside = _piece(lab, whole, at, 0.0), 0.0  # starts processes and reads the data, too
    pieces: list[tuple[int, float]] = []
    while at < whole.last and sum(took for _, took in pieces) < _LONG_ENOUGH and sum(n for n, _ in pieces) < _MOST:
        then = min(at + max(_FEWEST, sum(count for count, _ in pieces)), whole.last)
        begun = time.monotonic()
        took = _piece(lab, whole, then, seconds)
        beside = max(time.monotonic() - begun - took, 0.0)
        pieces.append((then - at, took))
        seconds, at = seconds + took, then
    step, once = _by_pieces(pieces)
    examples = sum(lab.sizes(whole.task)[split] for split in ("validation", "test"))
    evaluation = _FORWARD * step * examples / whole.recipe.batch
    if evaluation < _LONG_ENOUGH:
        begun = time.monotonic()
        lab.train(whole.until(at), label="to measure a step")
        return step, once + time.monotonic() - begun
    return step, once + beside + evaluation


def _piece(lab: Lab, whole: Segment, step: int, before: float) -> float:
    """Seconds of the training up to a step, without those before."""
    return lab.train(whole.until(step), label="to measure a step", measure=False).train_seconds - before


def _by_pieces(pieces: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a step, and of what each piece takes once."""
    (few, short), (many, long) = pieces[0], pieces[-1]
    each = max(long, 1e-4) / max(many, 1)
    if many <= few:
        return each, 0.0
    # At least a third of it is steps: times of others' work would make more of them, or less than none.
    step = min(max((long - short) / (many - few), each / 3), each)
    return step, max(long - many * step, 0.0)
