"""Pruning once, at a step of a training that goes on afterwards: what several searches share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ticketry.lab.found import GRADUAL, Found, Moment, Seeds
from ticketry.search._budget import stretched
from ticketry.search._pattern import pattern_in
from ticketry.search._scope import is_structured, pruned
from ticketry.search._structure import given, structuring_in

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.search._scope import Budgeting, Pruning


def pruned_once(
    lab: Lab,
    whole: Segment,
    scope: Scope,
    steps: Mapping[float, int],
    settings: Pruning,
    seeds: Seeds,
    *,
    moments: Mapping[float, Moment] | None = None,
    **cuts: Any,
) -> Iterator[Found]:
    """The dense network `whole`, then for each density one that is pruned at its step and trained on, state and all.

    Args:
        steps: density -> the step at which it is cut, the densest first.
        moments: density -> how that step was found, if it was.
        cuts: how a mask is made, besides what the settings say, see `Lab.prune`.
    """
    dense = lab.train(whole, keep=tuple(sorted(set(steps.values()))), label="dense")
    yield Found(0, None, lab.at(dense, max(steps.values())), dense, GRADUAL, dense)

    def member(level: int, density: float) -> Found:
        state, by, how = lab.at(dense, steps[density]), structuring_in(settings), None
        mask = pruned(lab, whole.task, state, scope, None, density, settings, seeds, **cuts)
        if by is not None:
            mask, how = given(lab, whole.task, state, mask, by, seeds)
        found = trained_on(lab, dense, state, mask, settings, level=level, density=density)
        return replace(found, moment=(moments or {}).get(density), structured=how)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(steps, start=1)])


def trained_on(
    lab: Lab,
    dense: Result,
    state: Result,
    mask: str,
    settings: Budgeting,
    *,
    level: int,
    density: float,
    searched: Result | None = None,
) -> Found:
    """What becomes of a state that is cut by a mask: it trains on, optimiser's state and all, to the schedule's end.

    Args:
        dense: the dense network to compare with, of the same schedule and the same order of the data.
        searched: the training that the mask is from, if the weights of `state` are no longer its.
    """
    from ticketry.lab.retrain import retraining

    whole, step, source = dense.segment, state.segment.last, searched or state
    by = structuring_in(settings)
    segment = retraining(
        lab,
        whole.task,
        whole.recipe,
        retrain=GRADUAL,
        mask=mask,
        rewound=state,
        trained=state,
        order_seed=whole.order_seed,
        shrunk=is_structured(settings) or (by is not None and by.whole_channels),
    )
    segment = stretched(lab, segment, [source], settings.budget)
    result = lab.train(segment, label=f"density {density:g} from step {step}")
    pattern = pattern_in(settings)
    return Found(level, mask, state, dense, GRADUAL, result, searched=(source,), behind=step, pattern=pattern)
