"""How much a run of a campaign trains, before any of it is trained."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.request import SearchRequest, planned_densities
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Segment
from ticketry.search.common.pruned_once import CutAt
from ticketry.search.common.structure import Restructuring
from ticketry.search.concrete import Settings as ConcreteSettings
from ticketry.search.concrete import mask_steps
from ticketry.search.gating.settings import CutGates, GateSettings
from ticketry.search.gradual import Settings as GradualSettings
from ticketry.search.gradual import schedules_in
from ticketry.search.iterative import Settings as IterativeSettings
from ticketry.search.iterative import level_densities


@dataclass(frozen=True)
class Work:
    """Steps, and in how many trainings."""

    steps: int
    trainings: int
    masked: int = 0
    """Of the steps, those of networks that hold a mask, which sparse kernels may make faster."""
    gated: int = 0
    """Of the steps, those of networks with gates, which train in torch."""
    unmeasured: int = 0
    """Of the trainings, those that another goes on from at once, so that no metrics are measured after them."""

    def without(self, other: Work) -> Work:
        """What is left of it."""
        return self._with(other, lambda mine, theirs: max(mine - theirs, 0))

    def at_most(self, other: Work) -> Work:
        """No more than another."""
        return self._with(other, min)

    def times(self, count: int) -> Work:
        """As many times as much."""
        return self._with(self, lambda mine, _: count * mine)

    def __add__(self, other: Work) -> Work:
        return self._with(other, operator.add)

    def _with(self, other: Work, made: Callable[[int, int], int]) -> Work:
        return Work(*map(made, astuple(self), astuple(other)))


NOTHING = Work(0, 0)


def work_of(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> Work:
    """About how many steps one replicate trains beside the dense network, and in how many trainings: tickets and
    controls, rounds with gates, and what is trained once more in a second order of the data.
    """
    whole = dense(lab, request)
    settings = request.settings
    tickets = request.method.levels(settings) if request.method.levels else 1
    if isinstance(settings, GradualSettings):
        return _gradual(whole, settings, request.controls_of(tickets))
    rounds = settings.rounds * len(settings.members) if isinstance(settings, GateSettings) else 0
    own = whole.total - whole.at(getattr(settings, "rewind", "0")) if _rewinds(settings) else whole.total
    masked = tickets + request.controls_of(tickets)
    again = 0
    if stability is not None:
        # Of other masks both orders are its own, unless they are controls anyway.
        others = sum(2 - (role in request.controls) for role in stability.roles if role)
        masked += (len(stability.at) or tickets) * (1 + others)
        again = int(stability.dense)
    if structured(request):
        masked += _chained(request)  # the next level goes on from the mask without structure
    found = Work(own * again, again) + _gated(whole.total * rounds, rounds) + Work(masked * own, masked, masked * own)
    if isinstance(settings, ConcreteSettings):
        found += _gated(tickets * mask_steps(settings, whole), tickets)
    if isinstance(settings, CutAt):  # one training up to the cut, from where tickets go on
        cut = whole.at(settings.until)
        before = _gated(cut, 1) if isinstance(settings, CutGates) else Work(cut, 1)
        found = before + found.without(Work(masked * cut, 0, masked * cut))
    return found


def _gradual(whole: Segment, settings: GradualSettings, controls: int) -> Work:
    """A training from each cut to the next, of which the last is measured; controls go on from the last one."""
    schedules = schedules_in(whole, settings)
    steps = sum(whole.total - min(schedule) for schedule in schedules)
    behind, trainings = controls * (whole.total - max(schedules[0])), sum(map(len, schedules))
    return Work(steps + behind, trainings + controls, steps + behind, unmeasured=trainings - len(schedules))


def _gated(steps: int, trainings: int) -> Work:
    return Work(steps, trainings, gated=steps)


def chain_of(lab: Lab, request: SearchRequest) -> Work:
    """What a replicate trains of tickets without structure, which runs that differ in structure alone share."""
    settings = request.settings
    if not isinstance(settings, IterativeSettings):
        return NOTHING
    whole = dense(lab, request)
    trained = _chained(request)
    steps = trained * (whole.total - whole.at(settings.rewind)) if _rewinds(settings) else 0
    return Work(steps, trained, steps)


def _chained(request: SearchRequest) -> int:
    """How many tickets without structure a replicate of iterative pruning trains: of all levels, but of the last not
    where its ticket has a structure.
    """
    return len(level_densities(request.settings)) - structured(request)


def mean_density(request: SearchRequest, whole: Segment) -> float | None:
    """Of all networks under a mask that a replicate trains; None if it is not known beforehand.

    Args:
        whole: the dense training.
    """
    if isinstance(request.settings, GradualSettings) and not request.settings.aim:
        return _mean_of_cuts(whole, request.settings)
    counts = {
        density: 1 + len(request.controls_beside(level, density))
        for density, level in planned_densities(request).items()
        if 0 < density < 1
    }
    if not counts:
        return None
    if structured(request):
        for density in level_densities(request.settings)[: _chained(request)]:
            counts[density] = counts.get(density, 0) + 1
    return sum(density * count for density, count in counts.items()) / sum(counts.values())


def _mean_of_cuts(whole: Segment, settings: GradualSettings) -> float:
    """Over the steps from the first cut on: most are made at a multiple of the last density."""
    spans = [
        (density, after - step)
        for schedule in schedules_in(whole, settings)
        for (step, density), after in zip(schedule.items(), [*[*schedule][1:], whole.total], strict=True)
    ]
    return sum(density * steps for density, steps in spans) / sum(steps for _, steps in spans)


def structured(request: SearchRequest) -> bool:
    """Whether tickets have a structure, and the next level goes on from one without, which is trained too."""
    return isinstance(request.settings, IterativeSettings) and request.settings.structuring is not None


def plain(request: SearchRequest) -> SearchRequest:
    """The same search without structure and controls."""
    settings = request.settings
    if isinstance(settings, IterativeSettings):
        without: dict[str, Any] = {one.name: one.default for one in fields(Restructuring)}
        settings = replace(settings, **without, structured_levels=0)
    return replace(request, settings=settings, controls=(), control_densities=())


def _rewinds(settings: object) -> bool:
    return hasattr(settings, "rewind") and getattr(settings, "retrain", "") in ("", "continue", "rewind_lr")


def dense(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """The dense training of a replicate, which every method begins with."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)
