"""What a training step of a network costs: FLOPs and memory, measured once and remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ticketry.core.iterate import scores_in
from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import get
from ticketry.lab.growth import ONE_AT_A_TIME
from ticketry.lab.lab import Lab, Result
from ticketry.lab.loop import Loop, TrainingState, initial_state
from ticketry.lab.loops import loop_of
from ticketry.lab.making import Seen
from ticketry.lab.meters.flops import FlopsByWeight, flops_of, removed_shares
from ticketry.lab.phases import Phases
from ticketry.lab.sample import Sample
from ticketry.lab.segment import Segment, Start, digest_of
from ticketry.lab.shrunk import remembered_plan
from ticketry.tasks.base import Task

_FEW = 2
"""Examples that FLOPs are counted on: they are proportional to examples, and batch norm needs two."""
_VERSION = 2
"""Of whatever here decides what is remembered."""
_BY_WEIGHT = {"snap": "snip", "crop_gates": "crop"}
_PACE = ("length", "schedule", "milestones", "gamma", "warmup", "lr")
"""What of a recipe has no part in the memory of a step."""


@dataclass(frozen=True)
class StepCost:
    """Of one training step of a network, with a whole batch."""

    dense: float | None
    """FLOPs of the forward and the backward pass as they are computed; None if they could not be counted."""
    flops: float | None
    """The same if removed weights took none, see `meters.step_flops`."""
    memory: int | None
    """Bytes of tensors at the step's height, see `Loop.height`; None if they could not be measured."""


def step_cost(lab: Lab, segment: Segment) -> StepCost:
    """What a training step of a segment's network costs. Remembered by what decides it.

    FLOPs are counted on two examples and scaled to a whole batch; all masks of one network share one count. Memory is
    measured in two steps of a whole batch: once for dense networks of the same task and recipe, once for masked ones,
    whatever the mask, once for each kind of gates, and for each mask of a network that is trained in its smaller form.

    Raises:
        TicketryError: if the task's data cannot be loaded, for what is not remembered.
    """
    dense, flops = step_flops(lab, segment)
    return StepCost(dense, flops, step_memory(lab, segment))


def step_flops(lab: Lab, segment: Segment) -> tuple[float, float]:
    """FLOPs of a step, as they are computed and if removed weights took none: see `step_cost`."""
    examples = min(segment.recipe.batch, lab.sizes(segment.task)["train"])
    described = {
        "task": dict(segment.task.key()),
        "form": _form(segment),
        "objective": _objective(segment),
        "tick": segment.tick is not None,
    }

    def counted() -> dict[str, Any]:
        loop = _loop(lab, replace(segment, mask=segment.mask if segment.shrunk else None), _FEW)
        found = loop.flops()
        return {"examples": loop.segment.recipe.batch, "dense": found.dense, "products": _listed(found)}

    told = _remembered(lab, "flops", described, counted)
    by_weight = FlopsByWeight(told["dense"], {tuple(names): flops for names, flops in told["products"]})
    scale = examples / told["examples"]
    masked = segment.mask is not None and not segment.shrunk and segment.gates is None
    left = by_weight.left(_removed(lab, str(segment.mask))) if masked else by_weight.dense
    return scale * by_weight.dense, scale * left


def step_memory(lab: Lab, segment: Segment) -> int:
    """Bytes of tensors at the height of a step: see `step_cost`."""
    recipe = {name: value for name, value in asdict(segment.recipe).items() if name not in _PACE}
    described = {
        "task": dict(segment.task.key()),
        "form": _form(segment),
        "masked": segment.mask is not None,
        "gates": _gates(segment),
        "penalty": _penalty(segment),
        "tick": segment.tick is not None,
        "recipe": recipe | {"momentum": bool(recipe["momentum"])},
        "arithmetic": replace(segment.arithmetic, stacked=False).describe(),
        "torch": torch.__version__,
    }
    return int(
        _remembered(lab, "memory", described, lambda: {"bytes": _loop(lab, segment, segment.recipe.batch).height()})[
            "bytes"
        ]
    )


