"""Pruning once, at a step of a training that goes on afterwards: what several searches share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ticketry.errors import UsageError
from ticketry.lab.search_result import GRADUAL, Found
from ticketry.records.network import Moment
from ticketry.search.common.aims import goal, terms_of
from ticketry.search.common.budget import Budgeted, stretched
from ticketry.search.common.scope import pattern_in, pruned, shrinks
from ticketry.search.common.structure import given

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.common.densities import WeightSettings
    from ticketry.search.common.method import Replicate


@dataclass(frozen=True, kw_only=True)
class CutAt:
    """The step at which a network is cut that is trained in the method's own way before, and as usual afterwards."""

    until: str = "50%"
    """The step up to which the network is trained with gates or a penalty, and at which it is cut."""

    points: ClassVar[tuple[str, ...]] = ("until",)

    def cut_step(self, whole: Segment, what: str, them: str) -> int:
        """The step up to which `what` holds, called `them`; `UsageError` if nothing is trained before or after."""
        step = whole.at(self.until, "until")
        if not 0 < step < whole.total:
            raise UsageError(
                f"{what} until {self.until}, step {step} of {whole.total}: there must be steps with {them}, and steps"
                f" after {them} to train what is left"
            )
        return step


def pruned_once(
    replicate: Replicate,
    scope: Scope,
    steps: Mapping[float, int],
    settings: WeightSettings,
    *,
    moments: Mapping[float, Moment] | None = None,
    **cuts: Any,
) -> Iterator[Found]:
    """The dense network, then for each density one that is pruned at its step and trained on, state and all.

    Args:
        steps: density -> the step at which it is cut, the densest first.
        moments: density -> how that step was found, if it was.
        cuts: how a mask is made, besides what the settings say, see `Lab.prune`.

    Raises:
        UsageError: for a cut at the end of training, after which a network would stay as it was cut.
    """
    if (last := replicate.whole.total) in steps.values():
        raise UsageError(f"cut at step {last} of {last} nothing is left to train: cut earlier")
    found = replicate.dense(*sorted(set(steps.values())))
    yield found
    dense = found.dense

    def member(level: int, density: float) -> Found:
        state = replicate.lab.at(dense, steps[density])
        mask = pruned(replicate, state, scope, density, settings, **cuts)
        mask, how = given(replicate, state, mask, settings)
        found = trained_on(replicate, dense, state, mask, settings, level=level, density=density)
        return replace(found, moment=(moments or {}).get(density), structured=how)

    yield from replicate.side_by_side(member, steps)


def trained_on(
    replicate: Replicate,
    dense: Result,
    state: Result,
    mask: str,
    settings: Budgeted,
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
    step, source = state.segment.last, searched or state
    segment = replicate.retrained(mask, rewound=state, trained=state, shrunk=shrinks(settings))
    segment = stretched(replicate.lab, segment, [source], settings.budget)
    result = replicate.lab.train(segment, label=f"{goal(settings, density)} from step {step}")
    pattern = pattern_in(settings)
    return Found(
        *(level, mask, state, dense, GRADUAL, result),
        searched=(source,),
        behind=step,
        pattern=pattern,
        aim=terms_of(settings),
    )
