"""A mask that moves, against loops over single weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry.core.mask import Mask
from ticketry.core.sparse_training.mask_dynamics import drop_and_grow
from ticketry.errors import MaskError, UsageError

SHAPES = {"one": (3, 5), "two": (4, 2, 2), "three": (7,)}


def slow(kept: list[bool], weights: list[float], growth: list[float], share: float, regrow: bool) -> list[bool]:
    """One layer, weight by weight: the worst goes, then the best place is taken, so many times."""
    now = list(kept)
    count = int(share * sum(kept) + 1e-12)
    if not regrow:
        count = min(count, kept.count(False))
    for _ in range(count):
        worst = None
        for place, there in enumerate(now):
            if there and (worst is None or abs(weights[place]) <= abs(weights[worst])):
                worst = place
        now[worst] = False
    left = list(now)
    for _ in range(count):
        best = None
        for place in range(len(now)):
            free = not now[place] and not (left if regrow else kept)[place]
            if free and (best is None or growth[place] > growth[best]):
                best = place
        now[best] = True
    return now


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.booleans(), st.booleans())
def test_as_weight_by_weight(seed: int, share: float, regrow: bool, coarse: bool) -> None:
    """Coarse numbers have many ties."""
    draw = torch.Generator().manual_seed(seed)
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.6 for name, shape in SHAPES.items()})
    weights = {name: torch.randn(shape, generator=draw) * mask[name] for name, shape in SHAPES.items()}
    growth = {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}
    if coarse:
        weights, growth = ({name: (2 * x).round() for name, x in each.items()} for each in (weights, growth))
    after = drop_and_grow(mask, weights, growth, share, regrow=regrow)
    for name in SHAPES:
        lists = (mask[name], weights[name], growth[name])
        assert after[name].flatten().tolist() == slow(*(each.flatten().tolist() for each in lists), share, regrow)
        assert int(after[name].sum()) == int(mask[name].sum()), "each layer keeps its number of weights"


def test_a_dense_layer_stays_dense() -> None:
    mask = Mask({"w": torch.ones(8, dtype=torch.bool)})
    for regrow in (False, True):
        assert drop_and_grow(mask, {"w": torch.randn(8)}, {"w": torch.rand(8)}, 0.5, regrow=regrow) == mask


def test_what_does_not_fit_is_told() -> None:
    mask = Mask({"w": torch.tensor([True, False])})
    fine = {"w": torch.ones(2)}
    with pytest.raises(UsageError, match=r"in \[0, 1\), got 1"):
        drop_and_grow(mask, fine, fine, 1.0)
    with pytest.raises(MaskError, match="growth have no tensor 'w' of shape"):
        drop_and_grow(mask, fine, {"w": torch.ones(3)}, 0.5)
    with pytest.raises(MaskError, match="weights of 'w' are not all numbers"):
        drop_and_grow(mask, {"w": torch.tensor([1.0, float("nan")])}, fine, 0.5)
