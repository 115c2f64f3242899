"""The elements of the most worth that a budget pays for, among many millions, without sorting them."""

from __future__ import annotations

import torch
from torch import Tensor

_DIGIT = 16
"""Bits that are told apart at a time."""


def affordable(worth: Tensor, price: Tensor, budget: int) -> Tensor:
    """Boolean [n]: the elements of the most worth, as long as their prices together are within the budget.

    The same to the element as a stable sort by falling worth and a running sum of the prices: of equals the earlier
    ones come first, and the first one that is too dear ends it. Found digit by digit of the numbers' bits, as in a
    radix sort that follows a single bucket.

    Args:
        worth: float64 [n], at least 0; an element below 0 is never taken.
        price: int64 [n], at least 0; together less than 2^63.
        budget: at least 0.

        >>> affordable(torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([4, 1, 5]), 9).tolist()
        [True, False, True]
    """
    bits = (worth + 0.0).view(torch.int64)  # of numbers that are not negative, bits rise as they do; -0.0 becomes 0.0
    chosen = torch.zeros(len(worth), dtype=torch.bool)
    among: Tensor | None = None
    if bool((bits < 0).any()):
        among = (bits >= 0).nonzero().flatten()
        bits, price = bits[among], price[among]
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        digit = (bits >> shift) & ((1 << _DIGIT) - 1)
        spent = torch.zeros(1 << _DIGIT, dtype=torch.int64).scatter_add_(0, digit, price)
        above = spent.flip(0).cumsum(0).flip(0)  # with those of this digit
        crossing = int((above > budget).sum()) - 1  # above falls, so these are the first ones
        _take(chosen, among, digit > crossing)
        if crossing < 0:
            return chosen
        budget -= int(above[crossing] - spent[crossing])
        left = (digit == crossing).nonzero().flatten()
        bits, price = bits[left], price[left]
        among = left if among is None else among[left]
    _take(chosen, among, price.cumsum(0) <= budget)
    return chosen


def _take(chosen: Tensor, among: Tensor | None, which: Tensor) -> None:
    if among is None:
        chosen |= which
    else:
        chosen[among[which]] = True


def spent_with(worth: Tensor, price: Tensor, index: int) -> int:
    """What is spent when the element `index` is the last one taken."""
    before = worth > worth[index]
    before[: index + 1] |= worth[: index + 1] == worth[index]
    return int(price[before].sum())
