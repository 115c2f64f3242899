"""Selection by digits against a stable sort."""

from __future__ import annotations

import pytest
import torch

from ticketry.core.costs.selection import affordable, spent_with


def slow(worth, price, budget):
    order = worth.argsort(descending=True, stable=True)
    order = order[worth[order] >= 0]
    chosen = torch.zeros(len(worth), dtype=torch.bool)
    chosen[order[price[order].cumsum(0) <= budget]] = True
    return chosen


@pytest.mark.parametrize("kind", ["spread", "ties", "zeros", "extremes", "excluded"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.77, 1.0])
def test_same_to_the_element_as_a_stable_sort(kind, share):
    generator = torch.Generator().manual_seed(7)
    for count in (0, 1, 2, 1000):
        worth = torch.rand(count, generator=generator).double()
        if kind == "ties":
            worth = (worth * 5).floor() / 3
        elif kind == "zeros":
            worth[:] = 0.0
            worth[::3] = -0.0
        elif kind == "extremes":
            worth = worth ** torch.randint(0, 60, (count,), generator=generator)
            worth[::7] = torch.inf
        elif kind == "excluded":
            worth[::2] = -1.0
        price = torch.randint(0, 50, (count,), generator=generator)
        budget = int(share * int(price.sum()))
        assert torch.equal(affordable(worth, price, budget), slow(worth, price, budget))


def test_prices_beyond_what_floats_hold():
    price = torch.tensor([2**61, 2**61 + 1, 1])
    worth = torch.tensor([3.0, 2.0, 1.0]).double()
    assert affordable(worth, price, 2**62).tolist() == [True, False, False]
    assert affordable(worth, price, 2**62 + 1).tolist() == [True, True, False]
    assert affordable(worth, price, 2**62 + 2).tolist() == [True, True, True]


def test_what_is_spent_up_to_an_element():
    worth = torch.tensor([1.0, 2.0, 1.0, 3.0]).double()
    price = torch.tensor([1, 10, 100, 1000])
    assert [spent_with(worth, price, index) for index in range(4)] == [1011, 1010, 1111, 1000]
