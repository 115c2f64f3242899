"""Masks under a budget: what weights cost in a task's network, and the masks that spend so much; remembered.

A mask is a pure function of weights, scores, prices and budget. Prices are counted, not timed: the same budget gives
the same mask on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import prod
from typing import Any

import msgspec

from ticketry.core.budget import Prices, countable_parameters, uses
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.mixed import WORTH
from ticketry.core.mask import Mask
from ticketry.core.prune import budget_pruner
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import ScoreInputs, source_of
from ticketry.core.structuring import NONE, in_blocks
from ticketry.errors import CostError, UsageError
from ticketry.lab.costs.mask_cost import Seen
from ticketry.lab.lab import Lab
from ticketry.lab.measured_time import met
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Result, Segment
from ticketry.tasks.task import Task


def multiplications(lab: Lab, task: Task) -> dict[str, tuple[int, int]]:
    """Weight of each linear and convolution layer -> (multiplications of one of its elements, its elements).

    In a call with one example. Remembered: a finished run is told again without any data.
    """

    def made() -> dict[str, Any]:
        model = lab.model(task)
        found = scope_of(model)
        shapes = {name: tuple(value.shape) for name, value in found.parameters(model).items()}
        known = countable_parameters(model, found)
        layers = scope_of_shapes(model, {name: shapes[name] for name in known})
        prices = uses(model, layers, lab.course(task).inputs(1)) if known else {}
        return {"layers": {name: [price, prod(shapes[name])] for name, price in prices.items()}}

    layers = lab.store.remembered("prices", digest_of(task.key()), made)["layers"]
    return {name: (int(price), int(size)) for name, (price, size) in layers.items()}


def remember_costs(lab: Lab, task: Task, costs: CostModel, names: Iterable[str]) -> None:
    """Keep costs in the store under their digest, for the controls and verdicts of whatever is found by them.

    Raises:
        CostError: if they are of another network.
    """
    model = lab.model(task)
    sizes = {name: value.numel() for name, value in scope_of(model).parameters(model).items()}
    for name in names:
        if name not in costs.layers or costs.layers[name].weights != sizes.get(name):
            raise CostError(f"the costs are of another network: {name!r} has none there, or has another size")
    lab.store.remembered("costs", costs.digest, lambda: {"model": msgspec.to_builtins(costs)})


def terms_in(lab: Lab, task: Task, names: Iterable[str], terms: str) -> Prices:
    """What weights cost by the terms of a budget, see `Aimed.terms`.

    Raises:
        CostError: for costs that are not in this store.
    """
    _, by_costs, digest = terms.partition(":")
    if not by_costs:
        return prices_of(lab, task, names)
    known = lab.store.memo("costs", digest)
    if known is None:
        raise CostError(
            f"the costs that this ticket's budget goes by ({digest[:8]}) are not in the store: search again in it, with"
            " --profile"
        )
    return msgspec.convert(known["model"], CostModel)


def by_timing(terms: str) -> bool:
    """Whether a budget is met by timing masks on this machine, see `Aimed.measured`."""
    return terms.partition(":")[0].endswith("+measured")


def as_asked(lab: Lab, task: Task, prices: Prices, terms: str, share: float, prune: Callable[[float], Mask]) -> Mask:
    """The mask of a share by its costs, or where the terms say so the one whose measured time is nearest to it.

    Args:
        prune: share by the costs -> the mask.
    """
    if not by_timing(terms):
        return prune(share)
    assert isinstance(prices, CostModel)
    return met(lab, task, prices, share, prune)


def share_left(lab: Lab, task: Task, kept: Mapping[str, int], terms: str) -> float:
    """The share of a budget's costs that is left with so many weights of each parameter, single ones."""
    prices = terms_in(lab, task, kept, terms)
    if isinstance(prices, CostModel):
        layers = ((layer, kept.get(name, layer.weights)) for name, layer in prices.layers.items())
        return (prices.fixed + sum(layer.at(count / layer.weights) for layer, count in layers)) / prices.dense
    known = multiplications(lab, task)
    whole = sum(prices[name] * known[name][1] for name in kept)
    return sum(prices[name] * count for name, count in kept.items()) / whole


def prices_of(lab: Lab, task: Task, names: Iterable[str]) -> dict[str, int]:
    """What each weight of these parameters costs: multiplications in a call with one example.

    Raises:
        UsageError: for a parameter that is no weight of a linear or convolution layer.
    """
    known, asked = multiplications(lab, task), list(names)
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(
            f"multiplications are counted of linear and convolution layers, not of {', '.join(unknown)}: spare them"
            " (--spare), or ask for a density"
        )
    return {name: known[name][0] for name in asked}


def dense_multiplications(lab: Lab, task: Task) -> int:
    """All of them, in a call of the dense network with one example."""
    return sum(price * size for price, size in multiplications(lab, task).values())


def left_multiplications(lab: Lab, task: Task, mask: Mask) -> int:
    """Those that a mask leaves, with those of layers that it does not touch."""
    known = multiplications(lab, task)
    kept = {name: int(mask[name].sum()) if name in mask else size for name, (_, size) in known.items()}
    return sum(price * kept[name] for name, (price, _) in known.items())


def multiplications_in(lab: Lab, segment: Segment) -> int:
    """Of a call of the network that a segment trains, with one example."""
    if segment.mask is None:
        return dense_multiplications(lab, segment.task)
    return left_multiplications(lab, segment.task, lab.store.get_mask(segment.mask))


def budget_mask(
    lab: Lab,
    task: Task,
    result: Result,
    scope: Scope,
    *,
    terms: str,
    share: float,
    within: str | None = None,
    sample: Sample | None = None,
    seed: int = 0,
    **settings: Any,
) -> str:
    """Digest of the stored mask of a budget, chosen by a result's weights. Remembered by its arguments.

    Args:
        terms: what the share is of, and by which costs, see `Aimed.terms`.
        within: digest of the mask of the candidates.
        sample: the batches that the score sees, if it needs any.
        settings: of `core.prune.budget_pruner`.
    """

    prices = terms_in(lab, task, scope, terms)

    def made() -> Mask:
        base = lab.store.get_mask(within) if within else None
        model, inputs = lab.model(task, result), ScoreInputs(None, None, seed)
        if sample is not None:
            course, model = lab.course(task), model.to(lab.arithmetic(task).device)
            inputs = ScoreInputs(sample.of(task).drawn(course, model), course.loss, seed)
        prune = budget_pruner(model, scope, prices, within=base, inputs=inputs, **settings)
        return as_asked(lab, task, prices, terms, share, prune)

    described = {
        "state": result.model,
        "within": within,
        "scope": list(scope),
        "budget": {"of": terms, "share": share} | ({} if ":" in terms else {"prices": prices}),
        "seed": seed,
        **settings,
    }
    if in_blocks(str(settings.get("structure", NONE))) or settings.get("by_value"):
        described |= {"worth": WORTH}
    if source := source_of(str(settings.get("score", ""))):
        described |= {"source": source}
    if sample is None:
        return lab.remembered_mask(described, made)
    described |= {"sample": asdict(sample), "task": dict(task.key())}
    seen = Seen.of(sample.of(task), lab.sizes(task)["train"], settings)
    return lab.remembered_mask(described, made, seen=seen, ready=lambda: lab.course(task))
