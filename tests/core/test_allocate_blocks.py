"""Masks of whole blocks, and of N:M, at a density: against slow loops."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from slow_blocks import blocks_of
from ticketry.core.allocate import allocate
from ticketry.core.mask import Mask
from ticketry.core.structure.layout import Layout, mark_best_n_of_m
from ticketry.core.structure.pattern import DISTRIBUTIONS, Pattern
from ticketry.errors import LayerCollapseError, MaskError, UsageError

densities = st.integers(1, 100).map(lambda hundredths: hundredths / 100)
PATTERNS = ("2x1", "4x1", "channel")
Scores = dict[str, Tensor]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Scores, dict[str, Layout]]:
    """Scores of a few layers of odd shapes, often with ties; some are of transposed or grouped convolutions."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    levels, scores, layouts = draw(st.sampled_from([3, 10_000])), {}, {}
    for index in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([1, 1, 2]))
        shape = (groups * draw(st.integers(1, 9)), *draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        scores[f"layer{index}"] = torch.randint(levels, shape, generator=seed).double()
        layouts[f"layer{index}"] = Layout(draw(st.booleans()), groups)
    return scores, layouts


def blocks_in(scores: Scores, layouts: dict[str, Layout], text: str) -> dict[str, list[tuple[Fraction, list]]]:
    """layer -> (mean score, members) of each block, in order."""
    return {
        name: [
            (sum(Fraction(score[place].item()) for place in members) / len(members), members)
            for members in blocks_of(text, tuple(score.shape), layouts[name]).values()
        ]
        for name, score in scores.items()
    }


def wanted(scores: Scores, density: float) -> int:
    total = sum(score.numel() for score in scores.values())
    return (2 * round(density * 100) * total + 100) // 200  # rounded half up


def counts_of(mask: Mask, blocks: dict[str, list[tuple[Fraction, list]]]) -> dict[str, list[bool]]:
    """layer -> whether each block is kept; no half ones."""
    found = {}
    for name, listed in blocks.items():
        kept = [{bool(mask[name][place]) for place in members} for _, members in listed]
        assert all(len(values) == 1 for values in kept)
        found[name] = [values.pop() for values in kept]
    return found


@given(scored(), densities, st.sampled_from(PATTERNS))
def test_global_keeps_the_best_blocks_as_near_as_they_come(made, density: float, text: str) -> None:
    scores, layouts = made
    blocks = blocks_in(scores, layouts, text)
    every = [(name, number) for name, listed in blocks.items() for number in range(len(listed))]
    ranked = sorted(every, key=lambda one: -blocks[one[0]][one[1]][0])  # stable: ties by position
    aim, kept, best, chosen = wanted(scores, density), 0, 0, set()
    for count, (name, number) in enumerate(ranked, start=1):
        kept += len(blocks[name][number][1])
        if abs(kept - aim) < abs(best - aim):
            best, chosen = kept, set(ranked[:count])
    if {name for name, _ in chosen} != set(blocks):
        with pytest.raises(LayerCollapseError):
            allocate(scores, density, pattern=text, layouts=layouts)
        return
    mask = allocate(scores, density, pattern=text, layouts=layouts)
    flags = counts_of(mask, blocks)
    assert {(name, number) for name in flags for number, flag in enumerate(flags[name]) if flag} == chosen
    assert mask.kept == best


@given(scored(), densities, st.sampled_from(PATTERNS), st.sampled_from(DISTRIBUTIONS), st.integers(0, 5))
def test_whole_blocks_best_first_near_the_density(made, density, text, distribution, least) -> None:
    """Each layer keeps its best blocks; the sum is within half a block (of the largest) where no floor raises it."""
    scores, layouts = made
    blocks = blocks_in(scores, layouts, text)
    try:
        mask = allocate(scores, density, pattern=text, layouts=layouts, distribution=distribution, keep_at_least=least)
    except LayerCollapseError:
        largest = [max(len(members) for _, members in listed) for listed in blocks.values()]
        floors = sum(least + size for size in largest)
        assert least == 0 or wanted(scores, density) < floors + max(largest)
        return
    flags = counts_of(mask, blocks)
    for name, listed in blocks.items():
        ranked = sorted(range(len(listed)), key=lambda number: -listed[number][0])
        kept = [number for number, flag in enumerate(flags[name]) if flag]
        assert kept == sorted(ranked[: len(kept)])
        assert int(mask[name].sum()) >= min(least, scores[name].numel())
    largest_block = max(len(members) for listed in blocks.values() for _, members in listed)
    floors = largest_block / 2 + sum(max(len(members) for _, members in listed) for listed in blocks.values())
    slack = largest_block / 2 + (floors if least else 0)
    assert abs(mask.kept - wanted(scores, density)) <= slack
    assert list(mask) == list(scores)
    if least or distribution == "global":
        return
    plain = allocate(scores, density, distribution=distribution, collapse="keep")
    for name, listed in blocks.items():  # the shares of single weights, to within a block and a weight of the layer
        block = max(len(members) for _, members in listed)
        assert abs(int(mask[name].sum()) - int(plain[name].sum())) < block + 2


def test_going_on_takes_the_density_of_the_whole() -> None:
    scores = {"a": torch.arange(64.0).view(16, 4)}
    first = allocate(scores, 0.5, pattern="4x1")
    second = allocate({"a": -scores["a"]}, 0.25, pattern="4x1", within=first)
    assert (first.kept, second.kept) == (32, 16)
    assert second <= first
    assert second["a"][8:12].all()  # of the rows that were left, 8-15, the other half
    with pytest.raises(MaskError, match="has only 16"):
        allocate(scores, 0.5, pattern="4x1", within=second)


def test_a_small_last_block_is_compared_by_its_mean() -> None:
    """By sums the block of one row would never stay."""
    scores = {"a": torch.tensor([[1.0], [1.0], [1.0], [1.0], [3.0]])}
    assert allocate(scores, 0.2, pattern="4x1")["a"].flatten().tolist() == [False] * 4 + [True]


def test_of_two_equally_near_the_sparser() -> None:
    scores = {"a": torch.tensor([[4.0], [4.0], [1.0], [1.0]])}
    assert allocate(scores, 0.75, pattern="2x1")["a"].sum() == 2


def test_floors_and_half_rate() -> None:
    torch.manual_seed(0)
    scores = {"small": torch.full((8, 2), -1.0), "large": torch.rand(32, 8)}
    with pytest.raises(LayerCollapseError, match=r"4x1 would leave none in small"):
        allocate(scores, 0.5, pattern="4x1")
    kept = allocate(scores, 0.5, pattern="4x1", collapse="keep")
    assert [row.kept for row in kept.table()] == [4, 132]
    rounded_up = allocate(scores, 0.5, pattern="4x1", keep_at_least=5)
    assert [row.kept for row in rounded_up.table()] == [8, 128]
    with pytest.raises(LayerCollapseError, match="too few to keep at least 12 in each of 2 layers"):
        allocate(scores, 0.05, pattern="4x1", keep_at_least=12)
    scores = {"a": torch.rand(32, 8), "b": torch.rand(32, 8)}
    assert [row.kept for row in allocate(scores, 0.5, pattern="4x1", half_rate=("b",)).table()] == [64, 192]


@pytest.mark.parametrize("text", ["4x1", "2:4"])
def test_bad_input(text: str) -> None:
    scores = {"a": torch.rand(8, 8)}
    with pytest.raises(MaskError, match="NaN"):
        allocate({"a": scores["a"] * torch.nan}, 0.5, pattern=text)
    with pytest.raises(MaskError, match="not of the tensors"):
        allocate(scores, 0.5, pattern=text, within=Mask({"b": torch.ones(8, 8)}))
    with pytest.raises(UsageError, match="names 'c'"):
        allocate(scores, 0.5, pattern=text, half_rate=("c",))


def test_a_mask_of_single_weights_is_no_start() -> None:
    scores = {"fc.weight": torch.rand(8, 8)}
    with pytest.raises(MaskError, match=r"parts of blocks of 'fc\.weight'"):
        allocate(scores, 0.3, pattern="4x1", within=allocate(scores, 0.5))


def test_one_row_that_is_infinite_both_ways() -> None:
    scores = {"a": torch.tensor([[torch.inf], [-torch.inf], [0.0], [1.0]])}
    with pytest.raises(MaskError, match="infinite of both signs"):
        allocate(scores, 0.5, pattern="2x1")


@given(scored(), st.sampled_from(["2:4", "1:2", "2:3"]), densities, st.sampled_from(DISTRIBUTIONS))
def test_n_of_m(made, text, density, distribution) -> None:
    """At N/M every M inputs keep N; below, the best of these, to the element; above, it is refused."""
    scores, layouts = made
    pattern = Pattern.parse(text)
    most = Mask({name: mark_best_n_of_m(score, pattern.n, pattern.m, layouts[name]) for name, score in scores.items()})
    chosen = {"pattern": text, "layouts": layouts, "distribution": distribution}
    assert allocate(scores, **chosen) == most
    assert allocate(scores, pattern.densest, **chosen) == most
    if density > pattern.densest:
        with pytest.raises(UsageError, match=f"pattern {text} keeps at most {pattern.n} of {pattern.m} weights"):
            allocate(scores, density, **chosen)
        return
    try:
        mask = allocate(scores, density, **chosen)
    except LayerCollapseError:
        return
    assert mask <= most
    if not pattern.is_densest(density):
        assert mask.kept == wanted(scores, density)
        assert mask == allocate(scores, density, within=most, distribution=distribution)


def test_n_of_m_goes_on_from_a_mask() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(8, 16), "b": torch.rand(8, 3)}
    first = allocate(scores, 0.4, pattern="2:4")
    second = allocate(scores, 0.2, pattern="2:4", within=first)
    assert second <= first
    assert second.kept == 30  # 0.2 of 152, rounded half up
    with pytest.raises(MaskError, match="has only"):
        allocate(scores, 0.5, pattern="2:4", within=first)
    with pytest.raises(UsageError, match="half_rate has no meaning"):
        allocate(scores, 0.4, pattern="2:4", half_rate=("a",))


