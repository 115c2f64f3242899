"""Masks and weights that follow from trained gates.

A gate is on if its value s is above 0. Under a cost budget the penalty of each gate is the marginal cost of its weights
(`core.gates.Charges`), so that expensive layers are pruned more. Training does not end exactly at the budget, so the
ticket's mask retains the weights with the largest s over all layers, as many as the budget allows. With `unweighed` all
gates have the same penalty, and costs affect only this choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ticketry.core.gates import Gates
from ticketry.core.mask import Mask
from ticketry.core.structure.channel_masks import prune_channels_by_scores
from ticketry.errors import LayerCollapseError
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.lab.training.state import copy_state, rebuild_model
from ticketry.search.common.settings import PruningSettings
from ticketry.search.gating.gating import Gating, attach_gates, get_gating, scope_of_names

if TYPE_CHECKING:
    from ticketry.core.gates import Charges
    from ticketry.core.scope import Scope
    from ticketry.search.common.method import Replicate


def mask_of_open_gates(lab: Lab, result: Result) -> str:
    """Store the mask that retains the weights whose gates have s > 0, and return the mask's digest (cached).

    Raises:
        LayerCollapseError: if a parameter has no open gate; the message says since which step.
    """

    def compute_mask() -> Mask:
        try:
            return load_gates(lab, result).harden()
        except LayerCollapseError as error:
            raise LayerCollapseError(f"{error}. {_describe_empty_since(result)}") from None

    return _cached_mask(lab, result, {}, compute_mask)


def mask_of_largest_gates(lab: Lab, result: Result, density: float, collapse: str = "raise") -> str:
    """Store the mask of a density that retains the weights with the largest s; return the mask's digest (cached).

    Weights with equal s are retained in the order of their positions.

    Args:
        result: result of the training with gates.
        density: density of the mask.
        collapse: what happens if a parameter would lose all weights: ``raise`` an error, or ``keep`` one weight.

    Raises:
        LayerCollapseError: if a parameter would lose all weights and `collapse` is ``raise``; the message names these
            parameters.
    """

    def compute_mask() -> Mask:
        gates = load_gates(lab, result)
        try:
            return gates.allocate(density, collapse=collapse)
        except LayerCollapseError as error:
            raise LayerCollapseError(
                f"{error.what} after {result.segment.steps} steps of mask training",
                "choose a higher density, spare the layer, train masks for longer",
                keep="keep one weight of it",
                by="collapse keep",
            ) from None

    return _cached_mask(lab, result, {"density": density, "collapse": collapse}, compute_mask)


def mask_of_largest_channel_gates(
    lab: Lab, result: Result, density: float, *, keep_at_least: int = 1, multiple: int = 1
) -> str:
    """Store the mask of the channels with the largest s, nearest to a density; return the mask's digest (cached).

    Args:
        keep_at_least, multiple: minimum number of channels of each group, and the number that each group which loses
            channels retains a multiple of.

    Raises:
        LayerCollapseError: if the density cannot be reached.
    """
    task, gating = result.segment.task, get_gating(result.segment)

    def compute_mask() -> Mask:
        model = rebuild_model(task, lab.state(result))
        scores = [s.detach() for s in load_gates(lab, result, model).parameters()]
        chosen = scope_of_names(model, gating.scope)
        return prune_channels_by_scores(
            model,
            lab.structure(task),
            scores,
            density,
            scope=chosen,
            keep_at_least=keep_at_least,
            multiple=multiple,
        )

    described = {"density": density, "structured": True, "keep_at_least": keep_at_least, "multiple": multiple}
    return _cached_mask(lab, result, described, compute_mask)


def _cached_mask(lab: Lab, result: Result, described: Mapping[str, Any], compute: Callable[[], Mask]) -> str:
    return lab.load_or_compute_mask(
        {"gates": result.variants[Gating.name], "of": result.segment.key, **described}, compute
    )


def weights_times_hard_gates(lab: Lab, result: Result) -> str:
    """Store the network's state after multiplying weights by gates rounded to 0 or 1; return the state's digest."""
    model = rebuild_model(result.segment.task, lab.state(result))
    gates = load_gates(lab, result, model)
    gates.detach(apply=True)
    return lab.store.put_tensors(copy_state(model))


def load_gates(lab: Lab, result: Result, model: nn.Module | None = None) -> Gates:
    """Attach a result's trained gates to `model` (by default a new model with the result's weights); return them."""
    segment, gating = result.segment, get_gating(result.segment)
    model = model or rebuild_model(segment.task, lab.state(result))
    mask = lab.store.get_mask(segment.mask) if segment.mask else None
    tensors = lab.store.get_tensors(result.variants[Gating.name])
    gates = attach_gates(gating, model, mask, tensors, lambda: lab.structure(segment.task))
    gates.anneal(gating.annealing_progress(segment.last, total=segment.total, per_epoch=segment.per_epoch))
    return gates


def _describe_empty_since(result: Result) -> str:
    """Describe, for each parameter without open gates, from which recorded step on all its gates were closed."""
    segment, record = result.segment, result.record["gating"]
    parts = []
    for column, name in enumerate(record["names"], start=1):
        counts = [(row[0], row[column]) for row in record["kept"]]
        if not counts or counts[-1][1]:
            continue
        alive = [step for step, count in counts if count]
        since = next(step for step, _ in counts if not alive or step > alive[-1])
        parts.append(
            f"{name!r} has been empty from step {since} of {segment.total} (epoch {since / segment.per_epoch:.2f})"
            f" of round {record['round']} on"
        )
    return "; ".join(parts)


# -- under a budget ----------------------------------------------------------------------------------------------------


def gate_prices(replicate: Replicate, settings: PruningSettings, scope: Scope) -> dict[str, Any]:
    """Return the argument `prices` of `Gating` as {name: value}; empty if all gates have the same penalty.

    Raises:
        UsageError: for a budget below the cost of any mask.
    """
    if not settings.budget:
        return {}
    gate_targets(replicate, settings, scope, min(settings.budget.shares))
    if settings.unweighed:
        return {}
    return {
        "prices": tuple((curve.densities, curve.costs) for curve in _gate_charges(replicate, settings, scope).curves)
    }


def gate_targets(replicate: Replicate, settings: PruningSettings, scope: Scope, share: float) -> tuple[float, float]:
    """Return (target to which gates are steered, initial expected density of every layer).

    Without a budget both are the density `share`. With a budget the target is a share of the gates' total cost.

    Raises:
        UsageError: for a budget below the cost of any mask.
    """
    from ticketry.core.gates.charges import share_above_floor
    from ticketry.lab.budget_masks import load_prices

    if not settings.budget:
        return share, share
    prices = load_prices(replicate.lab, replicate.task, scope, settings.budget.terms)
    left = share_above_floor(prices, scope.sizes, share)
    density = _gate_charges(replicate, settings, scope).density_for(left)
    return density if settings.unweighed else left, density


def budget_share_left(lab: Lab, result: Result, terms: str) -> float:
    """Return the cost of the network with gates rounded to on or off, as a share of the dense cost.

    Args:
        result: result of the training with gates.
        terms: `Budget.terms` of the budget.
    """
    from ticketry.lab.budget_masks import remaining_share

    return remaining_share(lab, result.segment.task, load_gates(lab, result).kept(), terms)


def mask_within_budget(
    lab: Lab, result: Result, settings: PruningSettings, share: float, collapse: str = "raise"
) -> str:
    """Store the mask of the weights with the largest s that meets a cost budget; return the mask's digest (cached).

    Raises:
        LayerCollapseError: if a parameter would lose all weights and `collapse` is ``raise``; the message names these
            parameters.
    """
    from ticketry.budgets.pruner import allocate_budget
    from ticketry.lab.budget_masks import load_prices, prune_to_share

    terms, task, least = settings.budget_terms, result.segment.task, int(collapse == "keep")

    def compute_mask() -> Mask:
        scores = load_gates(lab, result).by_weight()
        prices = load_prices(lab, task, scores, terms)

        def allocate(cost_share: float) -> Mask:
            return allocate_budget(scores, prices, cost_share, weighed=False, keep_at_least=least)

        try:
            return prune_to_share(lab, task, prices, terms, share, allocate)
        except LayerCollapseError as error:
            where = f"{settings.describe_target(share)}, of the gates after {result.segment.steps} steps"
            raise error.with_keep_argument("collapse=keep").with_prefix(where) from None

    return _cached_mask(lab, result, {"budget": {"of": terms, "share": share}, "collapse": collapse}, compute_mask)


def _gate_charges(replicate: Replicate, settings: PruningSettings, scope: Scope) -> Charges:
    from ticketry.core.gates import Charges
    from ticketry.lab.budget_masks import load_prices

    return Charges.by(load_prices(replicate.lab, replicate.task, scope, settings.budget_terms), scope.sizes)
