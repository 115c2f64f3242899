"""Changes of masks during training: updates that drop and grow weights, and measures that decide when to prune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations

import torch
from torch import Tensor

from ticketry.core.allocate import mask_of_largest
from ticketry.core.mask import Mask
from ticketry.errors import MaskError, UsageError


def drop_and_grow(
    mask: Mask, weights: Mapping[str, Tensor], growth: Mapping[str, Tensor], share: float, *, regrow: bool = False
) -> Mask:
    """Return the mask after one update of dynamic sparse training; each layer retains as many weights as before.

    Each layer drops its floor(share * retained) weights of smallest magnitude, but no more weights than are removed
    already. It grows (retains) the same number of other weights, those with the largest `growth`. Of equal
    values, the earlier position is chosen. With |gradient| as `growth` this is RigL (Evci et al., "Rigging the
    Lottery", 2020, arXiv 1911.11134, section 3); with random numbers it is SET (Mocanu et al. 2018).

    Args:
        weights, growth: tensors in the mask's shapes, by parameter name; names that the mask lacks are ignored.
        share: fraction of the retained weights to drop, 0 <= share < 1.
        regrow: whether weights that have just been dropped may grow again.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of weights that move must be in [0, 1), got {share}")
    for what, tensors in (("weights", weights), ("growth", growth)):
        for name, shape in mask.shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise MaskError(f"{what} have no tensor {name!r} of shape {shape}, which the mask has")
            if bool(torch.isnan(tensors[name]).any()):
                raise MaskError(f"the {what} of {name!r} are not all numbers (NaN)")
    updated = {}
    for name, kept in mask.items():
        now = kept.flatten()
        active = int(now.sum())
        count = int(Fraction(str(share)) * active)
        if not regrow:
            count = min(count, len(now) - active)
        left = _mark_largest_among(weights[name].abs(), now, active - count)
        grown = _mark_largest_among(growth[name], ~(left if regrow else now), count)
        updated[name] = (left | grown).reshape(kept.shape)
    return Mask(updated, copy=False)


def _mark_largest_among(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Return a bool tensor [n] that is True at the `count` largest `values` [n] for which `among` [n] is True."""
    positions = among.nonzero().flatten()
    chosen = torch.zeros_like(among)
    chosen[positions[mask_of_largest(values.detach().cpu().flatten()[positions], count)]] = True
    return chosen


COMPARED_MASKS = 5
"""Number of most recent masks that Early-Bird (You et al. 2020) compares."""
LARGEST_MASK_DISTANCE = 0.1
"""Largest fraction of elements in which any two of the compared masks may differ."""


@torch.no_grad()
def relative_distance(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """Return ||w - w0|| / ||w0|| over all named tensors together, computed in float64."""
    moved = size = 0.0
    for name in names:
        if name not in state or name not in reference:
            raise MaskError(f"{name!r} is in the scope, but missing from a state that is compared")
        before = reference[name].double()
        moved += float((state[name].double() - before).square().sum())
        size += float(before.square().sum())
    if not size:
        raise UsageError("relative distances need a reference whose weights are not all 0")
    return float((moved / size) ** 0.5)


def first_slow_checkpoint(distances: Sequence[float], threshold: float) -> int | None:
    """Return the checkpoint (counted from 1) at which EarlyCroP prunes; None if weights still change too fast.

    Let d_t be the distance of the weights from their initial values at checkpoint t. The result is the first t > 1 with
    |d_t - d_(t-1)| < threshold * d_1 (Rachwan et al. 2022, arXiv 2206.10451).

    Args:
        distances: d_1, d_2, …, see `relative_distance`.
        threshold: a number above 0; the published code uses the density.
    """
    if threshold <= 0:
        raise UsageError(f"the threshold, a share of the first change, must be above 0, got {threshold:g}")
    for place in range(1, len(distances)):
        if abs(distances[place] - distances[place - 1]) < threshold * distances[0]:
            return place + 1
    return None


def first_stable_checkpoint(masks: Sequence[Mask]) -> int | None:
    """Return the checkpoint (counted from 1) at which Early-Bird prunes; None if masks still differ too much.

    The result is the first checkpoint where any two of the last `COMPARED_MASKS` masks, one per checkpoint, differ in
    at most a fraction `LARGEST_MASK_DISTANCE` of their elements. You et al. 2020, "Drawing Early-Bird Tickets" (arXiv
    1909.11957), section 3.3.
    """
    for count in range(COMPARED_MASKS, len(masks) + 1):
        pairs = combinations(masks[count - COMPARED_MASKS : count], 2)
        if all(hamming_distance(*pair) <= LARGEST_MASK_DISTANCE for pair in pairs):
            return count
    return None


def hamming_distance(one: Mask, other: Mask) -> float:
    """Return the fraction of elements in which two masks of the same tensors differ."""
    return (one ^ other).kept / one.total
