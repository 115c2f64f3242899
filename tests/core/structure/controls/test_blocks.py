"""Masks of a pattern drawn anew: what they keep, and that they are random."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.structure.controls import random_blocks, shuffled_blocks
from ticketry.core.structure.layout import layouts, mark_best_n_of_m
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import MaskError


def network() -> nn.Module:
    """Rows that are no multiple of 4 or 16, groups, a transposed convolution, two layers of one shape."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 34, 3),
        nn.Conv2d(34, 36, 3, groups=2),
        nn.ConvTranspose2d(36, 22, 2, groups=2),
        nn.Linear(60, 60),
        nn.Linear(60, 60),
    )


def of_pattern(model: nn.Module, mask: tk.Mask, text: str) -> bool:
    pattern, known = Pattern.parse(text), layouts(model, mask)
    if pattern.m:
        return all(
            bool((mark_best_n_of_m(kept.int(), pattern.n, pattern.m, known[name]) | ~kept).all())
            for name, kept in mask.items()
        )
    for name, kept in mask.items():
        pattern.blocks(tuple(kept.shape), known[name]).retained_blocks(kept, name)
    return True


@pytest.mark.parametrize(
    ("text", "density"), [("4x1", 0.3), ("16x1", 0.3), ("channel", 0.5), ("2:4", 0.5), ("2:4", 0.2)]
)
def test_redrawn(text: str, density: float) -> None:
    model = network()
    mask = tk.prune(model, density, pattern=text, distribution="uniform")
    shuffled, again, other = (shuffled_blocks(model, mask, text, seed) for seed in (1, 1, 2))
    random = random_blocks(model, mask, text, 1)
    assert of_pattern(model, shuffled, text)
    assert of_pattern(model, random, text)
    assert [row.kept for row in shuffled.table()] == [row.kept for row in mask.table()]
    assert random.density == pytest.approx(mask.density, abs=0.01)
    assert shuffled == again
    assert shuffled != other
    assert random == random_blocks(model, mask, text, 1) != random_blocks(model, mask, text, 2)
    for drawn in (shuffled, random):
        assert drawn.overlap(mask) == pytest.approx(density, abs=0.15)  # no more than by chance
    assert not torch.equal(shuffled["3.weight"], shuffled["4.weight"])


def test_small_blocks_stay_as_many() -> None:
    """Of 34 rows the last two of each column are a block of their own."""
    model = network()
    mask = tk.prune(model, 0.3, pattern="4x1", distribution="uniform")
    shuffled = shuffled_blocks(model, mask, "4x1", 3)
    last = [int(m["0.weight"][32:].sum()) for m in (mask, shuffled)]
    assert last[0] == last[1] > 0


def test_random_ones_are_of_all_layers_together() -> None:
    """Not by the layers of the mask: one that it nearly empties has its share."""
    model = network()
    full = tk.Mask.ones(tk.scope(model))
    mask = tk.Mask(
        {name: kept & (torch.zeros(()).bool() if name == "4.weight" else kept) for name, kept in full.items()}
    )
    random = random_blocks(model, mask, "4x1", 0)
    assert 0.6 < random["4.weight"].float().mean() < 0.95
    assert random.density == pytest.approx(mask.density, abs=0.01)


def test_not_of_the_pattern() -> None:
    model = network()
    with pytest.raises(MaskError, match="parts of blocks"):
        shuffled_blocks(model, tk.prune(model, 0.5), "4x1", 0)
