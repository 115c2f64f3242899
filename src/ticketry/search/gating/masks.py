"""Masks and weights from trained gates.

With a budget each gate is charged in the penalty what its weights cost at the margin (`core.gates.Charges`), so that
expensive layers are pruned more. Training does not end exactly at a budget: the ticket's mask therefore retains the
weights with the largest s, over all layers, as many as the budget pays for. Costs influence s already, and count only
once. With `unweighed` all gates cost the same, and only that last step takes the budget into account.
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
from ticketry.search.gating.gating import Gating, attach_gates, gating_of, scope_of_names

if TYPE_CHECKING:
    from ticketry.core.gates import Charges
    from ticketry.core.scope import Scope
    from ticketry.search.common.method import Replicate


def hardened_mask(lab: Lab, result: Result) -> str:
    """Return the digest of the stored mask of a result's gates, 1[s > 0]. Remembered.

    Raises:
        LayerCollapseError: if a parameter has no gate that is on; it says from which step on.
    """

    def compute_mask() -> Mask:
        try:
            return gates_of(lab, result).harden()
        except LayerCollapseError as error:
            raise LayerCollapseError(f"{error}. {_since(result)}") from None

    return _remembered(lab, result, {}, compute_mask)


def allocated_mask(lab: Lab, result: Result, density: float, collapse: str = "raise") -> str:
    """Return the digest of the stored mask of the gates with the largest s; ties by position. Remembered.

    Args:
        collapse: what to do with a parameter that retains none, see `core.allocate`: ``raise`` or ``keep``.

    Raises:
        LayerCollapseError: naming such parameters.
    """

    def compute_mask() -> Mask:
        gates = gates_of(lab, result)
        try:
            return gates.allocate(density, collapse=collapse)
        except LayerCollapseError as error:
            raise LayerCollapseError(
                f"{error.what} after {result.segment.steps} steps of mask training",
                "choose a higher density, spare the layer, train masks for longer",
                keep="keep one weight of it",
                by="collapse keep",
            ) from None

    return _remembered(lab, result, {"density": density, "collapse": collapse}, compute_mask)


def cut_mask(lab: Lab, result: Result, density: float, *, keep_at_least: int = 1, multiple: int = 1) -> str:
    """Return the digest of the stored mask of the channels whose gates have the largest s, near `density`. Remembered.

    Args:
        keep_at_least, multiple: see `structure.channels`.

    Raises:
        LayerCollapseError: if it cannot be reached.
    """
    task, gating = result.segment.task, gating_of(result.segment)

    def compute_mask() -> Mask:
        model = rebuild_model(task, lab.state(result))
        scores = [s.detach() for s in gates_of(lab, result, model).parameters()]
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
    return _remembered(lab, result, described, compute_mask)


def _remembered(lab: Lab, result: Result, described: Mapping[str, Any], compute: Callable[[], Mask]) -> str:
    return lab.load_or_compute_mask(
        {"gates": result.variants[Gating.name], "of": result.segment.key, **described}, compute
    )


def hardened_weights(lab: Lab, result: Result) -> str:
    """Return the digest of the stored state of the hard network: weights times hard gates, as `Result.metrics` are."""
    model = rebuild_model(result.segment.task, lab.state(result))
    gates = gates_of(lab, result, model)
    gates.detach(apply=True)
    return lab.store.put_tensors(copy_state(model))


def gates_of(lab: Lab, result: Result, model: nn.Module | None = None) -> Gates:
    """Return the gates of a result, on a model of its task with its weights."""
    segment, gating = result.segment, gating_of(result.segment)
    model = model or rebuild_model(segment.task, lab.state(result))
    mask = lab.store.get_mask(segment.mask) if segment.mask else None
    tensors = lab.store.get_tensors(result.variants[Gating.name])
    gates = attach_gates(gating, model, mask, tensors, lambda: lab.structure(segment.task))
    gates.anneal(gating.progress(segment.last, total=segment.total, per_epoch=segment.per_epoch))
    return gates


def _since(result: Result) -> str:
    """Return the step since which each empty parameter has been empty, as far as counted."""
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
    """Return the prices of `Gating`, as its keywords: none without a budget, or if all gates cost the same.

    Raises:
        UsageError: for a budget that pays for no single weight.
    """
    if not settings.budget:
        return {}
    gate_target(replicate, settings, scope, min(settings.budget.shares))
    if settings.unweighed:
        return {}
    return {"prices": tuple((curve.densities, curve.costs) for curve in _charges(replicate, settings, scope).curves)}


def gate_target(replicate: Replicate, settings: PruningSettings, scope: Scope, share: float) -> tuple[float, float]:
    """Return the target of the gates and the density at which every layer begins.

    For a density both are that; for a budget the target is a share of all charges.

    Raises:
        UsageError: for a budget that pays for no single weight.
    """
    from ticketry.core.gates.charges import share_above_floor
    from ticketry.lab.budget_masks import load_prices

    if not settings.budget:
        return share, share
    prices = load_prices(replicate.lab, replicate.task, scope, settings.budget.terms)
    left = share_above_floor(prices, scope.sizes, share)
    density = _charges(replicate, settings, scope).density_for(left)
    return density if settings.unweighed else left, density


def budget_left(lab: Lab, result: Result, terms: str) -> float:
    """Return the share of the budget's costs that the hard gates of a result leave."""
    from ticketry.lab.budget_masks import remaining_share

    return remaining_share(lab, result.segment.task, gates_of(lab, result).kept(), terms)


def budget_mask(lab: Lab, result: Result, settings: PruningSettings, share: float, collapse: str = "raise") -> str:
    """Return the digest of the stored mask of the gates with the largest s that a budget pays for. Remembered.

    Raises:
        LayerCollapseError: naming parameters that retain none, unless `collapse` is ``keep``.
    """
    from ticketry.budgets.pruner import allocate_budget
    from ticketry.lab.budget_masks import load_prices, prune_to_share

    terms, task, least = settings.budget_terms, result.segment.task, int(collapse == "keep")

    def compute_mask() -> Mask:
        scores = gates_of(lab, result).by_weight()
        prices = load_prices(lab, task, scores, terms)

        def cut(of: float) -> Mask:
            return allocate_budget(scores, prices, of, weighed=False, keep_at_least=least)

        try:
            return prune_to_share(lab, task, prices, terms, share, cut)
        except LayerCollapseError as error:
            where = f"{settings.goal(share)}, of the gates after {result.segment.steps} steps"
            raise error.with_keep_argument("collapse=keep").with_prefix(where) from None

    return _remembered(lab, result, {"budget": {"of": terms, "share": share}, "collapse": collapse}, compute_mask)


def _charges(replicate: Replicate, settings: PruningSettings, scope: Scope) -> Charges:
    from ticketry.core.gates import Charges
    from ticketry.lab.budget_masks import load_prices

    return Charges.by(load_prices(replicate.lab, replicate.task, scope, settings.budget_terms), scope.sizes)
