"""Linear mode connectivity: the error along the straight line between two trained networks.

Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020, section 2).
Two networks without an error barrier between them are in one linearly connected minimum. An initial state is *stable*
if two trainings from it with different data orders have no barrier (the paper: a height below 2 percentage points).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.errors import UsageError
from ticketry.evidence.control import check_barrier_settings
from ticketry.evidence.stability import train_two_data_orders
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.store.store import NUMERICS, digest_of
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.segment import Result
from ticketry.lab.training.state import rebuild_model
from ticketry.lab.training.supervised import evaluate
from ticketry.records.metric import Metric
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Barrier:
    """Errors along the straight line between the weights of two networks, and the height of the error barrier."""

    height: float
    """Highest error on the line minus the mean of the two ends, in the metric's unit."""
    alphas: tuple[float, ...]
    """Positions on the line at which errors were measured: 0 is the first network, 1 the other."""
    errors: tuple[float, ...]
    """Error at each alpha; lower is better. It is 100 - accuracy for a metric in %, see `metric_to_error`."""
    split: str
    """Split on which errors were measured: train, validation or test."""
    recalibrated: int
    """Number of training batches that recomputed batch-norm statistics at each alpha; 0 if statistics were
    interpolated."""


def barrier(
    lab: Lab, task: Task, one: Result, other: Result, *, points: int = 11, split: str = "test", recalibrate: int = 0
) -> Barrier:
    """Measure the error barrier between two trained networks (Frankle et al. 2020, section 2). Cached in the store.

    Errors are measured at `points` evenly spaced alphas, including both ends. Weights and floating-point buffers are (1
    - alpha) * one + alpha * other; other buffers are copied from `one`. The barrier is the largest error minus the mean
    of the errors at the two ends, so it is never negative.

    Interpolated running statistics of batch norms do not fit the interpolated weights, so that a barrier may be an
    artefact of the statistics. `recalibrate` recomputes the statistics at all points, including both ends.

    Args:
        points: number of alphas (the paper has 30).
        split: split on which errors are measured: train, validation or test.
        recalibrate: number of training batches (not augmented, in a fixed order, of the recipe's size) over which
            batch-norm statistics are averaged at each alpha; 0 interpolates them. Has no effect without batch norm.
        lab: the lab with the results in its store.
        task: the task of both networks.
        one: the trained network at alpha 0.
        other: the trained network at alpha 1.

    Raises:
        UsageError: if there are fewer than 3 points, the split is unknown, `recalibrate` is negative, or a network
            belongs to another task.

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> with tk.Lab() as lab:
        ...     one, other = (lab.train(lab.segment(task, start=0, order_seed=seed, recipe=recipe)) for seed in (0, 1))
        ...     found = tk.evidence.barrier(lab, task, one, other, points=3)
        >>> found.alphas, found.height >= 0
        ((0.0, 0.5, 1.0), True)
    """
    _check_arguments(task, one, other, points, split, recalibrate)
    arithmetic, batch = one.segment.arithmetic, one.segment.recipe.batch
    described: dict[str, Any] = {
        "numerics": NUMERICS,
        "models": [one.model, other.model],
        "task": dict(task.key()),
        "points": points,
        "split": split,
        "recalibrate": [recalibrate, batch] if recalibrate else 0,
        "arithmetic": asdict(arithmetic),
    }
    key = digest_of(described)
    known = lab.store.memo("barriers", key)
    if known is None:
        states, course = (lab.state(one), lab.state(other)), lab.course(task)
        errors, recalibrated = [], 0
        with arithmetic.active():
            for index in range(points):
                model = arithmetic.place(rebuild_model(task, interpolate_states(*states, index, points - 1)))
                if recalibrate:
                    recalibrated = recompute_batch_norm_(course, model, one.segment.recipe, recalibrate, arithmetic)
                metrics = evaluate(task, course, model, split, arithmetic)
                errors.append(metric_to_error(task.metric, metrics[task.metric.name]))
        known = {"errors": errors, "recalibrated": recalibrated}
        lab.store.put_memo("barriers", key, known)
    errors = [float(error) for error in known["errors"]]
    return Barrier(
        height=max(errors) - (errors[0] + errors[-1]) / 2,
        alphas=tuple(index / (points - 1) for index in range(points)),
        errors=tuple(errors),
        split=split,
        recalibrated=int(known["recalibrated"]),
    )


