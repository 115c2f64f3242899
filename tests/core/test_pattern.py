"""Patterns: words, blocks and N:M against plain loops, and layouts against what layers compute."""

from __future__ import annotations

import re
from itertools import pairwise
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from composed import Conv1D
from slow_blocks import blocks_of, places, row_and_column, value_at
from ticketry.core.structure.layout import Layout, layouts, mark_best_n_of_m
from ticketry.core.structure.pattern import (
    Pattern,
    check_density,
    check_distribution,
    count_retained,
    parse_share,
    parse_share_option,
)
from ticketry.errors import MaskError, ScopeError, UsageError

PATTERNS = ("2x1", "3x1", "4x1", "16x1", "channel")


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, Layout]:
    """A weight of a few different numbers, in any layout; rows are often no multiple of a block's."""
    groups = draw(st.integers(1, 3))
    first, others = draw(st.integers(1, 7)), draw(st.lists(st.integers(1, 5), max_size=3))
    shape = (first * groups, *others) if others else (first,)
    layout = Layout(draw(st.booleans()), groups) if others else Layout()
    seed = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.randint(4, shape, generator=seed).double() - 1, layout


def test_words() -> None:
    assert Pattern.parse("unstructured") == Pattern()
    assert (Pattern.parse("4x1").rows, Pattern.parse("16x1").rows) == (4, 16)
    assert (Pattern.parse("2:4").n, Pattern.parse("2:4").m) == (2, 4)
    for text in ("unstructured", "4x1", "channel", "1:16"):
        assert str(Pattern.parse(text)) == text
        assert Pattern.parse(Pattern.parse(text)) == Pattern.parse(text)


