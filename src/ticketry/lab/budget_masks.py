"""Masks that meet a cost budget, and the cost of each weight of a task's network; both are stored and reused.

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
from ticketry.lab.measured_time import prune_to_latency
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Result, Segment
from ticketry.tasks.task import Task


def macs_by_layer(lab: Lab, task: Task) -> dict[str, tuple[int, int]]:
    """Return for each linear and convolution layer the MACs per weight element and the number of elements.

    MACs are counted for one example. The result is stored, so that a finished run can be reported without its data.
    """

    def count() -> dict[str, Any]:
        model = lab.model(task)
        found = scope_of(model)
        shapes = {name: tuple(value.shape) for name, value in found.parameters(model).items()}
        known = countable_parameters(model, found)
        layers = scope_of_shapes(model, {name: shapes[name] for name in known})
        prices = count_multiplications(model, layers, lab.course(task).inputs(1)) if known else {}
        return {"layers": {name: [price, prod(shapes[name])] for name, price in prices.items()}}

    layers = lab.store.load_or_compute("prices", digest_of(task.key()), count)["layers"]
    return {name: (int(price), int(size)) for name, (price, size) in layers.items()}


def store_costs(lab: Lab, task: Task, costs: CostModel, names: Iterable[str]) -> None:
    """Store a cost model under its digest, so that controls and verdicts of tickets can load it.

    Raises:
        CostError: if the cost model belongs to another network.
    """
    model = lab.model(task)
    sizes = {name: value.numel() for name, value in scope_of(model).parameters(model).items()}
    for name in names:
        if name not in costs.layers or costs.layers[name].weights != sizes.get(name):
            raise CostError(f"the costs are of another network: {name!r} is missing there, or has another size")
    lab.store.load_or_compute("costs", costs.digest, lambda: {"model": msgspec.to_builtins(costs)})


def load_prices(lab: Lab, task: Task, names: Iterable[str], terms: str) -> Prices:
    """Return the prices of weights for the terms of a budget, see `Budget.terms`.

    Raises:
        CostError: if the terms name costs that are not in the store.
    """
    _, by_costs, digest = terms.partition(":")
    if not by_costs:
        return macs_per_weight(lab, task, names)
    known = lab.store.memo("costs", digest)
    if known is None:
        raise CostError(
            f"the costs of this ticket's budget ({digest[:8]}) are not in the store: search again in it, with --profile"
        )
    return msgspec.convert(known["model"], CostModel)


def is_met_by_timing(terms: str) -> bool:
    """Return whether masks for a budget are chosen by timing them on this machine, see `Budget.measured`."""
    return terms.partition(":")[0].endswith("+measured")


def prune_to_share(
    lab: Lab, task: Task, prices: Prices, terms: str, share: float, prune: Callable[[float], Mask]
) -> Mask:
    """Return the mask with this share of the costs; if the terms ask for timing, the one with the nearest measured
    latency.

    Args:
        lab, task: the machine and the network.
        prices: prices of the weights.
        terms: see `Budget.terms`.
        share: the budget, as a share of the dense network's costs.
        prune: returns the mask for a share of the estimated costs.
    """
    if not is_met_by_timing(terms):
        return prune(share)
    assert isinstance(prices, CostModel)
    return prune_to_latency(lab, task, prices, share, prune)


def remaining_share(lab: Lab, task: Task, kept: Mapping[str, int], terms: str) -> float:
    """Return the remaining share of a budget's costs, given the number of retained weights in each parameter."""
    prices = load_prices(lab, task, kept, terms)
    if isinstance(prices, CostModel):
        layers = ((layer, kept.get(name, layer.weights)) for name, layer in prices.layers.items())
        return (prices.fixed + sum(layer.at(count / layer.weights) for layer, count in layers)) / prices.dense
    known = macs_by_layer(lab, task)
    whole = sum(prices[name] * known[name][1] for name in kept)
    return sum(prices[name] * count for name, count in kept.items()) / whole


def macs_per_weight(lab: Lab, task: Task, names: Iterable[str]) -> dict[str, int]:
    """Return the MACs that one weight of each of these parameters costs, for one example.

    Raises:
        UsageError: for a parameter that is not the weight of a linear or convolution layer.
    """
    known, requested = macs_by_layer(lab, task), list(names)
    if unknown := [name for name in requested if name not in known]:
        raise UsageError(
            f"MACs are counted for linear and convolution layers, not for {', '.join(unknown)}: spare them"
            " (--spare), or give a density"
        )
    return {name: known[name][0] for name in requested}


def dense_macs(lab: Lab, task: Task) -> int:
    """Return the MACs of the dense network for one example."""
    return sum(price * size for price, size in macs_by_layer(lab, task).values())


def remaining_macs(lab: Lab, task: Task, mask: Mask) -> int:
    """Return the MACs of the masked network for one example, including layers without a mask."""
    known = macs_by_layer(lab, task)
    kept = {name: int(mask[name].sum()) if name in mask else size for name, (_, size) in known.items()}
    return sum(price * kept[name] for name, (price, _) in known.items())


def segment_macs(lab: Lab, segment: Segment) -> int:
    """Return the MACs for one example of the network that a segment trains."""
    if segment.mask is None:
        return dense_macs(lab, segment.task)
    return remaining_macs(lab, segment.task, lab.store.get_mask(segment.mask))


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
    """Return the digest of the stored mask that meets a budget, scored on the weights of a result. Computed once per
    store.

    Args:
        lab, task, result: the network and its weights.
        scope: parameters to prune.
        terms: the quantity of the budget, and its costs, see `Budget.terms`.
        share: the budget, as a share of the dense network's costs.
        within: digest of a mask; only weights that it retains can be chosen.
        sample: the batches for scores that need data.
        seed: for random choices.
        settings: arguments of `budgets.pruner.budget_pruner`.
    """

    prices = load_prices(lab, task, scope, terms)

    def compute_mask() -> Mask:
        base = lab.store.get_mask(within) if within else None
        model, inputs = lab.model(task, result), ScoreInputs(None, None, seed)
        if sample is not None:
            course, model = lab.course(task), model.to(lab.arithmetic(task).device)
            inputs = ScoreInputs(sample.limit_to(task).draw(course, model), course.loss, seed)
        prune = budget_pruner(model, scope, prices, within=base, inputs=inputs, **settings)
        return prune_to_share(lab, task, prices, terms, share, prune)

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
        return lab.load_or_compute_mask(described, compute_mask)
    described |= {"sample": asdict(sample), "task": dict(task.key())}
    seen = SeenExamples.from_settings(sample.limit_to(task), lab.sizes(task)["train"], settings)
    return lab.load_or_compute_mask(described, compute_mask, seen=seen, ready=lambda: lab.course(task))
