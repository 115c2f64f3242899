"""When in training a network may be pruned: detectors that look at what a network went through so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from ticketry.core.mask import Mask
from ticketry.errors import MaskError, UsageError

KEPT_MASKS = 5
"""Masks that Early-Bird compares (You et al. 2020)."""
ALIKE = 0.1
"""The share in which any two of them may differ."""


@torch.no_grad()
def relative_distance(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """||w - w0|| / ||w0|| over all named tensors together, in float64.

    Args:
        state, reference: name -> tensor; both hold all of `names`.

    Raises:
        MaskError: if a name is missing.
        UsageError: if the reference is all 0.
    """
    moved = size = 0.0
    for name in names:
        if name not in state or name not in reference:
            raise MaskError(f"{name!r} is in the scope, and not in the states that are compared")
        before = reference[name].double()
        moved += float((state[name].double() - before).square().sum())
        size += float(before.square().sum())
    if not size:
        raise UsageError("the weights that distances are measured from are all 0")
    return float((moved / size) ** 0.5)


def settled(distances: Sequence[float], threshold: float) -> int | None:
    """The first look at which weights have become slow: EarlyCroP's moment to prune, or None if there is none yet.

    With d_t the distance from the initialisation at look t, d_0 = 0, that is the first t > 1 with
    |d_t - d_(t-1)| < threshold * d_1: what is gone since the look before is small beside what was gone at first.
    Rachwan et al. 2022 (arXiv 2206.10451); in their published code the threshold is the density.

    Args:
        distances: d_1, d_2, ….
        threshold: above 0; at 1 or more any slower change will do.
    """
    if threshold <= 0:
        raise UsageError(f"the threshold is a share of the first change, above 0, not {threshold:g}")
    for look in range(1, len(distances)):
        if abs(distances[look] - distances[look - 1]) < threshold * distances[0]:
            return look + 1
    return None


def alike(masks: Sequence[Mask], share: float = ALIKE, kept: int = KEPT_MASKS) -> int | None:
    """The first look at which masks have become alike: Early-Bird's moment, or None if there is none yet.

    That is the first t at which any two of the last `kept` masks differ in at most `share` of their elements (their
    normalised Hamming distance). You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957), section 3.3.
    """
    last: deque[Mask] = deque(maxlen=kept)
    for look, mask in enumerate(masks, start=1):
        last.append(mask)
        if len(last) == kept and all(differing(*pair) <= share for pair in combinations(last, 2)):
            return look
    return None


def differing(one: Mask, other: Mask) -> float:
    """The share of elements in which two masks of the same tensors differ: their normalised Hamming distance."""
    return (one ^ other).kept / one.total