@pytest.mark.parametrize("text", ["", "4", "4x4", "1x4", "0x1", "04x1", "-4x1", "4:2", "4:4", "0:4", "2:4:8", "rows"])
def test_other_words(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not known: unstructured, channel .*, Rx1 .*, N:M"):
        Pattern.parse(text)
    with pytest.raises(UsageError, match="write unstructured"):
        Pattern.parse("1x1")


def test_densities_of_n_of_m() -> None:
    pattern = Pattern.parse("1:3")
    assert pattern.check_density() == pattern.check_density(None, None) == 1 / 3
    assert pattern.check_density(0.2) == 0.2
    assert pattern.check_density(0.333333) == 0.333333
    assert pattern.is_densest(0.333333)
    assert not pattern.is_densest(0.3333)
    assert pattern.check_density(sparsity=0.75) == 0.25
    with pytest.raises(UsageError, match=r"1 of 3 weights, a density of 0.3333, and 0.34 is asked for"):
        pattern.check_density(0.34)
    assert Pattern.parse("4x1").check_density(1.0) == 1
    with pytest.raises(UsageError, match="give either"):
        Pattern.parse("4x1").check_density()
    with pytest.raises(UsageError, match="any 2 of 4 may stay"):
        Pattern.parse("2:4").blocks((4, 4))


@given(weights(), st.sampled_from(PATTERNS))
def test_blocks_are_those_of_plain_loops(weight: tuple[Tensor, Layout], text: str) -> None:
    scores, layout = weight
    blocks = Pattern.parse(text).blocks(tuple(scores.shape), layout)
    slow = list(blocks_of(text, tuple(scores.shape), layout).values())
    assert blocks.count == len(slow)
    assert blocks.sizes.flatten().tolist() == [len(members) for members in slow]
    sums = [sum(value_at(scores, place) for place in members) for members in slow]
    assert blocks.sum_by_block(scores).flatten().tolist() == sums
    means = [total / len(members) for total, members in zip(sums, slow, strict=True)]
    assert blocks.mean_by_block(scores).flatten().tolist() == means
    numbers = torch.arange(blocks.count).view(blocks.shape)
    spread = blocks.expand_to_weights(numbers)
    assert spread.shape == scores.shape
    for number, members in enumerate(slow):
        assert all(value_at(spread, place) == number for place in members)
    kept = torch.rand(blocks.shape) < 0.5
    assert torch.equal(blocks.retained_blocks(blocks.expand_to_weights(kept), "w"), kept)


@given(weights(), st.sampled_from(["2x1", "channel"]))
def test_half_a_block_is_none(weight: tuple[Tensor, Layout], text: str) -> None:
    scores, layout = weight
    blocks = Pattern.parse(text).blocks(tuple(scores.shape), layout)
    large = [m for m in blocks_of(text, tuple(scores.shape), layout).values() if len(m) > 1]
    if large:
        mask = torch.ones(scores.shape, dtype=torch.bool)
        mask[large[0][-1]] = False
        with pytest.raises(MaskError, match=f"parts of blocks of 'fc.weight': it is not of pattern {text}"):
            blocks.retained_blocks(mask, "fc.weight")


@given(weights(), st.sampled_from([(1, 2), (2, 4), (2, 3), (1, 8)]), st.booleans())
def test_n_of_m_are_those_of_plain_loops(weight: tuple[Tensor, Layout], ratio: tuple[int, int], some: bool) -> None:
    (scores, layout), (n, m) = weight, ratio
    shape = tuple(scores.shape)
    scores = scores.masked_fill(scores == 0, -torch.inf)
    among = torch.rand(shape) < 0.6 if some else torch.ones(shape, dtype=torch.bool)
    groups: dict[object, list[tuple[int, ...]]] = {}
    for place in places(shape):
        group, row, column = row_and_column(place, shape, layout)
        key = (group, row, column[0] // m, column[1:]) if column else place
        groups.setdefault(key, []).append(place)
    expected = torch.zeros(shape, dtype=torch.bool)
    for members in groups.values():
        candidates = sorted((p for p in members if among[p]), key=lambda p: row_and_column(p, shape, layout)[2])
        for place in sorted(candidates, key=lambda p: -value_at(scores, p))[:n]:  # sorted is stable
            expected[place] = True
    assert torch.equal(mark_best_n_of_m(scores, n, m, layout, among if some else None), expected)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 4, bias=False), 5, ()),
    "conv": (lambda: nn.Conv2d(4, 6, 3, bias=False), 4, (3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), 4, (2, 2)),
    "depthwise": (lambda: nn.Conv1d(3, 6, 2, groups=3, bias=False), 3, (2,)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, bias=False), 4, (2, 2)),
    "transposed grouped": (lambda: nn.ConvTranspose1d(4, 6, 2, groups=2, bias=False), 4, (2,)),
    "conv1d": (lambda: Conv1D(5, 4), 5, ()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_makes_one_output_from_its_inputs(name: str) -> None:
    """Every weight is where it matters: it makes output `row` from input `column` and nothing else."""
    make, inputs, image = LAYERS[name]
    layer = make().double()
    weight = layer.weight
    layout = layouts(layer, ["weight"])["weight"]
    numbers = layout.rows(torch.arange(weight.numel()).view(weight.shape))
    groups, rows, columns = (*numbers.shape, 1)[:3]
    assert torch.equal(layout.weight(numbers, tuple(weight.shape)).flatten(), torch.arange(weight.numel()))
    for channel in range(inputs):
        x = torch.zeros(1, inputs, *image, dtype=torch.float64)
        x[0, channel] = 1
        out = layer(x)[0]
        for output in range(len(out)):
            (grad,) = torch.autograd.grad(out[output].sum(), weight, retain_graph=True)
            used = set(grad.flatten().nonzero().flatten().tolist())
            group, row = divmod(output, rows)
            own = channel - group * columns
            expected = numbers[group, row, own].flatten().tolist() if 0 <= own < columns else []
            assert used == set(expected)
    assert groups * rows == len(out)


def test_layouts_of_shared_and_unknown_parameters(build) -> None:
    model = build("lstm").model  # the decoder shares its matrix with the embedding
    found = layouts(model, ["encoder.weight", "decoder.weight", "lstm.weight_hh_l1"])
    assert set(found.values()) == {Layout()}
    assert layouts(nn.Embedding(5, 3), ["weight"]) == {"weight": Layout(inputs_first=True)}
    with pytest.raises(ScopeError, match="no parameter 'somewhere else'"):
        layouts(model, ["somewhere else"])
    with pytest.raises(UsageError, match="no 2 groups"):
        Layout(groups=2).rows(torch.ones(3, 3))


@pytest.mark.parametrize(("text", "rows"), [("4x1", 4), ("16x1", 16), ("3x1", 3)])
def test_rows_of_a_block_are_a_group(text: str, rows: int) -> None:
    """Whole blocks of R rows at one column go: so each R rows keep the same columns, and are one group exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 50, 3), nn.Flatten(), nn.Linear(50, 35))
    mask = tk.prune(model, 0.4, pattern=text, distribution="uniform")
    for name, found in tk.structure.groups(mask).items():
        outputs = mask[name].shape[0]
        edges = [*range(0, outputs, rows), outputs]
        assert [group.rows.tolist() for group in found] == [list(range(a, b)) for a, b in pairwise(edges)]


@given(st.integers(0, 999), st.integers(1, 500))
def test_sparsity_is_what_density_leaves(thousandths, total):
    by_sparsity = count_retained(check_density(sparsity=thousandths / 1000), total)
    assert by_sparsity == count_retained(check_density((1000 - thousandths) / 1000), total)
    assert by_sparsity == (2 * (1000 - thousandths) * total + 1000) // 2000


@pytest.mark.parametrize("both", [{}, {"density": 0.5, "sparsity": 0.5}])
def test_exactly_one_of_density_and_sparsity(both):
    with pytest.raises(UsageError, match="only one of them"):
        check_density(**both)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, nan, inf])
def test_shares_out_of_bounds_are_refused(value):
    with pytest.raises(UsageError, match=r"0 < density <= 1, not"):
        check_density(value)
    with pytest.raises(UsageError, match=r"0 <= sparsity < 1, not"):
        check_density(sparsity=1 - value)


@pytest.mark.parametrize(
    ("density", "total", "kept"), [(0.5, 5, 3), (0.15, 10, 2), (0.1, 5, 1), (0.05, 10, 1), (0.35, 10, 4), (1e-9, 10, 0)]
)
def test_half_an_element_is_rounded_up(density, total, kept):
    assert count_retained(density, total) == kept


def test_an_unknown_distribution_is_refused():
    with pytest.raises(UsageError, match="'lamp' is not known: global, layerwise, uniform, erk"):
        check_distribution("lamp")


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), (" 64.3 %", 0.643), ("0.25", 0.25), ("100%", 1.0), ("1e-1%", 0.001)]
)
def test_percentages_are_exact_in_their_decimals(text, share):
    assert check_density(text) == parse_share(text) == share
    assert parse_share_option("density", text) == share


def test_a_sparsity_is_the_density_that_is_written_so():
    assert check_density(sparsity="90%") == check_density(sparsity=0.9) == 0.1
    assert parse_share_option("sparsity", "90%") == 0.9


@pytest.mark.parametrize("text", ["ten", "%", "", "1/3", "1,5%", "1e999999999%", True, [0.1], torch.tensor(0.1)])
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match=r"is no share: write it as 0\.1 or as 10%"):
        check_density(text)


@pytest.mark.parametrize(("density", "meant"), [(10, "10 %? write 10% or 0.1"), (2.5, "2.5 %? write 2.5% or 0.025")])
def test_a_number_above_1_was_a_percentage(density, meant):
    with pytest.raises(UsageError, match=re.escape(meant)):
        check_density(density)
