"""Compute masks for a budget, for a measured latency or with a structure; store and reuse the results.

Masks for estimated costs depend only on weights, scores, prices and the budget, so they are the same on every machine.
Seconds differ from run to run, so the key of a measured latency contains no seconds. It contains the mask or network
that was timed, and the cost model, which names the machine, batch size, threads and precision.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ticketry.budgets.cost_model import CostModel, Prices
from ticketry.budgets.layer_choice import WORTH
from ticketry.budgets.pruner import budget_pruner
from ticketry.budgets.units import NONE, retains_whole_blocks
from ticketry.core.mask import Mask
from ticketry.core.model_calls import count_multiplications, countable_parameters
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import ScoreInputs, source_of
from ticketry.core.structure import coverage, together
from ticketry.core.structure.apply import apply_structuring, channel_score_needs_data
from ticketry.core.structure.pattern import Structuring
from ticketry.errors import CostError, UsageError
from ticketry.lab.costs.ledger import Sample, SeenExamples
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds, Structured
from ticketry.lab.store.store import NUMERICS, digest_of
from ticketry.lab.training.segment import Result, Segment
from ticketry.lab.training.state import rebuild_model
from ticketry.lab.training.variants import FOLLOWED
from ticketry.records.network import RelativeLatency
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import generator

if TYPE_CHECKING:
    from ticketry.budgets.timing import Meter


def macs_by_layer(lab: Lab, task: Task) -> dict[str, tuple[int, int]]:
    """Return, for each linear and convolution layer, its MACs per weight for one example, and its number of weights."""

    def count_macs() -> dict[str, Any]:
        model = lab.model(task)
        found = scope_of(model)
        shapes = {name: tuple(value.shape) for name, value in found.parameters(model).items()}
        known = countable_parameters(model, found)
        layers = scope_of_shapes(model, {name: shapes[name] for name in known})
        prices = count_multiplications(model, layers, lab.course(task).inputs(1)) if known else {}
        return {"layers": {name: [price, prod(shapes[name])] for name, price in prices.items()}}

    layers = lab.store.load_or_compute("prices", digest_of(task.key()), count_macs)["layers"]
    return {name: (int(price), int(size)) for name, (price, size) in layers.items()}


def store_costs(lab: Lab, task: Task, costs: CostModel, names: Iterable[str]) -> None:
    """Store measured costs of weights; raise `CostError` if they do not fit the parameters `names` of the task."""
    model = lab.model(task)
    sizes = {name: value.numel() for name, value in scope_of(model).parameters(model).items()}
    for name in names:
        if name not in costs.layers or costs.layers[name].weights != sizes.get(name):
            raise CostError(f"the costs are of another network: {name!r} is missing there, or has another size")
    lab.store.load_or_compute("costs", costs.digest, lambda: {"model": msgspec.to_builtins(costs)})


def load_weight_prices(lab: Lab, task: Task, names: Iterable[str], terms: str) -> Prices:
    """Return the price of each weight of the parameters `names`: stored measured costs, or by default MACs.

    `terms` says what the budget limits, and contains the digest of stored costs (see `Budget.cache_key`).
    """
    _, by_costs, digest = terms.partition(":")
    if not by_costs:
        return macs_per_weight(lab, task, names)
    known = lab.store.load_memo("costs", digest)
    if known is None:
        raise CostError(
            f"the costs of this ticket's budget ({digest[:8]}) are not in the store: search again in it, with --profile"
        )
    return msgspec.convert(known["model"], CostModel)


def is_budget_timed(terms: str) -> bool:
    """Return whether a budget requires that masks are timed on this machine; `terms` is the budget's `cache_key`."""
    return terms.partition(":")[0].endswith("+measured")


def prune_to_cost_share(
    lab: Lab, task: Task, prices: Prices, terms: str, share: float, prune: Callable[[float], Mask]
) -> Mask:
    """Return a mask that meets a budget: the `share` of the dense network's cost, which is estimated or timed.

    Args:
        terms: the quantity that the budget limits, and whether masks are timed, see `Budget.cache_key`.
        prune: returns the mask for a share of the estimated costs. Without timing it is called once, with `share`.
            With timing it is called with several shares, until the measured latency is near `share`.
    """
    if not is_budget_timed(terms):
        return prune(share)
    from ticketry.budgets.latency import meet_share

    costs = prices
    assert isinstance(costs, CostModel)
    with _TIMING:
        return meet_share(
            _build_meter(lab, task, costs), costs, share, lambda budget: prune(min(1.0, budget / costs.dense))
        ).mask


