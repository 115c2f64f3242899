"""Parameter counts without memory, and the network that just fits a budget, against brute force."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks import models

SHAPE = (3, 32, 32)
QUICK = ["lenet-300-100", "lenet-5", "conv-2", "conv-4", "conv-4-16", "conv-6", "resnet-20", "resnet-20-8", "vgg-16"]
EVERY = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in models.names()]


def widths(last: int) -> list[str]:
    """Multiples of 1/64 as decimals."""
    return [f"{count / 64:.6f}" for count in range(1, last + 1)]


@lru_cache
def counts(name: str, last: int = 64) -> dict[str, int]:
    """NAME@W -> number of parameters, for every multiple of 1/64 up to `last` / 64."""
    found = {}
    for width in widths(last):
        with torch.device("meta"):
            model = models.build(f"{name}@{width}", shape=SHAPE, classes=10)
        short = width.rstrip("0").rstrip(".")
        found[name if short == "1" else f"{name}@{short}"] = sum(p.numel() for p in model.parameters())
    return found


def brute_force(table: dict[str, int], budget: int) -> str | None:
    """The last of those, in the order of width, that fits."""
    fitting = [name for name, count in table.items() if count <= budget]
    return fitting[-1] if fitting else None


@pytest.mark.parametrize("name", ["lenet-300-100@0.3", "conv-4-16", "resnet-20@0.5", "vgg-11@0.1", "wrn-16-8@0.1"])
def test_parameters_are_those_of_the_allocated_network(name: str) -> None:
    model = models.build(name, shape=SHAPE, classes=17)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert models.parameters(name, shape=SHAPE, classes=17) == expected


def test_counting_allocates_nothing_and_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    # Sixteen times WRN-28-10's 36 million would take 2.3 GB.
    assert models.parameters("wrn-28-10@4", shape=SHAPE, classes=10) > 500_000_000
    assert models.narrower("resnet-20", shape=SHAPE, classes=10, parameters=50_000) is not None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", sample(EVERY, 4))
def test_a_network_never_has_fewer_parameters_than_a_narrower_one(name: str) -> None:
    """Which is what lets `narrower` bisect."""
    assert all(few <= many for few, many in pairwise(counts(name).values()))


@pytest.mark.parametrize("name", sample(EVERY, 4))
def test_the_widest_that_fits_is_that_of_brute_force(name: str) -> None:
    table = counts(name)
    some = sorted(table.values())
    budgets = {0, some[0] - 1, some[0], some[1], some[20], some[40] - 1, some[40], some[-1] - 1, some[-1], 10**12}
    for budget in budgets:
        assert models.narrower(name, shape=SHAPE, classes=10, parameters=budget) == brute_force(table, budget)


@given(st.integers(0, 900_000))
@settings(max_examples=40, deadline=None)
def test_any_budget(budget: int) -> None:
    found = models.narrower("lenet-300-100", shape=SHAPE, classes=10, parameters=budget)
    assert found == brute_force(counts("lenet-300-100"), budget)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 3_000, 60_000, 100_000, 1_000_000, 10**9])
def test_a_wide_network_may_stay_wider_than_its_plain_form(budget: int) -> None:
    table = counts("resnet-20", 128)
    found = models.narrower("resnet-20@2", shape=SHAPE, classes=10, parameters=budget)
    assert found == brute_force(table, budget)


def test_a_width_between_the_steps() -> None:
    def narrower(parameters: int) -> str | None:
        return models.narrower("lenet-300-100@0.210", shape=(1, 28, 28), classes=10, parameters=parameters)

    own = models.parameters("lenet-300-100@0.21", shape=(1, 28, 28), classes=10)
    assert narrower(own) == "lenet-300-100@0.21"
    assert narrower(own - 1) == "lenet-300-100@0.203125"  # 13/64
    assert models.narrower("conv-4@0.01", shape=SHAPE, classes=10, parameters=1) is None


def test_wrong_requests() -> None:
    with pytest.raises(TaskError, match="no network 'nothing'"):
        models.narrower("nothing", shape=SHAPE, classes=10, parameters=10)
    with pytest.raises(TaskError, match="the width of timm's networks cannot be chosen"):
        models.narrower("timm:resnet18", shape=SHAPE, classes=10, parameters=10)
    with pytest.raises(TaskError, match="at least 16x16 pixels"):
        models.narrower("vgg-16", shape=(1, 8, 8), classes=10, parameters=10)
