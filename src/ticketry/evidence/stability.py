"""Stability: how far two trainings of one network end apart if one is pruned first, or has another data order.

Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019, section 3) measure the L2 distance
and the angle between the trained weights that the mask retains. They find winning tickets more stable. For linear mode
connectivity see `evidence.connectivity`. This module imports torch only when it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import atan2, degrees, hypot
from typing import TYPE_CHECKING

from ticketry.choices import did_you_mean, format_names
from ticketry.errors import MaskError, UsageError
from ticketry.evidence.control import CONTROLS, LONGER_CONTROLS
from ticketry.lab.search_result import REWINDING, Found, Seeds

if TYPE_CHECKING:
    from torch import Tensor

    from ticketry.core.mask import Mask
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.tasks.recipe import Recipe
    from ticketry.tasks.task import Task


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
    """Two distances between trained networks over the weights that the mask retains; small distances mean stable."""

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
        one, other: name -> tensor, such as `lab.state(result)`.
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
    _warn_of_shared_memory(one, other)
    pairs = {name: (a.double().cpu(), b.double().cpu()) for name, a, b in _select_compared(one, other, mask)}
    layers = {name: _distance_of_vectors([pair]) for name, pair in pairs.items()}
    return replace(_distance_of_vectors(list(pairs.values())), layers=layers)


def _select_compared(
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


def _warn_of_shared_memory(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Warn if two state dicts share memory, because their distance is then always 0."""
    from ticketry.core.ticket.state_dicts import share_memory

    shared = [name for name, tensor in one.items() if name in other and share_memory(tensor, other[name])]
    if shared and one is not other:
        warnings.warn(
            f"the states share memory ({format_names(shared)}), so that they are equal there: model.state_dict()"
            " follows the model as it trains. Copy it: "
            "{name: tensor.clone() for name, tensor in model.state_dict().items()}",
            stacklevel=3,
        )


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
        found: a ticket of a search with this recipe and these seeds.
        control: ``shuffled`` or ``random_prune``, to measure that control instead of the ticket.
        lab: the lab with the search in its store.
        task: task of the search.
        recipe: recipe of the search.
        seeds: seeds of the replicate that found the ticket.

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

    Raises:
        UsageError: if the control is unknown, or the seeds are not those of the search.
    """
    from ticketry.lab.store.references import second_order_seed

    if found.dense.segment.order_seed != seeds.order:
        raise UsageError(
            f"seeds.order is {seeds.order}, but the search had {found.dense.segment.order_seed}: give the seeds of the"
            " replicate that found this network"
        )
    first, begins = found.result, found.result.segment
    if control is not None:
        from ticketry.evidence.controls import train_control

        if found.mask is None:
            raise UsageError(f"{control} is a control of a ticket: the dense network has no mask")
        first = train_control(lab, task, recipe, control, found, seeds, label=f"level {found.level} {control}")
        begins = first.segment
    elif found.mask is None:
        begins = _dense_from_rewind_step(found)
    label = f"level {found.level} {control or 'ticket' if found.mask else 'dense'} (second order)"
    return first, lab.train(replace(begins, order_seed=second_order_seed(seeds.order)), label=label)


def _dense_from_rewind_step(found: Found) -> Segment:
    """Describe the training that continues the dense network from the rewind step, with the optimiser's state."""
    from ticketry.lab.training.segment import Start

    rewound, whole = found.rewound, found.result.segment
    if rewound.segment.last == whole.first:
        return whole
    return replace(whole, start=Start(state=rewound.model, optimizer=rewound.training), first=rewound.segment.last)