def remaining_cost_share(lab: Lab, task: Task, kept: Mapping[str, int], terms: str) -> float:
    """Return the cost of a masked network as a share of the dense network's cost.

    `kept` is the number of weights that each parameter retains; `terms` (`Budget.cache_key`) names the kind of cost.
    """
    prices = load_weight_prices(lab, task, kept, terms)
    if isinstance(prices, CostModel):
        layers = ((layer, kept.get(name, layer.weights)) for name, layer in prices.layers.items())
        return (prices.fixed + sum(layer.at(count / layer.weights) for layer, count in layers)) / prices.dense
    known = macs_by_layer(lab, task)
    whole = sum(prices[name] * known[name][1] for name in kept)
    return sum(prices[name] * count for name, count in kept.items()) / whole


def macs_per_weight(lab: Lab, task: Task, names: Iterable[str]) -> dict[str, int]:
    """Return, for each parameter in `names`, the MACs per weight element and example."""
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
    """Compute the mask that meets a budget, store it, and return its digest. A later call returns the stored digest.

    Args:
        terms: the quantity that the budget limits, see `Budget.cache_key`.
        share: the budget, as a share of the dense network's costs.
        within: digest of a mask; only weights that it retains can be chosen.
        sample: the batches on which the score is computed; None for scores without data.
        settings: further arguments of `budgets.pruner.budget_pruner`.
    """

    prices = load_weight_prices(lab, task, scope, terms)

    def compute_mask() -> Mask:
        base = lab.store.get_mask(within) if within else None
        model, inputs = lab.model(task, result), ScoreInputs(None, None, seed)
        if sample is not None:
            course, model = lab.course(task), model.to(lab.arithmetic(task).device)
            inputs = ScoreInputs(sample.limit_batch_size_to_task(task).draw(course, model), course.loss, seed)
        prune = budget_pruner(model, scope, prices, within=base, inputs=inputs, **settings)
        return prune_to_cost_share(lab, task, prices, terms, share, prune)

    described = {
        "state": result.model,
        "within": within,
        "scope": list(scope),
        "budget": {"of": terms, "share": share} | ({} if ":" in terms else {"prices": prices}),
        "seed": seed,
        **settings,
    }
    if retains_whole_blocks(str(settings.get("structure", NONE))) or settings.get("by_value"):
        described |= {"worth": WORTH}
    if source := source_of(str(settings.get("score", ""))):
        described |= {"source": source}
    if sample is None:
        return lab.load_or_compute_mask(described, compute_mask)
    described |= {"sample": asdict(sample), "task": dict(task.key())}
    seen = SeenExamples.from_settings(sample.limit_batch_size_to_task(task), lab.sizes(task)["train"], settings)
    return lab.load_or_compute_mask(described, compute_mask, seen=seen, ready=lambda: lab.course(task))


# -- measured latency --------------------------------------------------------------------------------------------------


_TIMING = threading.Lock()
"""Lock that allows only one thread at a time to measure: the repetitions of a search run as threads of one process."""

_ROUNDS = 11
"""Number of timed rounds, as in `tk.cost.meet`."""


def check_measurable_here(costs: CostModel) -> None:
    """Raise `CostError` unless masks can be timed here: `costs` were measured in seconds on this machine.

    Their number of threads must not exceed the number of cores.
    """
    from ticketry_engine.bench.timing import describe_machine_difference

    if costs.unit != "seconds":
        raise CostError(f"a latency is measured with costs in seconds, not in {costs.unit}")
    if other := describe_machine_difference(costs.about):
        raise CostError(
            f"the costs are of another machine ({other}): nothing can be timed for them here, leave out measured"
            " and dense_of_time, or search there"
        )
    threads, cores = int(costs.about.get("threads", 1)), os.cpu_count() or 1
    if threads > cores:
        raise CostError(
            f"the costs are of {threads} threads, and this machine has {cores} processors: measure costs again with"
            f" threads={cores} or fewer (tk.cost.model), or leave out measured and dense_of_time"
        )


def check_new_costs(lab: Lab, costs: CostModel) -> None:
    """Raise `CostError` if masks cannot be timed with `costs` on this machine; stored costs are not checked."""
    if lab.store.load_memo("costs", costs.digest) is None:
        check_measurable_here(costs)


def measure_masked_latency(lab: Lab, task: Task, mask: Mask, costs: CostModel) -> RelativeLatency:
    """Return the latency of the masked network divided by that of the dense network; it is measured unless stored."""
    return _load_or_measure(lab, task, costs, {"mask": mask.digest}, lambda meter: meter.compiled(mask))


