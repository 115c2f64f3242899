"""Learning rates against torch's own schedulers, iteration by iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from ticketry.lab.training.state import learning_rate
from ticketry.tasks.recipe import Recipe, Schedule

TOTAL, PER_EPOCH, PEAK = 60, 10, 0.4


def theirs(make: Callable[[Optimizer], LRScheduler], steps: int = TOTAL) -> list[float]:
    """The learning rate of each iteration under a scheduler of torch that is stepped after each."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def ours(recipe: Recipe, steps: int = TOTAL) -> list[float]:
    return [learning_rate(recipe, step, total=TOTAL, per_epoch=PER_EPOCH) for step in range(steps)]


def warm(steps: int, after: Callable[[Optimizer], LRScheduler]) -> Callable[[Optimizer], LRScheduler]:
    """torch's form of a linear warm-up before another schedule."""

    def make(optimizer: Optimizer) -> LRScheduler:
        rise = schedulers.LinearLR(optimizer, start_factor=1 / steps, end_factor=1.0, total_iters=steps - 1)
        return schedulers.SequentialLR(optimizer, [rise, after(optimizer)], milestones=[steps])

    return make


CASES = {
    "constant": (Recipe(lr=PEAK), lambda o: schedulers.ConstantLR(o, factor=1.0)),
    "multistep": (
        Recipe(lr=PEAK, schedule="multistep", milestones=("30it", "4ep", "75%"), gamma=0.2),
        lambda o: schedulers.MultiStepLR(o, [30, 40, 45], gamma=0.2),
    ),
    "milestones that meet": (
        Recipe(lr=PEAK, schedule="multistep", milestones=("3ep", "50%"), gamma=0.5),
        lambda o: schedulers.MultiStepLR(o, [30, 30], gamma=0.5),
    ),
    "cosine": (Recipe(lr=PEAK, schedule="cosine"), lambda o: schedulers.CosineAnnealingLR(o, T_max=TOTAL)),
    "linear": (
        Recipe(lr=PEAK, schedule="linear"),
        lambda o: schedulers.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=TOTAL),
    ),
    "onecycle": (
        Recipe(lr=PEAK, schedule="onecycle"),
        lambda o: schedulers.OneCycleLR(o, PEAK, total_steps=TOTAL, pct_start=0.3, anneal_strategy="cos"),
    ),
    "onecycle, its rise given": (
        Recipe(lr=PEAK, schedule="onecycle", warmup="20%"),
        lambda o: schedulers.OneCycleLR(o, PEAK, total_steps=TOTAL, pct_start=0.2, anneal_strategy="cos"),
    ),
    "warm-up": (Recipe(lr=PEAK, warmup="15it"), warm(15, lambda o: schedulers.ConstantLR(o, factor=1.0))),
    "warm-up, multistep": (
        Recipe(lr=PEAK, schedule="multistep", milestones=("40it",), warmup="1ep"),
        warm(10, lambda o: schedulers.MultiStepLR(o, [40 - 10])),
    ),
    "warm-up, cosine": (
        Recipe(lr=PEAK, schedule="cosine", warmup="10%"),
        warm(6, lambda o: schedulers.CosineAnnealingLR(o, T_max=TOTAL - 6)),
    ),
    "warm-up, linear": (
        Recipe(lr=PEAK, schedule="linear", warmup="0.5ep"),
        warm(5, lambda o: schedulers.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=TOTAL - 5)),
    ),
}


# torch warns when a scheduler that another one holds is stepped by hand, and that is what SequentialLR does itself.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_torch(case):
    recipe, make = CASES[case]
    found = ours(recipe)
    assert found == pytest.approx(theirs(make), rel=1e-9, abs=1e-9 * PEAK)
    for step in (TOTAL, 10 * TOTAL):
        assert learning_rate(recipe, step, total=TOTAL, per_epoch=PER_EPOCH) == found[-1]


recipes = st.builds(
    Recipe,
    lr=st.floats(1e-6, 10),
    schedule=st.sampled_from(get_args(Schedule)),
    milestones=st.lists(st.sampled_from(["1it", "2ep", "50%", "99%"]), min_size=1).map(tuple),
    gamma=st.floats(0, 1),
    warmup=st.sampled_from(["0it", "1it", "3it", "1ep", "40%", "end"]),
)


@given(recipes, st.integers(1, 60), st.integers(1, 20), st.integers(0, 120))
def test_never_below_zero_nor_above_the_peak(recipe, total, per_epoch, step):
    lr = learning_rate(recipe, step, total=total, per_epoch=per_epoch)
    assert 0 <= lr <= recipe.lr * (1 + 1e-12)
