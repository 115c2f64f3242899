from __future__ import annotations

import re
from fractions import Fraction
from math import inf, nan

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ticketry.core.allocate import allocate, apportion
from ticketry.core.mask import Mask
from ticketry.core.structure.pattern import DISTRIBUTIONS
from ticketry.errors import LayerCollapseError, MaskError, UsageError

densities = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
shapes = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=5)


@st.composite
def scores(draw):
    levels = 3 if draw(st.booleans()) else 10_000
    seed = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return {
        f"layer{index}": torch.randint(levels, shape, generator=seed).double() - 1
        for index, shape in enumerate(draw(shapes))
    }


@st.composite
def scores_and_base(draw):
    found = draw(scores())
    seed = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    base = Mask({name: torch.rand(score.shape, generator=seed) < 0.7 for name, score in found.items()})
    assume(base.kept)
    return found, base


def total_of(found: dict[str, torch.Tensor]) -> int:
    return sum(score.numel() for score in found.values())


def round_half_up(density: float, total: int) -> int:
    """By the digits that were written: 0.15 of 10 is 1.5 and gives 2, whatever the float nearest to 0.15 is."""
    thousandths = round(density * 1000)
    return (2 * thousandths * total + 1000) // 2000


def allocated(found, density, **settings_) -> Mask | None:
    try:
        return allocate(found, density, **settings_)
    except LayerCollapseError:
        return None


@given(scores(), densities)
def test_global_keeps_the_first_of_a_slow_stable_sort(found, density):
    places = [(name, index) for name, score in found.items() for index in range(score.numel())]
    ranked = sorted(places, key=lambda place: -found[place[0]].flatten()[place[1]].item())  # sorted is stable
    best = set(ranked[: round_half_up(density, len(places))])
    expected = {name: [(name, index) in best for index in range(score.numel())] for name, score in found.items()}
    collapsed = [name for name, kept in expected.items() if not any(kept)]
    if collapsed:
        with pytest.raises(LayerCollapseError, match=collapsed[0]):
            allocate(found, density)
    else:
        mask = allocate(found, density)
        assert {name: tensor.flatten().tolist() for name, tensor in mask.items()} == expected


def filled(total: int, weights: list[float], capacity: list[int]) -> list[float]:
    """min(capacity, level * weight) at the level where they add up to `total`, found by bisection."""
    low, high = 0.0, max(c / w for c, w in zip(capacity, weights, strict=True)) + 1
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(c, level * w) for c, w in zip(capacity, weights, strict=True)) < total:
            low = level
        else:
            high = level
    return [min(c, high * w) for c, w in zip(capacity, weights, strict=True)]


@given(scores(), densities, st.sampled_from(DISTRIBUTIONS))
def test_density_published_shares_and_best_of_each_layer(found, density, distribution):
    """The density is met to the element; each layer keeps its best, ties go to the earlier."""
    mask = allocated(found, density, distribution=distribution)
    assume(mask is not None)
    assert mask.kept == round_half_up(density, total_of(found))
    assert list(mask.shapes.items()) == [(name, tuple(score.shape)) for name, score in found.items()]
    for name, score in found.items():
        flat = score.flatten().tolist()
        ranked = sorted(range(len(flat)), key=lambda index: -flat[index])
        assert sorted(mask[name].flatten().nonzero().flatten().tolist()) == sorted(ranked[: int(mask[name].sum())])
    if distribution == "global":
        return
    weights = sizes = [score.numel() for score in found.values()]
    if distribution == "erk":  # RigL, section 3: density of a layer = level * sum(shape) / prod(shape), at most 1
        weights = [max(sum(score.shape), 1) for score in found.values()]
    for row, share in zip(mask.table(), filled(mask.kept, weights, sizes), strict=True):
        assert abs(row.kept - share) < 1 + 1e-6


def test_erk_of_a_single_number():
    """A weight of 1 beside 20 of a matrix 10 x 10: of 10 it would get 10/21 and gets none, of 12 it gets one."""
    found = {"scale": torch.tensor(1.0), "fc": torch.rand(10, 10)}
    with pytest.raises(LayerCollapseError, match="scale"):
        allocate(found, 10 / 101, distribution="erk")
    assert allocate(found, 12 / 101, distribution="erk")["scale"].item() is True


def test_erk_of_a_layer_without_weights():
    found = {"none": torch.rand(0, 5), "fc": torch.rand(10, 10)}
    assert allocate(found, 0.5, distribution="erk").kept == 50
    assert apportion(50, {"none": Fraction(0), "fc": Fraction(20)}, {"none": 0, "fc": 100}) == {"none": 0, "fc": 50}


