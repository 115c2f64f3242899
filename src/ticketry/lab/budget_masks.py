"""Masks under a budget: the cost of weights in a task's network, and masks that meet a budget; remembered.

A mask is a pure function of weights, scores, prices and budget. Prices are MACs (multiply-accumulates), counted and not
timed: the same budget gives the same mask on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import prod
from typing import Any

import msgspec

from ticketry.budgets.cost_model import CostModel, Prices
from ticketry.budgets.granularity import NONE, in_blocks
from ticketry.budgets.layer_choice import WORTH
from ticketry.budgets.pruner import budget_pruner
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import ScoreInputs, source_of
from ticketry.core.weight_uses import count_multiplications, countable_parameters
from ticketry.errors import CostError, UsageError
from ticketry.lab.costs.ledger import SeenExamples
from ticketry.lab.lab import Lab
from ticketry.lab.measured_time import met
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Result, Segment
from ticketry.tasks.task import Task


def multiplications(lab: Lab, task: Task) -> dict[str, tuple[int, int]]:
    """Return for each linear and convolution layer the MACs of one element of its weight, and the number of elements.

    For a call with one example. Remembered, so that a finished run needs no data to be reported again.
    """

    def count() -> dict[str, Any]:
        model = lab.model(task)
        found = scope_of(model)
        shapes = {name: tuple(value.shape) for name, value in found.parameters(model).items()}
        known = countable_parameters(model, found)
        layers = scope_of_shapes(model, {name: shapes[name] for name in known})
        prices = count_multiplications(model, layers, lab.course(task).inputs(1)) if known else {}
        return {"layers": {name: [price, prod(shapes[name])] for name, price in prices.items()}}

    layers = lab.store.remembered("prices", digest_of(task.key()), count)["layers"]
    return {name: (int(price), int(size)) for name, (price, size) in layers.items()}


def remember_costs(lab: Lab, task: Task, costs: CostModel, names: Iterable[str]) -> None:
    """Store costs under their digest, for the controls and verdicts of tickets that are found with them.

    Raises:
        CostError: if they are of another network.
    """
    model = lab.model(task)
    sizes = {name: value.numel() for name, value in scope_of(model).parameters(model).items()}
    for name in names:
        if name not in costs.layers or costs.layers[name].weights != sizes.get(name):
            raise CostError(f"the costs are of another network: {name!r} is missing there, or has another size")
    lab.store.remembered("costs", costs.digest, lambda: {"model": msgspec.to_builtins(costs)})


def terms_in(lab: Lab, task: Task, names: Iterable[str], terms: str) -> Prices:
    """Return the prices of weights by the terms of a budget, see `Budget.terms`.

    Raises:
        CostError: for costs that are not in this store.
    """
    _, by_costs, digest = terms.partition(":")
    if not by_costs:
        return prices_of(lab, task, names)
    known = lab.store.memo("costs", digest)
    if known is None:
        raise CostError(
            f"the costs of this ticket's budget ({digest[:8]}) are not in the store: search again in it, with --profile"
        )
    return msgspec.convert(known["model"], CostModel)


def by_timing(terms: str) -> bool:
    """Return whether a budget is met by timing masks on this machine, see `Budget.measured`."""
    return terms.partition(":")[0].endswith("+measured")


def as_asked(lab: Lab, task: Task, prices: Prices, terms: str, share: float, prune: Callable[[float], Mask]) -> Mask:
    """Return the mask of a share by its costs; if the terms say so, the one whose measured latency is nearest.

    Args:
        lab, task: the machine and the network.
        prices: prices of the weights.
        terms: see `Budget.terms`.
        share: the budget.
        prune: share by the costs -> the mask.
    """
    if not by_timing(terms):
        return prune(share)
    assert isinstance(prices, CostModel)
    return met(lab, task, prices, share, prune)


def share_left(lab: Lab, task: Task, kept: Mapping[str, int], terms: str) -> float:
    """Return the share of a budget's costs that remains with this number of single weights in each parameter."""
    prices = terms_in(lab, task, kept, terms)
    if isinstance(prices, CostModel):
        layers = ((layer, kept.get(name, layer.weights)) for name, layer in prices.layers.items())
        return (prices.fixed + sum(layer.at(count / layer.weights) for layer, count in layers)) / prices.dense
    known = multiplications(lab, task)
    whole = sum(prices[name] * known[name][1] for name in kept)
    return sum(prices[name] * count for name, count in kept.items()) / whole


def prices_of(lab: Lab, task: Task, names: Iterable[str]) -> dict[str, int]:
    """Return the price of a weight of each of these parameters: MACs in a call with one example.

    Raises:
        UsageError: for a parameter that is not the weight of a linear or convolution layer.
    """
    known, requested = multiplications(lab, task), list(names)
    if unknown := [name for name in requested if name not in known]:
        raise UsageError(
            f"MACs are counted for linear and convolution layers, not for {', '.join(unknown)}: spare them"
            " (--spare), or give a density"
        )
    return {name: known[name][0] for name in requested}


def dense_multiplications(lab: Lab, task: Task) -> int:
    """Return the MACs of a call of the dense network with one example."""
    return sum(price * size for price, size in multiplications(lab, task).values())


def left_multiplications(lab: Lab, task: Task, mask: Mask) -> int:
    """Return the MACs that remain under a mask, including those of layers that it does not touch."""
    known = multiplications(lab, task)
    kept = {name: int(mask[name].sum()) if name in mask else size for name, (_, size) in known.items()}
    return sum(price * kept[name] for name, (price, _) in known.items())


def multiplications_in(lab: Lab, segment: Segment) -> int:
    """Return the MACs of a call of the network that a segment trains, with one example."""
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
    """Return the digest of the stored mask that meets a budget, chosen by a result's weights. Remembered.

    Args:
        lab, task, result: the network and its weights.
        scope: parameters to prune.
        terms: the quantity of the budget, and its costs, see `Budget.terms`.
        share: the budget.
        within: digest of the mask of the candidates.
        sample: the batches that the score sees, if it needs any.
        seed: for random choices.
        settings: arguments of `budgets.pruner.budget_pruner`.
    """

    prices = terms_in(lab, task, scope, terms)

    def compute_mask() -> Mask:
        base = lab.store.get_mask(within) if within else None
        model, inputs = lab.model(task, result), ScoreInputs(None, None, seed)
        if sample is not None:
            course, model = lab.course(task), model.to(lab.arithmetic(task).device)
            inputs = ScoreInputs(sample.limit_to(task).draw(course, model), course.loss, seed)
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
        return lab.remembered_mask(described, compute_mask)
    described |= {"sample": asdict(sample), "task": dict(task.key())}
    seen = SeenExamples.from_settings(sample.limit_to(task), lab.sizes(task)["train"], settings)
    return lab.remembered_mask(described, compute_mask, seen=seen, ready=lambda: lab.course(task))