def test_prune_knows_the_layouts() -> None:
    """Filters of a transposed convolution lie in dimension 1, per group; rows of two groups share no block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.Conv2d(8, 12, 3, groups=2))
    whole = tk.prune(model, 0.5, pattern="channel", distribution="uniform")
    per_output = whole["0.weight"].view(2, 2, 4, 4).transpose(1, 2).flatten(0, 1).flatten(1)
    assert bool((per_output.all(1) == per_output.any(1)).all())
    assert per_output.any(1).sum() == 4
    blocks = tk.prune(model, 0.5, pattern="4x1", distribution="uniform")
    rows = blocks["1.weight"].view(2, 6, -1)  # blocks of 4 and 2 rows in each group
    for first, last in ((0, 4), (4, 6)):
        assert bool((rows[:, first:last].all(1) == rows[:, first:last].any(1)).all())


def test_prune_in_several_cuts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    mask = tk.prune(model, 0.1, pattern="4x1", iterations=4, score="synflow", batches=[torch.ones(1, 32)])
    assert mask.kept == pytest.approx(0.1 * mask.total, abs=2)
    assert tk.prune(model, pattern="2:4").density == 0.5
    assert tk.prune(model, 0.1, pattern="2:4", iterations=2).kept == round(0.1 * mask.total)
    with pytest.raises(UsageError, match="at most 2 of 4"):
        tk.prune(model, 0.4, pattern="2:4", iterations=2)
