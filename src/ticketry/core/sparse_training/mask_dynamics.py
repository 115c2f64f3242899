"""Changes of masks during training: drop-and-grow updates, and measures of change that decide when to prune."""

from __future__ import annotations

from collections import deque
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

    Each layer drops its floor(share * retained) weights of smallest magnitude and grows as many with the largest
    `growth`; a nearly dense layer drops at most as many as it has removed weights. Ties go to the earlier position.
    With |gradient| as growth this is RigL (Evci et al., "Rigging the Lottery", 2020, arXiv 1911.11134, section 3), with
    random numbers SET (Mocanu et al. 2018).

    Args:
        mask: the current mask.
        weights, growth: parameter name -> tensor in the mask's shape; further names are ignored.
        share: fraction of the retained weights to drop, 0 <= share < 1.
        regrow: whether weights that have just been dropped may grow again.

    Raises:
        UsageError: for a share outside [0, 1).
        MaskError: if weights or growth lack a tensor of the mask, have another shape, or contain NaN.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of weights that move must be in [0, 1), got {share}")
    for what, tensors in (("weights", weights), ("growth", growth)):
        for name, shape in mask.shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise MaskError(f"{what} have no tensor {name!r} of shape {shape}, which the mask has")
            if bool(torch.isnan(tensors[name]).any()):
                raise MaskError(f"the {what} of {name!r} are not all numbers (NaN)")
    return Mask(
        {name: _update_layer(kept, weights[name].abs(), growth[name], share, regrow) for name, kept in mask.items()},
        copy=False,
    )


def _update_layer(kept: Tensor, sizes: Tensor, growth: Tensor, share: float, regrow: bool) -> Tensor:
    now = kept.flatten()
    active = int(now.sum())
    count = int(Fraction(str(share)) * active)
    if not regrow:
        count = min(count, len(now) - active)
    left = _mark_largest_among(sizes, now, active - count)
    return (left | _mark_largest_among(growth, ~(left if regrow else now), count)).reshape(kept.shape)


def _mark_largest_among(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Return a bool tensor [n] that marks the `count` largest of `values`, among positions where `among` [n] is
    true.
    """
    positions = among.nonzero().flatten()
    chosen = torch.zeros_like(among)
    chosen[positions[mask_of_largest(values.detach().cpu().flatten()[positions], count)]] = True
    return chosen


COMPARED_MASKS = 5
"""Number of recent masks that Early-Bird compares (You et al. 2020)."""
LARGEST_MASK_DISTANCE = 0.1
"""Largest fraction of elements in which any two of these masks may differ."""


@torch.no_grad()
def relative_distance(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """Return ||w - w0|| / ||w0|| over all named tensors together, computed in float64.

    Args:
        state: w, name -> tensor.
        reference: w0, name -> tensor.
        names: tensors to compare.

    Raises:
        MaskError: if a name is missing from either.
        UsageError: if the reference is all 0.
    """
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

    With d_t the distance from the initialisation at checkpoint t and d_0 = 0, it is the first t > 1 with |d_t -
    d_(t-1)| < threshold * d_1. Rachwan et al. 2022 (arXiv 2206.10451); in their published code the threshold is the
    density.

    Args:
        distances: d_1, d_2, ….
        threshold: above 0.
    """
    if threshold <= 0:
        raise UsageError(f"the threshold, a share of the first change, must be above 0, got {threshold:g}")
    for place in range(1, len(distances)):
        if abs(distances[place] - distances[place - 1]) < threshold * distances[0]:
            return place + 1
    return None


def first_stable_checkpoint(
    masks: Sequence[Mask], share: float = LARGEST_MASK_DISTANCE, compared: int = COMPARED_MASKS
) -> int | None:
    """Return the checkpoint (counted from 1) at which Early-Bird prunes; None if masks still differ too much.

    It is the first checkpoint at which any two of the last `compared` masks differ in at most a fraction `share` of
    elements. You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957), section 3.3.
    """
    last: deque[Mask] = deque(maxlen=compared)
    for place, mask in enumerate(masks, start=1):
        last.append(mask)
        if len(last) == compared and all(hamming_distance(*pair) <= share for pair in combinations(last, 2)):
            return place
    return None


def hamming_distance(one: Mask, other: Mask) -> float:
    """Return the fraction of elements in which two masks of the same tensors differ."""
    return (one ^ other).kept / one.total