def test_erk_of_a_published_case():
    """LeNet-300-100 at 10 %: sums 1084, 400, 110 and sizes 235,200, 30,000, 1,000; the output layer stays dense."""
    found = {name: torch.rand(shape) for name, shape in [("1", (300, 784)), ("2", (100, 300)), ("3", (10, 100))]}
    kept = {row.name: row.kept for row in allocate(found, 0.1, distribution="erk").table()}
    level = Fraction(26_620 - 1_000, 1_084 + 400)
    assert kept["3"] == 1_000
    assert abs(kept["1"] - level * 1_084) < 1
    assert abs(kept["2"] - level * 400) < 1
    assert sum(kept.values()) == 26_620


def test_uniform_and_layerwise_differ_once_layers_do():
    base = Mask({"a": torch.ones(100), "b": torch.cat([torch.ones(20), torch.zeros(80)])})
    found = {"a": torch.rand(100), "b": torch.rand(100)}
    uniform = allocate(found, 0.3, distribution="uniform", within=base)
    layerwise = allocate(found, 0.3, distribution="layerwise", within=base)
    assert [row.kept for row in uniform.table()] == [40, 20]  # equal shares of the whole; b can give but 20
    assert [row.kept for row in layerwise.table()] == [50, 10]  # half of what each still has


@given(scores_and_base(), densities, st.sampled_from(DISTRIBUTIONS))
def test_within_is_never_left(found_and_base, density, distribution):
    found, base = found_and_base
    wanted = round_half_up(density, total_of(found))
    if wanted > base.kept:
        with pytest.raises(MaskError, match=f"has only {base.kept}"):
            allocate(found, density, distribution=distribution, within=base)
        return
    mask = allocated(found, density, distribution=distribution, within=base)
    assume(mask is not None)
    assert mask <= base
    assert mask.kept == wanted


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(scores_and_base(), densities)
def test_global_within_is_global_over_the_candidates(found_and_base, density):
    found, base = found_and_base
    lowest = {name: torch.where(base[name], score, torch.tensor(-inf)) for name, score in found.items()}
    density *= base.kept / total_of(found)  # what the base can give
    assume(density > 0 and round_half_up(density, total_of(found)) <= base.kept)
    mask = allocated(found, density, within=base)
    assume(mask is not None)
    assert mask == allocate(lowest, density)


SIZES = {"a": 100, "b": 60, "out": 40}


class TestHalfRate:
    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    @pytest.mark.parametrize(("density", "out"), [(0.5, 30), (0.25, 25), (0.9, 38), (1.0, 40)])
    def test_the_layer_loses_half_the_share(self, distribution, density, out):
        found = {name: torch.rand(size) for name, size in SIZES.items()}
        mask = allocate(found, density, distribution=distribution, half_rate=("out",))
        assert mask.kept == round_half_up(density, 200)
        assert int(mask["out"].sum()) == out  # 40 * (1 - (1 - density) / 2)

    def test_the_share_is_that_of_what_is_left(self):
        found = {name: torch.rand(size) for name, size in SIZES.items()}
        first = allocate(found, 0.8, half_rate=("out",))
        assert int(first["out"].sum()) == 36  # - 10 %
        second = allocate(found, 0.64, within=first, half_rate=("out",))
        assert int(second["out"].sum()) == 32  # 36 * 0.9 = 32.4
        assert second.kept == 128

    def test_halves_are_rounded_up(self):
        # Of 20 weights three quarters go; the output layer loses half that share, and keeps 2.5 of 4: 3.
        small = allocate({"fc": torch.rand(16), "out": torch.rand(4)}, 0.25, half_rate=("out",))
        assert [row.kept for row in small.table()] == [2, 3]

    @pytest.mark.parametrize("words", [("head",), ("head.*",), ("*.out.weight",), ("head.out", "head.out.weight")])
    def test_layers_are_named_as_those_that_are_spared(self, words):
        found = {"body.weight": torch.rand(160), "head.out.weight": torch.rand(40)}
        assert allocate(found, 0.5, half_rate=words) == allocate(found, 0.5, half_rate=("head.out.weight",))
        with pytest.raises(UsageError, match=r"half_rate names 'hea', .*: they are body\.weight, head\.out\.weight"):
            allocate(found, 0.5, half_rate=("head", "hea"))

    def test_layers_that_cannot_be_that_dense_are_refused(self):
        with pytest.raises(MaskError, match="half rate"):
            allocate({"a": torch.rand(2), "out": torch.rand(98)}, 0.1, half_rate=("out",))


UNEVEN = {"big": torch.arange(100.0) + 10, "small": torch.tensor([1.0, 3.0, 2.0])}


