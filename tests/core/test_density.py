from __future__ import annotations

import re
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry.core.prune import prune
from ticketry.core.structure.pattern import (
    DISTRIBUTIONS,
    check_density,
    check_distribution,
    count_retained,
    parse_share,
    parse_share_option,
)
from ticketry.errors import UsageError


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
def test_densities_out_of_bounds_are_refused(value):
    with pytest.raises(UsageError, match=r"0 < density <= 1, not"):
        check_density(value)


@pytest.mark.parametrize("value", [True, [0.1], torch.tensor(0.1), "a tenth"])
def test_what_is_no_number_is_no_density(value):
    with pytest.raises(UsageError, match=r"is no share: write it as 0\.1 or as 10%"):
        check_density(value)


@pytest.mark.parametrize("value", [1, -0.1, 1.5, nan, inf])
def test_sparsities_out_of_bounds_are_refused(value):
    with pytest.raises(UsageError, match=r"0 <= sparsity < 1, not"):
        check_density(sparsity=value)


@pytest.mark.parametrize(("sparsity", "density"), [(0.9, 0.1), (0.95, 0.05), (0.7, 0.3), (0, 1), (0.999, 0.001)])
def test_a_sparsity_is_the_density_that_is_written_so(sparsity, density):
    assert check_density(sparsity=sparsity) == density


@pytest.mark.parametrize(
    ("density", "total", "kept"), [(0.5, 5, 3), (0.15, 10, 2), (0.1, 5, 1), (0.05, 10, 1), (0.35, 10, 4), (1e-9, 10, 0)]
)
def test_half_an_element_is_rounded_up(density, total, kept):
    assert count_retained(density, total) == kept


def test_distributions_are_known_by_name():
    assert [check_distribution(name) for name in DISTRIBUTIONS] == ["global", "layerwise", "uniform", "erk"]
    with pytest.raises(UsageError, match="'lamp' is not known: global, layerwise, uniform, erk"):
        check_distribution("lamp")


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), (" 64.3 %", 0.643), ("0.25", 0.25), ("100%", 1.0), ("1e-1%", 0.001)]
)
def test_percentages_are_exact_in_their_decimals(text, share):
    assert check_density(text) == parse_share(text) == share
    assert parse_share_option("density", text) == share


def test_a_sparsity_in_percent():
    assert check_density(sparsity="90%") == 0.1
    assert parse_share_option("sparsity", "90%") == 0.9


@pytest.mark.parametrize("text", ["ten", "%", "", "1/3", "1,5%", "1e999999999%"])
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match=r"is no share: write it as 0\.1 or as 10%"):
        check_density(text)


@pytest.mark.parametrize(("density", "meant"), [(10, "10 %? write 10% or 0.1"), (2.5, "2.5 %? write 2.5% or 0.025")])
def test_a_number_above_1_was_a_percentage(density, meant):
    with pytest.raises(UsageError, match=re.escape(meant)):
        check_density(density)


def test_prune_takes_a_percentage():
    model = torch.nn.Linear(40, 50)
    assert prune(model, "10%").kept == 200
    assert prune(model, sparsity="90%").kept == 200
    with pytest.raises(UsageError, match=re.escape("10 %? write 10% or 0.1")):
        prune(model, 10)
