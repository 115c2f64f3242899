"""Gates under a budget: what each is charged, what a round leaves of the budget, and the mask that spends it.

Gates are charged in the penalty what their weights cost at the margin (`core.gates.Charges`), so that the layers whose
weights are dear are thinned out first. Where training ends is not where a budget is: the ticket's mask therefore keeps
the weights with the largest s, over all layers, as many as the budget pays for. Costs are in s already, and count once.
With `unweighed` all gates are charged alike, and only that cut looks at the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ticketry.search.common.aims import Aimed, goal

if TYPE_CHECKING:
    from ticketry.core.gates import Charges
    from ticketry.core.mask import Mask
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result
    from ticketry.search.common.method import Replicate


def charged(replicate: Replicate, settings: Aimed, scope: Scope) -> dict[str, Any]:
    """Of `Gating`: the prices under a budget; nothing without one, or if all gates are charged alike.

    Raises:
        UsageError: for a budget that pays for no single weight.
    """
    if not settings.aim:
        return {}
    steered_to(replicate, settings, scope, min(settings.shares))
    if settings.unweighed:
        return {}
    return {"prices": tuple((curve.densities, curve.costs) for curve in _charges(replicate, settings, scope).curves)}


def steered_to(replicate: Replicate, settings: Aimed, scope: Scope, share: float) -> tuple[float, float]:
    """For a budget: what gates are steered to (a share of all charges), and the density at which every layer begins.

    Raises:
        UsageError: for a budget that pays for no single weight.
    """
    from ticketry.core.gates.charges import share_above_empty
    from ticketry.lab.budget_masks import terms_in

    if not settings.aim:
        return share, share
    prices = terms_in(replicate.lab, replicate.task, scope, settings.terms)
    left = share_above_empty(prices, scope.sizes, share)
    density = _charges(replicate, settings, scope).density_for(left)
    return density if settings.unweighed else left, density


def left_of_budget(lab: Lab, result: Result, terms: str) -> float:
    """The share of the budget's costs that the hard gates of a result leave."""
    from ticketry.lab.budget_masks import share_left
    from ticketry.search.gating.masks import gates_of

    return share_left(lab, result.segment.task, gates_of(lab, result).kept(), terms)


def paid_mask(lab: Lab, result: Result, settings: Aimed, share: float, collapse: str = "raise") -> str:
    """Digest of the stored mask of the gates with the largest s that a budget pays for. Remembered.

    Raises:
        LayerCollapseError: naming parameters that have none of them, unless `collapse` is ``keep``.
    """
    from ticketry.budgets.pruner import allocate_budget
    from ticketry.errors import LayerCollapseError
    from ticketry.lab.budget_masks import as_asked, terms_in
    from ticketry.search.gating.gating import Gating
    from ticketry.search.gating.masks import gates_of

    terms, task, least = settings.terms, result.segment.task, int(collapse == "keep")

    def made() -> Mask:
        scores = gates_of(lab, result).by_weight()
        prices = terms_in(lab, task, scores, terms)

        def cut(of: float) -> Mask:
            return allocate_budget(scores, prices, of, weighed=False, keep_at_least=least)

        try:
            return as_asked(lab, task, prices, terms, share, cut)
        except LayerCollapseError as error:
            where = f"{goal(settings, share)}, of the gates after {result.segment.steps} steps"
            raise error.with_keep_argument("collapse=keep").with_prefix(where) from None

    described = {"gates": result.variants[Gating.name], "of": result.segment.key}
    return lab.remembered_mask({**described, "budget": {"of": terms, "share": share}, "collapse": collapse}, made)


def _charges(replicate: Replicate, settings: Aimed, scope: Scope) -> Charges:
    from ticketry.core.gates import Charges
    from ticketry.lab.budget_masks import terms_in

    return Charges.by(terms_in(replicate.lab, replicate.task, scope, settings.terms), scope.sizes)
