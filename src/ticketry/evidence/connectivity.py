"""Stability and linear mode connectivity: how far two trainings of one network end apart.

The trainings differ because one is pruned first, or has another data order.

Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019, section 3) measure the L2 distance
and the angle between the trained weights that the mask retains. They find winning tickets more stable.
Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020, section 2)
measure the error along the straight line between two trained networks. Two networks without an error barrier between
them are in one linearly connected minimum. An initial state is *stable* if two trainings from it with different data
orders have no barrier (the paper: a height below 2 percentage points).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import atan2, degrees, hypot, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.choices import did_you_mean, format_names
from ticketry.core.mask import Mask
from ticketry.core.ticket.state_dicts import share_memory
from ticketry.errors import MaskError, UsageError
from ticketry.evidence.control import CONTROLS, LONGER_CONTROLS, check_barrier_settings
from ticketry.evidence.controls import train_control
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import REWINDING, Found, Seeds
from ticketry.lab.store.references import seed_of_second_data_order
from ticketry.lab.store.store import NUMERICS, digest_of
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.segment import Result, Start
from ticketry.lab.training.state import rebuild_model
from ticketry.lab.training.supervised import evaluate
from ticketry.records.metric import Metric
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.seeds import mix_seeds


@dataclass(frozen=True)
class Distance:
    """Distance between the weights of two networks, as L2 distance and angle."""

    l2: float
    """Euclidean distance of the two weight vectors."""
    angle: float | None
    """Angle between the two weight vectors in degrees, 0 … 180; None if a vector is 0."""
    weights: int
    """Number of compared weights."""
    layers: Mapping[str, Distance] = field(default_factory=dict)
    """Distance of each parameter, by its name."""


@dataclass(frozen=True)
class Stability:
    """Two distances of a ticket's trained weights: to the dense network's, and to the ticket's with another data order.

    Only weights that the mask retains count. Small distances mean that the ticket is stable.
    """

    pruning: Distance
    """Distance between the dense network, masked after training, and the sub-network, masked before training; both have
    the same data order."""
    data_order: Distance
    """Distance between two trainings of the sub-network from the same start under different data orders."""


def distance(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], mask: Mask | Iterable[str] | None = None
) -> Distance:
    """Return the L2 distance and the angle between two networks' weights, in total and for each parameter.

    All is computed in float64. The angle of unit vectors u and v is 2 atan2(|u - v|, |u + v|) (Kahan): unlike the
    arccos of their product, this is exact to rounding even for nearly equal and nearly opposite vectors.

    Args:
        one: the first network, as name -> tensor, such as `lab.state(result)`.
        other: the second network, in the same form.
        mask: which weights are compared: those that a `Mask` retains, or all weights of the parameters that a `Scope`
            (or any iterable) names; with None every floating-point tensor, including norm statistics.

    Raises:
        MaskError: if the mask names a tensor that a network lacks or has in another shape.
        UsageError: if the two networks have different tensors.

    Examples:
        >>> apart = tk.evidence.distance({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
        >>> round(apart.l2, 4), round(apart.angle, 1), apart.weights
        (1.4142, 90.0, 2)
    """
    shared = [name for name, tensor in one.items() if name in other and share_memory(tensor, other[name])]
    if shared and one is not other:
        warnings.warn(
            f"the states share memory ({format_names(shared)}), so that they are equal there: model.state_dict()"
            " follows the model as it trains. Copy it: "
            "{name: tensor.clone() for name, tensor in model.state_dict().items()}",
            stacklevel=2,
        )
    pairs = {name: (a.double().cpu(), b.double().cpu()) for name, a, b in _select_compared_tensors(one, other, mask)}
    layers = {name: _distance_of_vectors([pair]) for name, pair in pairs.items()}
    return replace(_distance_of_vectors(list(pairs.values())), layers=layers)


def _select_compared_tensors(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], mask: Mask | Iterable[str] | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    everything = {**other, **one}
    names = [name for name, value in everything.items() if value.is_floating_point()] if mask is None else list(mask)
    for name in names:
        if name not in one or name not in other:
            kind = UsageError if mask is None else MaskError
            question = did_you_mean(str(name), one.keys() & other.keys())
            raise kind(f"{name!r} is not in both states: {question}compare states of one network, within a mask of it")
        a, b = one[name], other[name]
        if a.shape != b.shape:
            raise UsageError(f"{name!r} is {tuple(a.shape)} in one state and {tuple(b.shape)} in the other")
        if isinstance(mask, Mapping):
            kept = mask[name].to(a.device)
            if kept.shape != a.shape:
                raise MaskError(f"the mask of {name!r} has the shape {tuple(kept.shape)}, the state {tuple(a.shape)}")
            a, b = a[kept], b[kept.to(b.device)]
        yield name, a, b


def _distance_of_vectors(pairs: list[tuple[Tensor, Tensor]]) -> Distance:
    """Return the distance between two vectors; each pair has one part of both vectors as tensors."""
    size_a, size_b = (hypot(*(_norm(pair[side]) for pair in pairs)) for side in (0, 1))
    angle = None
    if size_a and size_b:
        minus = hypot(*(_norm(a / size_a - b / size_b) for a, b in pairs))
        plus = hypot(*(_norm(a / size_a + b / size_b) for a, b in pairs))
        angle = degrees(2 * atan2(minus, plus))
    return Distance(hypot(*(_norm(a - b) for a, b in pairs)), angle, sum(a.numel() for a, _ in pairs))


def _norm(vector: Tensor) -> float:
    return float(vector.square().sum().sqrt())


def stability(
    lab: Lab, task: Task, recipe: Recipe, found: Found, seeds: Seeds, *, control: str | None = None
) -> Stability:
    """Measure the stability of a ticket, or of a control with another mask (Frankle et al. 2019, section 3).

    Let W_k be the rewound weights, m the mask, and A(W, u) the weights after training W to the end with data order u:

    - the distance for stability to pruning is |m∘A(W_k, u) - m∘A(m∘W_k, u)|;
    - the distance for stability to data order is |m∘A(m∘W_k, u) - m∘A(m∘W_k, u')|.

    A(W_k, u) is the dense network of the search. Its optimiser state continues at step k; the ticket's optimiser is
    new. Trainings that the lab's store lacks are executed. `evidence.instability` uses the same trainings.

    Args:
        lab, task, recipe, seeds: those of the search that found the ticket.
        found: the ticket.
        control: ``shuffled`` or ``random_prune``, to measure that control instead of the ticket.

    Raises:
        UsageError: if `found` is the dense network, the control has other weights than the ticket, `seeds` are of
            another search, or the ticket was not trained over the same steps as the dense network from step k on
            (retrain ``continue``).

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> settings = tk.search.iterative.Settings(levels=1)
        >>> with tk.Lab() as lab:
        ...     dense, ticket = tk.search.iterative(lab, task, settings, recipe=recipe)[0]
        ...     found = tk.evidence.stability(lab, task, recipe, ticket, tk.search.Seeds())
        >>> found.pruning.l2 > 0, found.data_order.angle < 90
        (True, True)
    """
    if found.mask is None:
        raise UsageError("stability needs a sub-network: the dense network has no mask")
    if control is not None and CONTROLS.get(control).changes_weights:
        raise UsageError(
            f"{control} starts from other weights than the dense network, so that its stability to pruning has no"
            " meaning: use shuffled or random_prune"
        )
    if control in LONGER_CONTROLS:
        raise UsageError(f"{control} is trained for longer than the dense network: use shuffled or random_prune")
    trained, dense, step = found.result.segment, found.dense.segment, found.rewound.segment.last
    if found.retrain not in REWINDING or (trained.first, trained.last) != (step, dense.last):
        raise UsageError(
            "stability to pruning compares a ticket with the dense network over the same steps: search with retrain"
            f" continue (this ticket: {found.retrain}, from step {step})"
        )
    if found.rewound.model != lab.at(found.dense, step).model:
        raise UsageError(
            "stability to pruning compares a ticket with the dense network from the same weights, and this one starts"
            " from those of the search's own training: search with rewind 0"
        )
    first, second = train_two_data_orders(lab, task, recipe, found, seeds, control=control)
    assert first.segment.mask is not None
    mask = lab.store.get_mask(first.segment.mask)
    state = lab.state(first)
    return Stability(
        pruning=distance(lab.state(found.dense), state, mask), data_order=distance(state, lab.state(second), mask)
    )


def train_two_data_orders(
    lab: Lab, task: Task, recipe: Recipe, found: Found, seeds: Seeds, *, control: str | None = None
) -> tuple[Result, Result]:
    """Train a ticket, a control or the dense network under two data orders; return both results.

    The first result is `found`, or the control if one is named (`evidence.train_control`). The second training has the
    same initial weights and steps; its data order has the seed ``mix(seeds.order, "second order")``. Both trainings of
    a dense network continue from the rewind step with the optimiser's state (Frankle et al. 2020, section 2).
    """
    if found.dense.segment.order_seed != seeds.order:
        raise UsageError(
            f"seeds.order is {seeds.order}, but the search had {found.dense.segment.order_seed}: give the seeds of the"
            " replicate that found this network"
        )
    first, begins = found.result, found.result.segment
    if control is not None:
        if found.mask is None:
            raise UsageError(f"{control} is a control of a ticket: the dense network has no mask")
        first = train_control(lab, task, recipe, control, found, seeds, label=f"level {found.level} {control}")
        begins = first.segment
    elif found.mask is None and (step := found.rewound.segment.last) != begins.first:
        start = Start(state=found.rewound.model, optimizer=found.rewound.training)
        begins = replace(begins, start=start, first=step)
    label = f"level {found.level} {control or 'ticket' if found.mask else 'dense'} (second order)"
    return first, lab.train(replace(begins, order_seed=seed_of_second_data_order(seeds.order)), label=label)


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
    """Measure the error barrier between two trained networks (Frankle et al. 2020, section 2), cached in the store.

    Errors are measured at `points` evenly spaced alphas from 0 to 1. At each alpha, weights and floating-point buffers
    are (1 - alpha) * one + alpha * other; other buffers are copied from `one`. The barrier is the largest error minus
    the mean of the errors at the two ends, so it is never negative.

    Interpolated running statistics of batch norms do not fit the interpolated weights, so that a barrier may be an
    artefact of the statistics. `recalibrate` recomputes the statistics at all points, including both ends.

    Args:
        lab, task: those with which both networks were trained.
        one, other: the networks at alpha 0 and at alpha 1.
        points: number of alphas (the paper has 30).
        split: split on which errors are measured: train, validation or test.
        recalibrate: number of training batches (not augmented, in a fixed order, of the recipe's size) over which
            batch-norm statistics are averaged at each alpha; 0 interpolates them. Has no effect without batch norm.

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
    check_barrier_settings(points, split, recalibrate)
    for result in (one, other):
        if digest_of(dict(result.segment.task.key())) != digest_of(dict(task.key())):
            raise UsageError(
                f"a barrier is between two networks of one task and model, here {task.name!r}: one of these was"
                f" trained on {result.segment.task.name!r}, or on another version or model of it"
            )
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
    known = lab.store.load_memo("barriers", key)
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
        lab, task, recipe, seeds: those of the search that found the network.
        found: the network.
        control: name of a control in `evidence.CONTROLS`, to measure it instead of the ticket.
        points, split, recalibrate: see `barrier`.

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
    session = course.session(recipe.changed(augment=()), mix_seeds("recalibrate"), arithmetic)
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