def instability(
    lab: Lab,
    task: Task,
    recipe: Recipe,
    found: Found,
    seeds: Seeds,
    *,
    control: str | None = None,
    points: int = 11,
    split: str = "test",
    recalibrate: int = 0,
) -> Barrier:
    """Measure the error barrier between two trainings of one network with different data orders.

    Frankle et al. 2020, section 2. Both trainings start with the initial weights of the ticket or of a control, or, for
    the dense network of a search, with its state at the rewind step. `evidence.stability` uses the same trainings.

    Args:
        found: a network of a search with this recipe and these seeds.
        points, split, recalibrate: see `barrier`.
        lab: the lab with the search in its store.
        task: task of the search.
        recipe: recipe of the search.
        seeds: seeds of the replicate that found the network.
        control: name of a control in `evidence.CONTROLS`, to measure it instead of the ticket.

    Raises:
        UsageError: as for `barrier`, and if the control is unknown or `seeds` are of another search.

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> settings = tk.search.iterative.Settings(levels=1)
        >>> with tk.Lab() as lab:
        ...     dense, ticket = tk.search.iterative(lab, task, settings, recipe=recipe)[0]
        ...     found = tk.evidence.instability(lab, task, recipe, ticket, tk.search.Seeds(), points=3)
        >>> found.split, found.height >= 0
        ('test', True)
    """
    check_barrier_settings(points, split, recalibrate)  # before anything is trained
    one, other = train_two_data_orders(lab, task, recipe, found, seeds, control=control)
    return barrier(lab, task, one, other, points=points, split=split, recalibrate=recalibrate)


def interpolate_states(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], index: int, last: int
) -> dict[str, Tensor]:
    """Return the state dict (1 - alpha) * one + alpha * other for alpha = index / last, computed in float64.

    Tensors that are not floating-point are copied from `one`. The result is exact at both ends, and the same if the two
    networks are swapped and alpha is mirrored.
    """
    return {
        name: (((last - index) * a.double() + index * other[name].double()) / last).to(a.dtype)
        if a.is_floating_point()
        else a
        for name, a in one.items()
    }


@torch.no_grad()
def recompute_batch_norm_(
    course: Course, model: nn.Module, recipe: Recipe, batches: int, arithmetic: Arithmetic
) -> int:
    """Recompute the running statistics of all batch norms in place; return the number of batches used.

    Each statistic is the average over `batches` batches. Meanwhile batch norms use batch statistics, as in training,
    and all other modules are in evaluation mode. Afterwards the whole model is in evaluation mode. A model without
    batch norms uses 0 batches.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # selects the cumulative average
        norm.train()
    session = course.session(recipe.changed(augment=()), mix("recalibrate"), arithmetic)
    for batch in session.batches(range(batches)):
        session.loss(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return batches


def metric_to_error(metric: Metric, value: float) -> float:
    """Convert a metric's value to an error, for which lower is better.

    An accuracy in % becomes 100 - value, another metric for which higher is better becomes -value, a loss is unchanged,
    and NaN becomes infinity, so that it is the largest error.
    """
    if isnan(value):
        return float("inf")
    if not metric.higher_is_better:
        return value
    return 100 - value if metric.unit == "%" else -value


def _check_arguments(task: Task, one: Result, other: Result, points: int, split: str, recalibrate: int) -> None:
    check_barrier_settings(points, split, recalibrate)
    for result in (one, other):
        if digest_of(dict(result.segment.task.key())) != digest_of(dict(task.key())):
            raise UsageError(
                f"a barrier is between two networks of one task and model, here {task.name!r}: one of these was"
                f" trained on {result.segment.task.name!r}, or on another version or model of it"
            )