def scoring_flops(lab: Lab, task: Task, score: str, first: int, others: int = 0) -> float:
    """FLOPs of scoring a task's network once, as they are computed.

    Counted on few examples: those of the first batch and of the others apart, for some scores (SynFlow) look at the
    first alone. Gates on channels cost what the score of weights does that their effects are sums of.

    Args:
        first: examples in the first batch.
        others: examples in all others.
    """
    score = _BY_WEIGHT.get(score.rpartition(":")[2], score)
    described = {"task": dict(task.key()), "score": score}

    def counted() -> dict[str, Any]:
        course, model = lab.course(task), lab.model(task).to(lab.arithmetic(task).device)
        scope, function = scope_of(model), get(score)

        def flops(count: int, size: int) -> tuple[int, int]:
            seen = Sample(count, size).drawn(course, model)
            found = flops_of(lambda: scores_in(function, model, scope, None, batches=seen, loss=course.loss, seed=0))
            return found, sum(map(course.count, seen))

        (few, n), (larger, more), (further, all_) = flops(1, _FEW), flops(1, 2 * _FEW), flops(2, _FEW)
        first = (larger - few) / max(more - n, 1)
        return {"first": first, "others": (further - few) / max(all_ - n, 1), "fixed": few - first * n}

    told = _remembered(lab, "flops", described, counted)
    return float(told["fixed"] + told["first"] * first + told["others"] * others)


