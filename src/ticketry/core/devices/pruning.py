"""`prune` of a model whose parameters lie in parts on several devices."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ticketry.core.allocate import allocate_ranked, check_enough, layer_shares
from ticketry.core.devices.parts import is_spread, require_usable
from ticketry.core.devices.selection import Ranking
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_at_least, check_collapse, check_distribution, kept_elements
from ticketry.core.scope import covered
from ticketry.errors import MaskError


def any_spread(parameters: Mapping[str, Tensor]) -> bool:
    """Whether any of these lies in parts."""
    return any(is_spread(parameter) for parameter in parameters.values())


def largest_magnitudes(
    parameters: Mapping[str, Tensor],
    density: float,
    *,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    keep_at_least: int = 0,
) -> Mask:
    """The mask that `allocate` would make of the magnitudes of whole parameters: equal to the element.

    All processes that have parts of them call it, with the same arguments, and get equal masks, whole, on the CPU: a
    byte for each weight. No parameter is gathered.

    Raises:
        UsageError, MaskError, LayerCollapseError: as `allocate`, in all processes.
    """
    check_distribution(distribution)
    check_collapse(collapse)
    check_at_least(keep_at_least)
    require_usable(parameters)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if within is not None and within.shapes != shapes:
        raise MaskError("the mask to go on from is not of the tensors that have scores")
    half_rate = covered(parameters, half_rate, "half_rate")
    total = sum(parameter.numel() for parameter in parameters.values())
    kept = kept_elements(density, total)
    check_enough(kept, total, total if within is None else within.kept, density)
    ranking = Ranking(parameters, within, magnitudes=True)
    return allocate_ranked(
        ranking,
        parameters,
        density,
        kept,
        lambda available, amount: layer_shares(parameters, available, amount, distribution, half_rate),
        max(keep_at_least, 1 if collapse == "keep" else 0),
    )