def test_collapse_keep_takes_the_worst_of_the_largest_layer():
    mask = allocate(UNEVEN, 0.5, collapse="keep")
    assert mask["small"].tolist() == [False, True, False]
    assert mask.kept == 52  # 51.5 rounded half up
    assert mask["big"].nonzero().flatten().tolist() == list(range(49, 100))


def one_by_one(counts: dict[str, int], capacity: dict[str, int], least: int) -> dict[str, int]:
    """Weights handed over one at a time: to the first layer that lacks some, from the first of the largest."""
    counts = dict(counts)
    while lacking := [name for name in counts if counts[name] < min(least, capacity[name])]:
        donor = max(counts, key=lambda name: counts[name])
        counts[donor] -= 1
        counts[lacking[0]] += 1
    return counts


class TestKeepAtLeast:
    @given(scores(), densities, st.sampled_from(DISTRIBUTIONS), st.integers(1, 6))
    def test_each_layer_keeps_so_many_and_the_largest_give(self, found, density, distribution, least):
        sizes = {name: score.numel() for name, score in found.items()}
        kept = round_half_up(density, sum(sizes.values()))
        if kept < sum(min(least, size) for size in sizes.values()):
            with pytest.raises(LayerCollapseError, match="too low to keep"):
                allocate(found, density, distribution=distribution, keep_at_least=least)
            return
        mask = allocate(found, density, distribution=distribution, keep_at_least=least)
        assert mask.kept == kept
        assert all(row.kept >= min(least, row.total) for row in mask.table())
        free = allocated(found, density, distribution=distribution)
        if free is not None:
            expected = one_by_one({row.name: row.kept for row in free.table()}, sizes, least)
            assert {row.name: row.kept for row in mask.table()} == expected
        if least == 1:
            assert mask == allocate(found, density, distribution=distribution, collapse="keep")

    def test_only_candidates_count(self):
        base = Mask({"big": torch.ones(100), "small": torch.tensor([1, 0, 1])})
        mask = allocate(UNEVEN, 0.5, keep_at_least=10, within=base)
        assert mask["small"].tolist() == [True, False, True]

    def test_a_number_below_0_is_refused(self):
        with pytest.raises(UsageError, match="keep_at_least is a number of weights, 0 or more, not -1"):
            allocate(UNEVEN, 0.5, keep_at_least=-1)


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(MaskError, match="the scores of 'b' are not all numbers"):
        allocate({"a": torch.rand(3), "b": torch.tensor([1.0, nan])}, 0.5)
    with pytest.raises(MaskError, match="the scores of 'b' are not all numbers"):
        allocate({"a": torch.rand(2, 4), "b": torch.tensor([[1.0, nan, 2.0, 3.0]])}, pattern="2:4")
    with pytest.raises(MaskError, match="no scores"):
        allocate({}, 0.5)


def test_scores_that_differ_in_the_last_bit_are_told_apart():
    tiny = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    mask = allocate({"a": torch.stack([torch.ones((), dtype=torch.float64), tiny])}, 0.5)
    assert mask["a"].tolist() == [False, True]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8), st.data())
def test_shared_out_is_exact_fair_and_within_capacity(pairs, data):
    weights = {str(index): Fraction(weight) for index, (weight, _) in enumerate(pairs)}
    capacity = {str(index): room for index, (_, room) in enumerate(pairs)}
    amount = data.draw(st.integers(0, sum(capacity.values())))
    counts = apportion(amount, weights, capacity)
    assert sum(counts.values()) == amount
    assert all(0 <= counts[name] <= capacity[name] for name in counts)
    shares = filled(amount, [float(weights[name]) for name in counts], [capacity[name] for name in counts])
    assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts.values(), shares, strict=True))


@given(scores(), densities, st.sampled_from(DISTRIBUTIONS))
def test_a_collapse_names_a_density_without_one(scores, density, distribution):
    total = sum(score.numel() for score in scores.values())
    try:
        allocate(scores, density, distribution=distribution)
    except LayerCollapseError as error:
        told = str(error)
    else:
        assume(False)
    enough = float(re.search(r"(?:in each is|in each at) ([\d.e-]+):", told)[1])
    kept = allocate(scores, enough, distribution=distribution).kept
    assert ("the lowest" in told) == (distribution == "global")
    if distribution == "global":  # tried one by one: every smaller number of weights leaves some layer empty
        for fewer in range(1, kept):
            with pytest.raises(LayerCollapseError):
                allocate(scores, fewer / total)


def test_no_density_is_named_where_a_layer_has_no_candidates():
    scores = {"a": torch.ones(4), "b": torch.ones(4)}
    within = Mask({"a": torch.ones(4, dtype=torch.bool), "b": torch.zeros(4, dtype=torch.bool)})
    with pytest.raises(LayerCollapseError, match="choose a higher one, another distribution"):
        allocate(scores, 0.25, within=within)
