"""The order of the data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry.lab.training.data_loading import DataOrder, steps_per_epoch
from ticketry_engine.support.seeds import mix_seeds

sizes, batches, seeds = st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**40)


def epoch_of(order: DataOrder, epoch: int, steps: int) -> list[int]:
    return [int(i) for step in range(epoch * steps, (epoch + 1) * steps) for i in order.batch(step)]


@given(sizes, batches, seeds, st.integers(0, 1000))
def test_every_epoch_has_every_example_once(examples, batch, seed, epoch):
    steps = steps_per_epoch(examples, batch)
    order = DataOrder(seed, examples, batch)
    assert sorted(epoch_of(order, epoch, steps)) == list(range(examples))


@given(sizes, batches)
def test_batches_are_full_but_the_last(examples, batch):
    steps = steps_per_epoch(examples, batch)
    found = [len(DataOrder(0, examples, batch).batch(step)) for step in range(steps)]
    left = examples - batch * (steps - 1)
    assert found == [batch] * (steps - 1) + [left]
    assert 1 <= left <= batch


@given(sizes, batches, seeds, st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_a_batch_does_not_depend_on_what_was_asked_before(examples, batch, seed, steps):
    used = DataOrder(seed, examples, batch)
    for step in steps:
        assert torch.equal(used.batch(step), DataOrder(seed, examples, batch).batch(step))


def test_epochs_and_seeds_differ():
    orders = [tuple(epoch_of(DataOrder(seed, 50, 7), epoch, 8)) for seed in range(10) for epoch in range(10)]
    assert len(set(orders)) == 100


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = DataOrder(3, 40, 40).batch(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, DataOrder(3, 40, 40).batch(0))


@pytest.mark.parametrize(("examples", "batch", "steps"), [(100, 10, 10), (101, 10, 11), (1, 10, 1), (10, 1, 10)])
def test_steps_per_epoch(examples, batch, steps):
    assert steps_per_epoch(examples, batch) == steps


GOLDEN_SEEDS = [8583472643440827079, 8094112571494048402, 8355225661936674284, 3930813349101710692]
GOLDEN_ORDER = [[9, 8, 4, 0], [2, 7, 6, 3], [1, 5], [9, 0, 5, 8], [3, 7, 6, 1], [4, 2]]


def test_golden_numbers():
    """Every stored result depends on these: if they change, `lab.training.segment.NUMERICS` has to change too."""
    assert mix_seeds(0, "order", 0) == GOLDEN_SEEDS[0]
    assert mix_seeds(0, "initialisation") == GOLDEN_SEEDS[1]
    assert mix_seeds(5, "step", 17) == GOLDEN_SEEDS[2]
    assert mix_seeds(5, "augment", 17) == GOLDEN_SEEDS[3]
    order = DataOrder(0, 10, 4)
    assert [order.batch(step).tolist() for step in range(6)] == GOLDEN_ORDER
