"""Compute masks that meet a cost budget, and the cost of each weight of a task's network; store and reuse the results.

A mask depends only on the weights, their scores, their prices and the budget. By default a price is a number of MACs
(multiply-accumulates); MACs are counted and not timed, so the same budget gives the same mask on every machine.
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
from ticketry.core.model_calls import count_multiplications, countable_parameters
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import ScoreInputs, source_of
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

    MACs are counted for one example. The result is stored, so a later report on the task needs no training data.
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
    """Store the cost model `costs` under its digest, for later calls of `load_prices`.

    Args:
        lab, task: the store and the network.
        costs: the cost model.
        names: parameters that `costs` must include with their current sizes.

    Raises:
        CostError: if `costs` lacks one of the parameters, or has another size for it.
    """
    model = lab.model(task)
    sizes = {name: value.numel() for name, value in scope_of(model).parameters(model).items()}
    for name in names:
        if name not in costs.layers or costs.layers[name].weights != sizes.get(name):
            raise CostError(f"the costs are of another network: {name!r} is missing there, or has another size")
    lab.store.load_or_compute("costs", costs.digest, lambda: {"model": msgspec.to_builtins(costs)})


def load_prices(lab: Lab, task: Task, names: Iterable[str], terms: str) -> Prices:
    """Return the MACs of each weight or, if `terms` contain the digest of a cost model, that model from the store.

    Args:
        lab, task: the store and the network.
        names: parameters whose MACs are returned.
        terms: the quantity that the budget limits, see `Budget.terms`.

    Raises:
        CostError: if the cost model is not in the store.
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
    """Return whether the `terms` of a budget ask that masks be timed on this machine, see `Budget.measured`."""
    return terms.partition(":")[0].endswith("+measured")


def prune_to_share(
    lab: Lab, task: Task, prices: Prices, terms: str, share: float, prune: Callable[[float], Mask]
) -> Mask:
    """Return the mask that meets a budget, by estimated costs or by timing.

    Args:
        lab, task: the store and the network.
        prices: prices of the weights.
        terms: the quantity that the budget limits, and whether masks are timed, see `Budget.terms`.
        share: the budget, as a share of the dense network's costs.
        prune: returns the mask for a share of the estimated costs. Without timing it is called once, with `share`.
            With timing it is called with several shares, until the measured latency is near `share`.
    """
    if not is_met_by_timing(terms):
        return prune(share)
    assert isinstance(prices, CostModel)
    return prune_to_latency(lab, task, prices, share, prune)


def remaining_share(lab: Lab, task: Task, kept: Mapping[str, int], terms: str) -> float:
    """Return the cost of a pruned network as a share of the dense network's cost.

    Args:
        lab, task: the store and the network.
        kept: number of retained weights of each parameter.
        terms: the quantity that counts as cost, see `Budget.terms`.
    """
    prices = load_prices(lab, task, kept, terms)
    if isinstance(prices, CostModel):
        layers = ((layer, kept.get(name, layer.weights)) for name, layer in prices.layers.items())
        return (prices.fixed + sum(layer.at(count / layer.weights) for layer, count in layers)) / prices.dense
    known = macs_by_layer(lab, task)
    whole = sum(prices[name] * known[name][1] for name in kept)
    return sum(prices[name] * count for name, count in kept.items()) / whole


def macs_per_weight(lab: Lab, task: Task, names: Iterable[str]) -> dict[str, int]:
    """Return, for each parameter in `names`, the MACs per weight element and example.

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
    """Return the MACs of the masked network for one example; layers without a mask count in full."""
    known = macs_by_layer(lab, task)
    kept = {name: int(mask[name].sum()) if name in mask else size for name, (_, size) in known.items()}
    return sum(price * kept[name] for name, (price, _) in known.items())


def segment_macs(lab: Lab, segment: Segment) -> int:
    """Return the MACs for one example of the network that `segment` trains, dense or masked."""
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
    """Compute the mask that meets a budget, store it, and return its digest; a later call only looks the digest up.

    Args:
        lab, task: the store and the network.
        result: its weights are scored.
        scope: parameters to prune.
        terms: the quantity that the budget limits, see `Budget.terms`.
        share: the budget, as a share of the dense network's costs.
        within: digest of a mask; only weights that it retains can be chosen.
        sample: the batches on which the score is computed; None for scores without data.
        seed: seed of random choices.
        settings: further arguments of `budgets.pruner.budget_pruner`.
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
