"""Costs of a training step of a network: FLOPs and memory, measured once and remembered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ticketry.core.scope import scope as scope_of
from ticketry.core.score import SCORES, ScoreInputs, about, get, names, split_control
from ticketry.core.score.measurement import score_pruned_model
from ticketry.lab.costs.ledger import SeenExamples
from ticketry.lab.costs.meters.flops import FlopsByWeight, flops_of, removed_shares
from ticketry.lab.costs.phases import Phases
from ticketry.lab.lab import Lab
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.precision import DENSE, Arithmetic
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.state import TrainingState, initial_state
from ticketry.tasks.task import Task
from ticketry.tasks.user_task import OwnTask
from ticketry_engine.support.process_state import ONE_AT_A_TIME

_LOG = logging.getLogger(__name__)
_FEW = 2
"""Examples on which FLOPs are counted: they are proportional to examples, and batch norm needs two."""
_VERSION = 2
"""Version of the code that decides the remembered values."""
_PACE = ("length", "schedule", "milestones", "gamma", "warmup", "lr")
"""Settings of a recipe that do not affect the memory of a step."""


def step_flops(lab: Lab, segment: Segment) -> tuple[float, float]:
    """Return the FLOPs of a training step, forward and backward: all, and without those of removed weights.

    Remembered: counted on two examples and scaled to a whole batch; all masks of one network share one count. For a
    user-defined course a whole batch is counted.

    Raises:
        TicketryError: if the task's data must be loaded and cannot be.
    """
    examples = min(segment.recipe.batch, lab.sizes(segment.task)["train"])
    whole = {} if _is_proportional(segment.task) else {"batch": examples}
    described: dict[str, Any] = {
        **whole,
        "task": dict(segment.task.key()),
        "variants": {one.name: fact for one in segment.variants if (fact := one.decides_flops()) is not None},
    }

    def count() -> dict[str, Any]:
        deciding = tuple(one for one in segment.variants if one.name in described["variants"])
        loop = _loop(lab, replace(segment, variants=deciding), whole.get("batch", _FEW))
        found = loop.flops()
        return {"examples": loop.segment.recipe.batch, "dense": found.dense, "products": _to_list(found)}

    known = _remembered(lab, "flops", described, count)
    by_weight = FlopsByWeight(known["dense"], {tuple(names): flops for names, flops in known["products"]})
    scale = examples / known["examples"]
    spared = segment.mask is not None and not segment.whole_channels
    spared = spared and not any(one.computes_removed for one in segment.variants)
    left = by_weight.left(_removed_shares(lab, str(segment.mask))) if spared else by_weight.dense
    return scale * by_weight.dense, scale * left


def step_memory(lab: Lab, segment: Segment) -> int:
    """Return the peak bytes of tensors in a training step with a whole batch, see `Loop.height`. Remembered.

    Measured in two steps: once for dense networks of the same task and recipe, once for all masks, once for each other
    variant of training, and once for each mask of a network that is trained shrunk.

    Raises:
        TicketryError: as `step_flops`.
    """
    recipe = {name: value for name, value in asdict(segment.recipe).items() if name not in _PACE}
    described = {
        "task": dict(segment.task.key()),
        "variants": {one.name: fact for one in segment.variants if (fact := one.decides_memory()) is not None},
        "recipe": recipe | {"momentum": bool(recipe["momentum"])},
        "arithmetic": _in_torch(segment).describe(),
        "torch": torch.__version__,
    }
    known = _remembered(lab, "memory", described, lambda: {"bytes": _loop(lab, segment, segment.recipe.batch).height()})
    return int(known["bytes"])


def scoring_flops(lab: Lab, task: Task, score: str, first: int, others: int = 0) -> float:
    """Return the FLOPs of scoring a task's network once, including those of removed weights.

    Counted on few examples, separately for the first batch and for the others, since some scores (SynFlow) only look
    at the first. A score of channels costs as much as the score of weights that it is based on.

    Args:
        first: examples in the first batch.
        others: examples in all others.
    """
    plain = split_control(score)[1]
    if plain not in SCORES:
        score = next((name for name in names() if about(name).channels == plain), score)
    described = {"task": dict(task.key()), "score": score}

    def count() -> dict[str, Any]:
        course, model = lab.course(task), lab.model(task).to(lab.arithmetic(task).device)
        scope, function = scope_of(model), get(score)

        def flops(count: int, size: int) -> tuple[int, int]:
            seen = Sample(count, size).draw(course, model)
            found = flops_of(lambda: score_pruned_model(function, model, scope, None, ScoreInputs(seen, course.loss)))
            return found, sum(map(course.count, seen))

        (few, n), (larger, more), (further, all_) = flops(1, _FEW), flops(1, 2 * _FEW), flops(2, _FEW)
        first = (larger - few) / max(more - n, 1)
        return {"first": first, "others": (further - few) / max(all_ - n, 1), "fixed": few - first * n}

    known = _remembered(lab, "flops", described, count)
    return float(known["fixed"] + known["first"] * first + known["others"] * others)


class Costs:
    """The costs of a run's networks. A cost that cannot be measured is None, and the run continues."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: dict[tuple[str, str], Any] = {}
        self._guard = threading.RLock()
        self.failures: list[str] = []
        """Costs that could not be measured, with the reason."""

    def row(self, phases: Phases) -> dict[str, dict[str, Any]]:
        """Return the entry ``cost`` of a network's row: steps, FLOPs, seconds and memory of its three phases.

        A search that only scores has no training step, so its memory is None.
        """
        parts = {"dense": phases.dense, "search": phases.search, "sparse": phases.sparse}
        found = {name: self._trainings(part) for name, part in parts.items()}
        search, masks = found["search"], [self._lab.makings.get(mask) for mask in phases.masks]
        if phases.masks and not search["steps"]:
            search["memory"] = None
        search["steps"] += phases.gradients
        search["flops"] = _sum([search["flops"], self._other_flops(phases)])
        search["seconds"] = round(search["seconds"] + sum(mask.seconds for mask in masks) + phases.looking, 3)
        return found

    def flops(self, phases: Phases) -> float | None:
        """Return the FLOPs of all three phases."""
        return _sum([*map(self._training, phases.trainings), self._other_flops(phases)])

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

    def _other_flops(self, phases: Phases) -> float | None:
        """Return the FLOPs of a search outside its trainings: scores that look at examples, gradients without training.

        For such gradients, the forward pass and the inputs' gradient are sparse and the weights' gradient is dense:
        (2 sparse + dense) / 3 of a step's FLOPs (Evci et al. 2020, appendix H).
        """
        parts = [self._scoring(phases, making.seen) for making in map(self._lab.makings.get, phases.masks)]
        if phases.gradients:
            dense, flops = self._flops(phases.sparse[-1].segment)
            parts.append(None if flops is None else phases.gradients * look_flops(dense, flops))
        return _sum(parts)

    def _scoring(self, phases: Phases, seen: SeenExamples | None) -> float | None:
        if seen is None:
            return 0.0
        task = phases.trainings[-1].segment.task
        once = self._try_to_measure(
            f"FLOPs of the score {seen.score}",
            lambda: scoring_flops(self._lab, task, seen.score, seen.first, seen.others),
        )
        return None if once is None or not seen.score else seen.cuts * once

    def _flops(self, segment: Segment) -> tuple[Any, Any]:
        return self._once("flops", segment, lambda: step_flops(self._lab, segment)) or (None, None)

    def _memory(self, segment: Segment) -> int | None:
        found: int | None = self._once("memory", segment, lambda: step_memory(self._lab, segment))
        return found

    def _once(self, what: str, segment: Segment, measure: Callable[[], Any]) -> Any:
        with self._guard:
            key = (what, segment.trajectory)
            if key not in self._known:
                self._known[key] = self._try_to_measure(f"{what} of a step of {segment.task.name}", measure)
            return self._known[key]

    def _try_to_measure(self, what: str, measure: Callable[[], Any]) -> Any:
        """Return a measurement; None if it fails, which is logged once and listed in `failures`.

        The run continues: by then the search is done.
        """
        try:
            return measure()
        except Exception as error:  # also of a user's own model, which may not take two examples
            message = f"not measured: {what} ({type(error).__name__}: {error})"
            if message not in self.failures:
                self.failures.append(message)
                _LOG.warning(message, exc_info=_LOG.isEnabledFor(logging.DEBUG))
            return None