class Costs:
    """The costs of a run's networks. What cannot be measured is None and keeps no run from its end."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: dict[tuple[str, str], Any] = {}
        self._guard = threading.RLock()

    def step(self, segment: Segment) -> StepCost:
        """`step_cost`, with None for what fails."""
        dense, flops = self._flops(segment)
        return StepCost(dense, flops, self._memory(segment))

    def row(self, phases: Phases) -> dict[str, dict[str, Any]]:
        """The entry ``cost`` of a network's row: steps, FLOPs, seconds and memory of its three phases.

        A search that only scores has no training step, and so no memory that was measured: None.
        """
        parts = {"dense": phases.dense, "search": phases.search, "sparse": phases.sparse}
        found = {name: self._trainings(part) for name, part in parts.items()}
        search, masks = found["search"], [self._lab.makings.of(mask) for mask in phases.masks]
        if phases.masks and not search["steps"]:
            search["memory"] = None
        search["steps"] += phases.gradients
        search["flops"] = _sum([search["flops"], self._beside(phases)])
        search["seconds"] = round(search["seconds"] + sum(mask.seconds for mask in masks) + phases.looking, 3)
        return found

    def flops(self, phases: Phases) -> float | None:
        """Of all three phases."""
        return _sum([*map(self._training, phases.trainings), self._beside(phases)])

    def _trainings(self, trainings: Iterable[Result]) -> dict[str, Any]:
        trained = [each for each in trainings if each.segment.steps]
        heights = [self._memory(each.segment) for each in trained]
        return {
            "steps": sum(each.segment.steps for each in trained),
            "flops": _sum(map(self._training, trained)),
            "seconds": round(sum((each.train_seconds for each in trained), 0.0), 3),
            "memory": None if None in heights else max((height for height in heights if height is not None), default=0),
        }

    def _training(self, trained: Result) -> float | None:
        if not trained.segment.steps:
            return 0.0
        flops = self._flops(trained.segment)[1]
        return None if flops is None else trained.segment.steps * flops

    def _beside(self, phases: Phases) -> float | None:
        """FLOPs of a search beside its trainings: of scores that look at examples, and of batches that trained nothing.

        In these the forward pass and the inputs' gradient are sparse and the weights' gradient is dense: (2 sparse +
        dense) / 3 of a step's FLOPs (Evci et al. 2020, appendix H).
        """
        parts = [self._scoring(phases, making.seen) for making in map(self._lab.makings.of, phases.masks)]
        if phases.gradients:
            dense, flops = self._flops(phases.sparse[-1].segment)
            parts.append(None if flops is None else phases.gradients * look_flops(dense, flops))
        return _sum(parts)

    def _scoring(self, phases: Phases, seen: Seen | None) -> float | None:
        if seen is None:
            return 0.0
        task = phases.trainings[-1].segment.task
        once = _if_it_can_be(lambda: scoring_flops(self._lab, task, seen.score, seen.first, seen.others))
        return None if once is None or not seen.score else seen.cuts * once

    def _flops(self, segment: Segment) -> tuple[Any, Any]:
        return self._of("flops", segment, lambda: step_flops(self._lab, segment)) or (None, None)

    def _memory(self, segment: Segment) -> int | None:
        found: int | None = self._of("memory", segment, lambda: step_memory(self._lab, segment))
        return found

    def _of(self, what: str, segment: Segment, measured: Callable[[], Any]) -> Any:
        with self._guard:
            key = (what, segment.trajectory)
            if key not in self._known:
                self._known[key] = _if_it_can_be(measured)
            return self._known[key]


def look_flops(dense: float, flops: float) -> float:
    """Of a batch whose gradient is that of all weights, removed ones too, in a network without these."""
    return (2 * flops + dense) / 3


def _sum(parts: Iterable[float | None]) -> float | None:
    found = 0.0
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _if_it_can_be(measured: Callable[[], Any]) -> Any:
    """What is measured; None if that fails: by then the search is done, and its results are what was asked for."""
    try:
        return measured()
    except Exception:  # of a user's own model too, which may not take two examples
        return None


# -- measuring ---------------------------------------------------------------------------------------------------------


def _loop(lab: Lab, segment: Segment, examples: int) -> Loop:
    """A training with the segment's network on the first examples: what is measured, and the one place that builds it.

    Weights are those of an initialisation: what they are decides no cost.
    """
    course = lab.course(segment.task).few(examples)
    plain = replace(
        segment,
        recipe=replace(segment.recipe, batch=min(examples, course.sizes()["train"]), augment=()),
        start=Start(seed=0),
        first=0,
        last=2,
        total=2,
        per_epoch=1,
        arithmetic=replace(segment.arithmetic, stacked=False),
        gates=replace(segment.gates, reset=None) if segment.gates else None,
    )
    state = TrainingState(0, initial_state(segment.task, 0), {}, torch.zeros(0))
    mask = lab.store.get_mask(plain.mask) if plain.mask else None
    return loop_of(course, plain, state, mask, lambda: remembered_plan(lab.store, plain.task, str(plain.mask), course))


def _remembered(
    lab: Lab, kind: str, described: Mapping[str, Any], measured: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    key = digest_of({"version": _VERSION, **described})
    known = lab.store.memo(kind, key)
    if known is None:
        with ONE_AT_A_TIME:
            known = measured()
        lab.store.put_memo(kind, key, known)
    return known


def _removed(lab: Lab, mask: str) -> dict[str, float]:
    """The share of each parameter that a stored mask removes. Remembered."""
    known = lab.store.memo("removed", mask)
    if known is None:
        known = {"shares": removed_shares(lab.store.get_mask(mask))}
        lab.store.put_memo("removed", mask, known)
    return dict(known["shares"])


def _listed(found: FlopsByWeight) -> list[list[Any]]:
    return [[list(names), flops] for names, flops in sorted(found.products.items())]


# -- what decides a cost -----------------------------------------------------------------------------------------------


def _form(segment: Segment) -> str | None:
    return segment.mask if segment.shrunk else None


def _objective(segment: Segment) -> str | None:
    return segment.gates.objective if segment.gates else None


def _penalty(segment: Segment) -> str | None:
    penalty = segment.penalty
    if penalty is None or penalty.pattern == UNSTRUCTURED:
        return penalty.kind if penalty else None
    return f"{penalty.kind} {penalty.pattern}"


def _gates(segment: Segment) -> dict[str, Any] | None:
    gates = segment.gates
    if gates is None:
        return None
    told = ("kind", "scope", "optimizer", "frozen", "objective")
    return {name: getattr(gates, name) for name in told} | {
        "momentum": bool(gates.momentum),
        "penalty": bool(gates.penalty),
        "balanced": gates.density is not None,
        # Left out where they say nothing: what is remembered is older.
        **({"structured": True} if gates.structured else {}),
        **({"pattern": gates.pattern} if gates.pattern != UNSTRUCTURED else {}),
    }
