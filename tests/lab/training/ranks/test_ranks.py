"""Several real processes train one network: as one process does, to the same bits twice, through kills and stops."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rank_trainings import deciding, described, largest_difference, task_of, trained
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import InterruptedTrainingError, RunnerError, TaskError, TrainingError
from ticketry.lab.store.store import Store
from ticketry.lab.training.data_loading import DataOrder, part_of_batch
from ticketry.lab.training.job import Watch
from ticketry.lab.training.precision import OWN
from ticketry.lab.training.state import initial_state, rebuild_model
from ticketry.lab.training.variants import Penalty
from ticketry.search.gating.gating import Gating
from watches import KillAt, StopAt, children


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_two_ranks_are_equal_to_one_process(store):
    """In float64: convolutions, synchronised norms, dropout, augmentation, clipping, Adam, a mask, a penalty, batches
    of 32 and, at an epoch's end, of 19, which the two ranks have as 10 and 9."""
    task = task_of(examples=211)
    penalty = Penalty(kind="hoyer_square", strength=1e-3, names=("0.weight",))
    alone, two = (described(store, task, ranks, variants=(penalty,)) for ranks in (1, 2))
    one, both = trained(store, alone, (10,)), trained(store, two, (10,))
    assert two.trajectory != alone.trajectory
    assert largest_difference(store, one["model"], both["model"]) <= 1e-9
    at_ten = [store.load_result(each.trajectory, 10) for each in (alone, two)]
    assert largest_difference(store, at_ten[0]["training"], at_ten[1]["training"]) <= 1e-9
    assert both["metrics"] == one["metrics"]
    assert [loss for _, loss in both["loss"]] == pytest.approx([loss for _, loss in one["loss"]], abs=1e-6)
    mask = store.get_mask(two.mask)
    state = store.get_tensors(both["model"])
    assert all(not state[name][~kept].any() for name, kept in mask.items())


@pytest.mark.slow
def test_norms_of_each_rank(store):
    """Against a loop that has both halves of each batch in one process; running statistics are the first rank's."""
    task = task_of(drop=0.0, examples=192)
    recipe = task.recipe.changed(augment=(), optimizer="sgd", lr=0.1, clip=0)
    segment = described(store, task, 2, norms=OWN, recipe=recipe)
    record = trained(store, segment)
    model = rebuild_model(task, initial_state(task, 3)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    order, train = DataOrder(4, 192, 32), task.load().train
    with hold(model, store.get_mask(segment.mask)):
        for step in range(segment.last):
            optimizer.zero_grad()
            rows = order.batch(step)
            for rank in (1, 0):
                before = {name: value.clone() for name, value in model.named_buffers()}
                own = part_of_batch(rows, rank, 2)
                (F.cross_entropy(model(task.prepare(train.inputs[own])), train.targets[own]) / 2).backward()
                if rank:
                    for name, value in model.named_buffers():
                        value.copy_(before[name])
            optimizer.step()
    expected = model.state_dict()
    found = store.get_tensors(record["model"])
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-9
    synchronised = described(store, task, 2, recipe=recipe)
    assert synchronised.key != segment.key


@pytest.mark.slow
def test_gates_are_those_of_one_process(store):
    """Of Continuous Sparsification: their gradients are the mean over ranks, as those of the weights are."""
    gates = Gating(scope=("0.weight", "6.weight"), lr=0.5, init=0.02, penalty=1e-4, final=50.0)
    segments = [described(store, task_of(examples=211), ranks, masked=False, variants=(gates,)) for ranks in (1, 2)]
    one, two = (trained(store, each) for each in segments)
    assert largest_difference(store, one["model"], two["model"]) <= 1e-9
    assert largest_difference(store, one["variants"]["gates"], two["variants"]["gates"]) <= 1e-9
    begun = {f"s/{name}": torch.full((), 0.02) for name in gates.scope}
    moved = store.get_tensors(two["variants"]["gates"])
    assert all((moved[name] - value).abs().max() > 0.01 for name, value in begun.items())
    assert {**one["gating"], "soft_density": 0} == {**two["gating"], "soft_density": 0}


@pytest.mark.slow
def test_killed_and_stopped_ranks_go_on_with_the_same_bits(store, tmp_path):
    """With three ranks, where the order in which gradients are added up tells."""
    segment = described(store, task_of(length="60it", wide="no"), 3)
    undisturbed = trained(store, segment, (30,))
    other = Store(tmp_path / "disturbed")
    other.put_mask(store.get_mask(segment.mask))
    watch = StopAt(at=9)
    with pytest.raises(InterruptedTrainingError, match="its state is stored"):
        trained(other, segment, (30,), watch)
    reached = other.newest_checkpoint(segment.trajectory, segment.last)
    assert reached is not None
    assert 0 < reached[0] < segment.last
    watch = KillAt(ranks={25: 1})
    assert deciding(trained(other, segment, (30,), watch)) == deciding(undisturbed)
    assert not watch.ranks, "no rank was killed"
    assert not children()
    assert not list(other.paths.partial.iterdir())


@pytest.mark.slow
def test_ranks_that_are_lost_again_and_again(store, monkeypatch):
    segment = described(store, task_of(), 2)

    class Deadly(Watch):
        def is_stop_requested(self):
            os.kill(children()[-1], signal.SIGKILL)
            return False

    with pytest.raises(RunnerError, match=r"3 times without a newer state.*fewer --devices"):
        trained(store, segment, watch=Deadly())
    assert not children()


@pytest.mark.slow
def test_an_error_in_a_rank_is_that_of_the_training(store):
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        trained(store, described(store, task_of("Diverging"), 2))
    with pytest.raises(TrainingError, match=r"randperm.*--devices 1"):
        trained(store, described(store, task_of("Shuffled"), 2))
    assert not children()


@pytest.mark.slow
def test_metrics_are_added_to_a_state_that_was_kept(store):
    segment = described(store, task_of(), 2)
    trained(store, segment, (14,))
    shorter = segment.shortened_to(14)
    assert store.load_result(segment.trajectory, 14)["metrics"] is None
    found = trained(store, shorter)["metrics"]
    alone = described(store, task_of(), 1).shortened_to(14)
    assert found == trained(store, alone)["metrics"]


@pytest.mark.slow
def test_parameters_that_nothing_depends_on_keep_no_gradient(store):
    """One process leaves them as they are, weight decay and all; so do ranks."""
    task = task_of("Unused")
    segments = [described(store, task, ranks, masked=False) for ranks in (1, 2)]
    one, two = (trained(store, each) for each in segments)
    assert largest_difference(store, one["model"], two["model"]) <= 1e-9
    assert torch.equal(store.get_tensors(two["model"])["unused.weight"], initial_state(task, 3)["unused.weight"])


def test_a_task_that_only_this_process_has(store):
    task = task_of()
    segment = replace(described(store, task, 2), task=task.inner)
    with pytest.raises(TaskError, match="on one device"):
        trained(store, segment)
    assert isinstance(segment.task.build(), nn.Module)
