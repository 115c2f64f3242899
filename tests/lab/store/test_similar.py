"""Masks side by side: all of them once, each next to one that it is like."""

from __future__ import annotations

import itertools
import random
import zlib

import numpy as np
import pytest

from ticketry.lab.store.similar import by_similarity, difference


def searches(levels: int, replicates: int, weights: int) -> dict[str, bytes]:
    """Nested masks of several searches, each level keeping four fifths of the one before."""
    found, draw = {}, np.random.default_rng(0)
    for replicate in range(replicates):
        order = draw.permutation(weights)
        for level in range(1, levels + 1):
            kept = np.zeros(weights, bool)
            kept[order[: int(weights * 0.8**level)]] = True
            found[f"{replicate}-{level:02}"] = np.packbits(kept).tobytes()
    return found


@pytest.mark.parametrize("weights", [4_000, 266_200])
def test_levels_of_a_search_lie_side_by_side(weights: int) -> None:
    """By the whole of small masks, by a sample of large ones: most neighbours are neighbouring levels of one search."""
    masks = searches(10, 4, weights)
    names = list(masks)
    random.Random(0).shuffle(names)
    order = by_similarity(names, masks.__getitem__)
    assert sorted(order) == sorted(masks)
    steps = [(one[:2] == two[:2], abs(int(one[2:]) - int(two[2:]))) for one, two in itertools.pairwise(order)]
    assert sum(same and apart == 1 for same, apart in steps) >= len(order) - 8
    packed = [zlib.compress(difference(masks[one], masks[two]), 9) for one, two in itertools.pairwise(order)]
    alone = sum(len(zlib.compress(mask, 9)) for mask in masks.values())
    assert sum(map(len, packed)) < 0.8 * alone


def test_of_several_sizes_and_of_none() -> None:
    masks = {"a": b"1", "b": b"23", "c": b"4", "d": b"", "e": b"56"}
    assert by_similarity(masks, masks.__getitem__)[0] == "d"
    assert {frozenset(by_similarity(masks, masks.__getitem__)[at]) for at in (1, 2)} == {frozenset("a"), frozenset("c")}
    assert by_similarity([], masks.__getitem__) == []


def test_a_difference_gives_each_back() -> None:
    one, other = random.Random(1).randbytes(500), random.Random(2).randbytes(500)
    assert difference(difference(one, other), other) == one
    with pytest.raises(ValueError, match="broadcast"):
        difference(one, other[:-1])