def look_flops(dense: float, flops: float) -> float:
    """Return the FLOPs of a gradient of all weights, including removed ones, in a network without these."""
    return (2 * flops + dense) / 3


def _sum(parts: Iterable[float | None]) -> float | None:
    found = 0.0
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _is_proportional(task: Task) -> bool:
    """Return whether a step's work is proportional to the recipe's batch.

    A user-defined course may differ: it may play episodes, or pad texts to the longest one in the batch.
    """
    own = type(task.inner if isinstance(task, OwnTask) else task)
    return own.course is Task.course or own.__module__.partition(".")[0] == "ticketry"


# -- measuring ---------------------------------------------------------------------------------------------------------


def _loop(lab: Lab, segment: Segment, examples: int) -> Loop:
    """Build the training that is measured: the segment's network on the first examples.

    The weights are freshly initialised, since their values do not affect costs.
    """
    course = lab.course(segment.task).few(examples)
    plain = replace(
        segment,
        arithmetic=_in_torch(segment),
        recipe=replace(segment.recipe, batch=min(examples, course.sizes()["train"]), augment=()),
        start=Start(seed=0),
        first=0,
        last=2,
        total=2,
        per_epoch=1,
        variants=tuple(one.afresh() for one in segment.variants),
    )
    state = TrainingState(0, initial_state(segment.task, 0), {}, torch.zeros(0))
    return Loop(lab.store, course, plain, state)


def _in_torch(segment: Segment) -> Arithmetic:
    """Return a segment's arithmetic without sparse kernels, whose work torch cannot count, and in one process, which
    then does the work of all ranks."""
    return replace(segment.arithmetic, kernels=DENSE, ranks=1, norms="", parallel="")


def _remembered(
    lab: Lab, kind: str, described: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    def measure_alone() -> dict[str, Any]:
        with ONE_AT_A_TIME:
            return measure()

    return lab.store.remembered(kind, digest_of({"version": _VERSION, **described}), measure_alone)


def _removed_shares(lab: Lab, mask: str) -> dict[str, float]:
    """Return the share of each parameter that a stored mask removes. Remembered."""
    known = lab.store.remembered("removed", mask, lambda: {"shares": removed_shares(lab.store.get_mask(mask))})
    return dict(known["shares"])


def _to_list(found: FlopsByWeight) -> list[list[Any]]:
    return [[list(names), flops] for names, flops in sorted(found.products.items())]