def measure_dense_latency(lab: Lab, rival: Task, task: Task, costs: CostModel) -> RelativeLatency:
    """Return the latency of the dense network of `rival`, divided by the latency of the dense network of `task`."""
    described = {"network": dict(rival.key())}
    return _load_or_measure(lab, task, costs, described, lambda _: _build_meter(lab, rival, costs).compiled())


def _load_or_measure(
    lab: Lab, task: Task, costs: CostModel, described: dict[str, Any], compile_network: Callable[[Meter], Any]
) -> RelativeLatency:
    """Return the latency of the network that `described` identifies, relative to the dense network of `task`."""

    def measure_share() -> dict[str, Any]:
        with _TIMING:
            meter = _build_meter(lab, task, costs)
            found = meter.time_share(compile_network(meter), _ROUNDS)
        return {"share": found.median, "low": found.low, "high": found.high}

    key = digest_of({"task": dict(task.key()), "costs": costs.digest, **described})
    return RelativeLatency(**lab.store.load_or_compute("times", key, measure_share))


def _build_meter(lab: Lab, task: Task, costs: CostModel) -> Meter:
    from ticketry.budgets.timing import Meter
    from ticketry_engine.example_inputs import batch_size_of

    check_measurable_here(costs)
    batch = int(costs.about.get("batch", 1))
    inputs = lab.course(task).inputs(batch)
    if (examples := batch_size_of(inputs)) < batch:
        raise CostError(f"the costs are of batches of {batch}, and {task.name} has {examples} training examples")
    model = randomise_parameters_with_zeros(lab.model(task))
    threads, precision = int(costs.about.get("threads", 1)), str(costs.about.get("precision", "fp32"))
    return Meter(model, inputs, threads, precision, scope_of(model))


def randomise_parameters_with_zeros(model: nn.Module) -> nn.Module:
    """Give small random values to parameters that contain a zero, so that no kernel skips zeros; return the model."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if not bool(parameter.all()):
                parameter.copy_(torch.empty(parameter.shape).uniform_(0.01, 0.1, generator=generator(0, "time", index)))
    return model.eval()


# -- structured masks --------------------------------------------------------------------------------------------------


def structured_mask(lab: Lab, task: Task, found: Result, mask: str, by: Structuring, seeds: Seeds) -> str:
    """Derive a structured mask from an unstructured mask by the method `by`, store it, and return its digest.

    `mask` is the digest of the unstructured mask; `found` is the result whose weights the method may use.
    """
    sample = Sample(seed=seeds.mask) if channel_score_needs_data(by) else None

    def compute_mask() -> Mask:
        course, model, seen = lab.course(task), lab.model(task, found), dict[str, Any]()
        inputs = course.inputs(FOLLOWED)
        if sample is not None:
            model = model.to(lab.arithmetic(task).device)
            inputs = tree_map_only(Tensor, lambda one: one.to(lab.arithmetic(task).device), inputs)
            seen = {"batches": sample.draw(course, model), "loss": course.loss}
        known = lab.structure(task) if by.whole_channels else None
        return apply_structuring(by, model, lab.store.get_mask(mask), inputs, seed=seeds.mask, structure=known, **seen)

    described = {
        "structure": by.describe(),
        "state": found.model,
        "of": mask,
        "task": dict(task.key()),
        "seed": seeds.mask,
        **({"sample": asdict(sample)} if sample else {}),
    }
    seen = SeenExamples.from_settings(sample, lab.sizes(task)["train"], {"score": by.score}) if sample else None
    return lab.load_or_compute_mask(described, compute_mask, seen=seen, ready=lambda: lab.course(task))


def compute_layer_fits(lab: Lab, task: Task, structured: Structured, mask: str) -> list[dict[str, Any]]:
    """Return, for each layer and in total, how much of an unstructured mask a structured mask retains (`LayerFit`).

    `structured` says how the structured mask was derived; `mask` is its digest.
    """
    key = digest_of({"numerics": NUMERICS, "coverage": mask, "of": structured.of, "state": structured.weights})

    def compute_fits() -> dict[str, Any]:
        model = rebuild_model(task, lab.store.get_tensors(structured.weights))
        before, after = lab.store.get_mask(structured.of), lab.store.get_mask(mask)
        found = coverage(model, before, after, null=structured.by.kind == "regroup")
        return {"layers": [one.as_json() for one in (*found.values(), together(found))]}

    return list(lab.store.load_or_compute("coverage", key, compute_fits)["layers"])
