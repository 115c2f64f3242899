"""Measure FLOPs and memory of a training step of a network, once per store."""

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
from ticketry.lab.costs.ledger import Phases, Sample, SeenExamples
from ticketry.lab.costs.meters import FlopsByWeight, count_flops, removed_shares
from ticketry.lab.lab import Lab
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
"""Number of examples on which FLOPs are counted, which is the least that batch norm accepts; FLOPs are proportional to
the number of examples."""
_VERSION = 2
"""Version of this code; keys of stored values contain it."""
_PACE = ("length", "schedule", "milestones", "gamma", "warmup", "lr")
"""Settings of a recipe that do not affect the memory of a step."""


def step_flops(lab: Lab, segment: Segment) -> tuple[float, float]:
    """Return the FLOPs of a training step (forward and backward) of the dense network, and of the masked network.

    FLOPs are counted for two examples and scaled to the batch size. For a task with a user-defined way of training,
    they are counted for a whole batch. The counts are stored, and serve for all masks of a network.
    """
    examples = min(segment.recipe.batch, lab.sizes(segment.task)["train"])
    kind = type(segment.task.inner if isinstance(segment.task, OwnTask) else segment.task)
    custom = kind.course is not Task.course and kind.__module__.partition(".")[0] != "ticketry"
    whole = {"batch": examples} if custom else {}  # user code may pad texts to the longest text in a batch
    described: dict[str, Any] = {
        **whole,
        "task": dict(segment.task.key()),
        "variants": {one.name: fact for one in segment.variants if (fact := one.flops_key()) is not None},
    }

    def count_network_flops() -> dict[str, Any]:
        deciding = tuple(one for one in segment.variants if one.name in described["variants"])
        loop = _build_loop(lab, replace(segment, variants=deciding), whole.get("batch", _FEW))
        found = loop.count_next_step_flops()
        products = [[list(names), flops] for names, flops in sorted(found.products.items())]
        return {"examples": loop.segment.recipe.batch, "dense": found.dense, "products": products}

    known = _load_or_measure(lab, "flops", described, count_network_flops)
    by_weight = FlopsByWeight(known["dense"], {tuple(names): flops for names, flops in known["products"]})
    scale = examples / known["examples"]
    mask, left = segment.mask, float(by_weight.dense)
    if mask and not segment.whole_channels and not any(one.computes_removed for one in segment.variants):
        removed = lab.store.load_or_compute(
            "removed", mask, lambda: {"shares": removed_shares(lab.store.get_mask(mask))}
        )
        left = by_weight.left(removed["shares"])
    return scale * by_weight.dense, scale * left


def step_memory(lab: Lab, segment: Segment) -> int:
    """Return the peak bytes of tensors in a training step of `segment`; measure them unless they are stored."""
    recipe = {name: value for name, value in asdict(segment.recipe).items() if name not in _PACE}
    described = {
        "task": dict(segment.task.key()),
        "variants": {one.name: fact for one in segment.variants if (fact := one.memory_key()) is not None},
        "recipe": recipe | {"momentum": bool(recipe["momentum"])},
        "arithmetic": _dense_arithmetic(segment).describe(),
        "torch": torch.__version__,
    }
    known = _load_or_measure(
        lab, "memory", described, lambda: {"bytes": _build_loop(lab, segment, segment.recipe.batch).peak_bytes()}
    )
    return int(known["bytes"])


def scoring_flops(lab: Lab, task: Task, score: str, first: int, others: int = 0) -> float:
    """Return the FLOPs of computing a pruning score of a task's dense network once.

    FLOPs are counted for a few examples and scaled to the real numbers: `first` examples in the first batch, `others`
    in all later batches. Some scores (SynFlow) use only the first batch.
    """
    plain = split_control(score)[1]
    if plain not in SCORES:
        score = next((name for name in names() if about(name).channels == plain), score)
    described = {"task": dict(task.key()), "score": score}

    def count_score_flops() -> dict[str, Any]:
        course, model = lab.course(task), lab.model(task).to(lab.arithmetic(task).device)
        scope, function = scope_of(model), get(score)

        def count_for_batches(batches: int, size: int) -> tuple[int, int]:
            seen = Sample(batches, size).draw(course, model)
            found = count_flops(
                lambda: score_pruned_model(function, model, scope, None, ScoreInputs(seen, course.loss))
            )
            return found, sum(map(course.count, seen))

        (few, n), (larger, more), (further, all_) = (
            count_for_batches(1, _FEW),
            count_for_batches(1, 2 * _FEW),
            count_for_batches(2, _FEW),
        )
        first = (larger - few) / max(more - n, 1)
        return {"first": first, "others": (further - few) / max(all_ - n, 1), "fixed": few - first * n}

    known = _load_or_measure(lab, "flops", described, count_score_flops)
    return float(known["fixed"] + known["first"] * first + known["others"] * others)


