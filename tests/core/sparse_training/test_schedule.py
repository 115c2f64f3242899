"""Schedules against their closed forms, and those that were published."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import cos, inf, nan, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.core.sparse_training.schedule import cubic, cuts, cuts_within, moves_within, phases_within
from ticketry.errors import UsageError

densities = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@given(densities, densities, st.integers(0, 60), st.integers(1, 60))
def test_it_is_equation_1_of_the_paper(one, other, done, more):
    """s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3, in sparsities."""
    final, initial = sorted((one, other))
    share = Fraction(done, done + more)
    s_final, s_initial = 1 - Fraction(str(final)), 1 - Fraction(str(initial))
    sparsity = s_final + (s_initial - s_final) * (1 - share) ** 3
    assert cubic(done / (done + more), final, initial) == pytest.approx(float(1 - sparsity), abs=1e-14)


@pytest.mark.parametrize("density", [0.1, 0.05, 1 / 3, 1.0])
def test_its_ends_are_exact(density):
    assert cubic(0, density) == 1.0
    assert cubic(1, density) == density


@given(densities, st.integers(0, 50), st.integers(1, 300), st.integers(1, 400))
def test_cuts_are_a_frequency_apart_and_end_at_the_end(density, begin, length, frequency):
    found = cuts(density, begin=begin, end=begin + length, frequency=frequency)
    steps = list(found)
    assert steps[-1] == begin + length
    assert found[begin + length] == density
    assert all(after - before == frequency for before, after in pairwise([begin, *steps[:-1]]))
    assert 0 < steps[-1] - ([begin, *steps][-2]) <= frequency
    values = [1.0, *found.values()]
    assert all(before >= after for before, after in pairwise(values))
    for step, value in found.items():
        exact = Fraction(str(density)) + (1 - Fraction(str(density))) * (1 - Fraction(step - begin, length)) ** 3
        assert value == pytest.approx(float(exact), rel=1e-11)


def test_points_in_training():
    found = cuts_within(0.1, begin="10%", end="2ep", frequency="30it", total=1000, per_epoch=100)
    assert list(found) == [130, 160, 190, 200]
    assert list(cuts_within(0.1, begin="0", end="90%", frequency="1%", total=10)) == list(range(1, 10))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"end": "end"}, "leaves nothing to train"),
        ({"end": "60it"}, "leaves nothing to train"),
        ({"begin": "30it", "end": "50%"}, "begins at 30it, step 30 of 50, and ends at 50%, step 25"),
        ({"begin": "1ep"}, "counted in epochs"),
        ({"begin": "soon"}, "not a point in training"),
        ({"density": 0.0}, "0 < density <= 1"),
    ],
)
def test_schedules_that_cannot_be(wrong, told):
    with pytest.raises(UsageError, match=told):
        cuts_within(**{"density": 0.1, "begin": "0", "end": "50%", "frequency": "5it", "total": 50, **wrong})


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: cubic(1.1, 0.1), "progress"),
        (lambda: cubic(nan, 0.1), "progress"),
        (lambda: cubic(0.5, inf), "density"),
        (lambda: cubic(0.5, 0.5, initial=0.4), "only shrink"),
        (lambda: cuts(0.1, begin=5, end=5, frequency=1), "got begin 5, end 5"),
        (lambda: cuts(0.1, begin=-1, end=5, frequency=1), "got begin -1, end 5"),
        (lambda: cuts(0.1, begin=0, end=5, frequency=0), "at least 1, got 0"),
    ],
)
def test_what_is_refused(call, told):
    with pytest.raises(UsageError, match=told):
        call()


@given(st.integers(2, 300), st.integers(1, 40), st.sampled_from([0.1, 0.3, 0.5]))
def test_moves_fall_along_a_cosine(total, every, alpha):
    last = (3 * total + 2) // 4  # 75 %, rounded half up
    if every >= last:
        with pytest.raises(UsageError, match="would never move"):
            moves_within(alpha, end="75%", frequency=f"{every}it", total=total)
        return
    moves = moves_within(alpha, end="75%", frequency=f"{every}it", total=total)
    assert list(moves) == [step for step in range(1, total) if step % every == 0 and step < last]
    assert list(moves.values()) == pytest.approx([alpha / 2 * (1 + cos(pi * step / last)) for step in moves], abs=1e-11)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"end": "0"}, {"frequency": "2ep"}])
def test_moves_that_cannot_be(wrong):
    with pytest.raises(UsageError):
        moves_within(**{"share": 0.3, "end": "75%", "frequency": "10it", "total": 100, **wrong})


def test_the_phases_of_the_papers_experiments():
    """The epochs at which weights are pruned and restored in the configurations of the authors' code."""
    imagenet = phases_within(warmup="10%", phase="5%", end="85%", total=100)
    assert [step for step, sparse in imagenet if sparse] == [*range(10, 71, 10), 85]
    assert [step for step, sparse in imagenet[1:] if not sparse] == [*range(15, 66, 10), 75]
    cifar = phases_within(warmup="10ep", phase="20ep", end="170ep", total=200, per_epoch=1)
    assert [step for step, sparse in cifar if sparse] == [*range(10, 171, 40)]
    assert [step for step, sparse in cifar[1:] if not sparse] == [*range(30, 160, 40)]
    assert phases_within(warmup="0", phase="10it", end="20it", total=30) == [(0, True), (10, False), (20, True)]


@pytest.mark.parametrize(
    "wrong", [{"warmup": "80%"}, {"phase": "0"}, {"phase": "50%"}, {"end": "end"}, {"end": "5%"}, {"phase": "1ep"}]
)
def test_phases_that_cannot_be(wrong):
    with pytest.raises(UsageError):
        phases_within(**{"warmup": "10%", "phase": "5%", "end": "85%", "total": 100, **wrong})