class Costs:
    """Measures the costs of the networks of a run; a cost that cannot be measured is None."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: dict[tuple[str, str], Any] = {}
        self._guard = threading.RLock()
        self.failures: list[str] = []
        """Texts that name the costs that could not be measured, and the reasons."""

    def build_cost_entry(self, phases: Phases) -> dict[str, dict[str, Any]]:
        """Return steps, FLOPs, seconds and memory bytes of `phases`, as the entry ``cost`` of a network's record."""
        parts = {"dense": phases.dense, "search": phases.search, "sparse": phases.sparse}
        found = {name: self._sum_training_costs(part) for name, part in parts.items()}
        search, masks = found["search"], [self._lab.mask_costs[mask] for mask in phases.masks]
        if phases.masks and not search["steps"]:
            search["memory"] = None
        search["steps"] += phases.gradients
        search["flops"] = _sum_or_none([search["flops"], self._flops_outside_training(phases)])
        search["seconds"] = round(search["seconds"] + sum(mask.seconds for mask in masks) + phases.detector_seconds, 3)
        return found

    def flops(self, phases: Phases) -> float | None:
        """Return the total FLOPs of all phases; None if the FLOPs of any work could not be measured."""
        return _sum_or_none([*map(self._training_flops, phases.trainings), self._flops_outside_training(phases)])

    def _sum_training_costs(self, trainings: Iterable[Result]) -> dict[str, Any]:
        trained = [each for each in trainings if each.segment.steps]
        heights = [self._measure_once("memory", each.segment, step_memory) for each in trained]
        return {
            "steps": sum(each.segment.steps for each in trained),
            "flops": _sum_or_none(map(self._training_flops, trained)),
            "seconds": round(sum((each.train_seconds for each in trained), 0.0), 3),
            "memory": None if None in heights else max((height for height in heights if height is not None), default=0),
        }

    def _training_flops(self, trained: Result) -> float | None:
        if not trained.segment.steps:
            return 0.0
        flops = self._step_flops(trained.segment)[1]
        return None if flops is None else trained.segment.steps * flops

    def _flops_outside_training(self, phases: Phases) -> float | None:
        """Return the FLOPs of pruning scores, and of gradients that were computed only to choose a mask."""
        parts = [self._scoring_flops(phases, self._lab.mask_costs[mask].seen) for mask in phases.masks]
        if phases.gradients:
            dense, flops = self._step_flops(phases.sparse[-1].segment)
            parts.append(None if flops is None else phases.gradients * dense_gradient_flops(dense, flops))
        return _sum_or_none(parts)

    def _scoring_flops(self, phases: Phases, seen: SeenExamples | None) -> float | None:
        if seen is None:
            return 0.0
        task = phases.trainings[-1].segment.task
        once = self._try_to_measure(
            f"FLOPs of the score {seen.score}",
            lambda: scoring_flops(self._lab, task, seen.score, seen.first, seen.others),
        )
        return None if once is None or not seen.score else seen.cuts * once

    def _step_flops(self, segment: Segment) -> tuple[Any, Any]:
        return self._measure_once("flops", segment, step_flops) or (None, None)

    def _measure_once(self, what: str, segment: Segment, measure: Callable[[Lab, Segment], Any]) -> Any:
        with self._guard:
            key = (what, segment.trajectory)
            if key not in self._known:
                self._known[key] = self._try_to_measure(
                    f"{what} of a step of {segment.task.name}", lambda: measure(self._lab, segment)
                )
            return self._known[key]

    def _try_to_measure(self, what: str, measure: Callable[[], Any]) -> Any:
        """Return the result of `measure`, or None if it raises an error, which is logged and added to `failures`."""
        try:
            return measure()
        except Exception as error:  # such as of a user's model that does not take two examples
            message = f"not measured: {what} ({type(error).__name__}: {error})"
            if message not in self.failures:
                self.failures.append(message)
                _LOG.warning(message, exc_info=_LOG.isEnabledFor(logging.DEBUG))
            return None


def dense_gradient_flops(dense: float, flops: float) -> float:
    """Return the FLOPs of a step of a sparse network that also computes the gradients of removed weights.

    This is (2 `flops` + `dense`) / 3, where `dense` and `flops` are the FLOPs of a step of the dense and of the sparse
    network (Evci et al. 2020, appendix H).
    """
    return (2 * flops + dense) / 3


def _sum_or_none(parts: Iterable[float | None]) -> float | None:
    found = 0.0
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _build_loop(lab: Lab, segment: Segment, examples: int) -> Loop:
    """Build a training loop for measuring the steps of `segment`, with new weights and `examples` training examples."""
    course = lab.course(segment.task).few(examples)
    plain = replace(
        segment,
        arithmetic=_dense_arithmetic(segment),
        recipe=replace(segment.recipe, batch=min(examples, course.sizes()["train"]), augment=()),
        start=Start(seed=0),
        first=0,
        last=2,
        total=2,
        per_epoch=1,
        variants=tuple(one.without_history() for one in segment.variants),
    )
    state = TrainingState(0, initial_state(segment.task, 0), {}, torch.zeros(0))
    return Loop(lab.store, course, plain, state)


def _dense_arithmetic(segment: Segment) -> Arithmetic:
    """Return device and number format of `segment`, for one process with dense kernels, whose FLOPs torch can count."""
    return replace(segment.arithmetic, kernels=DENSE, ranks=1, norms="", parallel="")


def _load_or_measure(
    lab: Lab, kind: str, described: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    def measure_while_others_wait() -> dict[str, Any]:
        with ONE_AT_A_TIME:
            return measure()

    return lab.store.load_or_compute(kind, digest_of({"version": _VERSION, **described}), measure_while_others_wait)
