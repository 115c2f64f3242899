"""Tasks from data sets and loaders of PyTorch: what is read, in which order, and that it is the same in any process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import ticketry as tk
from ticketry.errors import TaskError

INPUTS = torch.arange(120.0).reshape(60, 2) / 100
TARGETS = (torch.arange(60) % 3).long()


class Noisy(Dataset[Any]):
    """Examples whose transform draws from all three global generators."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(2) + random.random() + np.random.rand()  # noqa: NPY002
        return INPUTS[row] + 100 * noise, int(TARGETS[row])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))


def made(train: Any = None, **more: Any) -> Any:
    plain = TensorDataset(INPUTS, TARGETS)
    recipe = tk.Recipe(length="1ep", batch=16, lr=0.01)
    return tk.dataset_task("rows", network, plain if train is None else train, plain, plain, recipe=recipe, **more)


def test_examples_and_targets_are_those_of_the_data_sets() -> None:
    splits = made(Subset(TensorDataset(INPUTS, TARGETS), [5, 3, 40])).load()
    assert splits.train.targets.tolist() == [2, 0, 1]
    assert torch.equal(splits.train.reader.request(torch.tensor([2, 0]))(), INPUTS[[40, 5]])
    assert (len(splits.validation), len(splits.test)) == (60, 60)


def test_a_tenth_is_held_back_for_validation_and_no_example_is_in_both() -> None:
    data = TensorDataset(INPUTS, TARGETS)
    splits = tk.dataset_task("rows", network, data, data).load()
    train = splits.train.reader.request(torch.arange(54))()
    held = splits.validation.reader.request(torch.arange(6))()
    assert sorted(torch.cat([train, held])[:, 0].tolist()) == INPUTS[:, 0].tolist()


def test_transforms_draw_anew_at_each_step_and_the_same_under_one_seed() -> None:
    reader = made(Noisy()).load().train.reader
    rows = torch.tensor([4, 9, 4])
    once, again = (reader.request(rows, ("transforms",), seed=7)() for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, reader.request(rows, ("transforms",), seed=8)())
    assert not torch.equal(once[0], once[2]), "two places in the batch draw apart"
    assert torch.equal(reader.request(rows[1:], ("transforms",), seed=7, first=1)(), once[1:])
    assert torch.equal(reader.request(rows)()[0], reader.request(rows)()[2]), "one draw an example for evaluation"


def test_reading_leaves_the_global_generators_as_they_were() -> None:
    reader = made(Noisy()).load().train.reader
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    reader.request(torch.arange(3), ("transforms",), seed=3)()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_reading_processes_do_not_change_the_bits(tmp_path: Path) -> None:
    states = []
    for workers in (0, 1):
        task = made(Noisy(), workers=workers)
        with tk.Lab(tmp_path / str(workers)) as lab:
            trained = lab.train(lab.segment(task, start=0))
            states.append((lab.state(trained), trained.metrics))
    (one, metrics), (other, others) = states
    assert metrics == others
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loader_gives_its_batch_size_its_collation_and_its_workers() -> None:
    def reversed_pairs(examples: Any) -> Any:
        inputs, targets = zip(*examples, strict=True)
        return -torch.stack(inputs), torch.stack(targets)

    data = TensorDataset(INPUTS, TARGETS)
    loader = DataLoader(data, batch_size=10, shuffle=True, collate_fn=reversed_pairs, num_workers=2)
    task = tk.dataset_task("rows", network, loader, loader, workers=0)
    assert task.recipe.batch == 10
    assert tk.dataset_task("rows", network, loader, loader).load().train.reader.workers == 2
    assert torch.equal(task.load().test.reader.request(torch.tensor([1]))(), -INPUTS[[1]])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def test_unusable_data_sets_are_refused() -> None:
    data = TensorDataset(INPUTS, TARGETS)
    with pytest.raises(TaskError, match="which cannot be read by index: give a map-style data set"):
        made(Stream())
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 60, 60))
    with pytest.raises(TaskError, match="has a WeightedRandomSampler, and the order of examples is ticketry's"):
        made(weighted)
    with pytest.raises(TaskError, match="the train data set has no examples"):
        made(Subset(data, []))
    with pytest.raises(TaskError, match="has the metric error: give measure="):
        made(metric=tk.Metric("error", "", higher_is_better=False))
    lambdas = [(torch.zeros(2), 0), (torch.zeros(3), 1)]
    with pytest.raises(TaskError, match="do not make a batch"):
        made(lambdas).load()


def test_a_custom_metric_is_the_mean_over_examples(tmp_path: Path) -> None:
    data = TensorDataset(INPUTS, INPUTS.sum(1, keepdim=True))
    task = tk.dataset_task(
        "sums",
        lambda: nn.Linear(2, 1),
        data,
        data,
        data,
        recipe=tk.Recipe(length="2it", batch=8, lr=0.01),
        loss=nn.functional.mse_loss,
        metric=tk.Metric("error", "", higher_is_better=False),
        measure=lambda outputs, targets: (outputs - targets).square().mean(1),
    )
    with tk.Lab(tmp_path) as lab:
        trained = lab.train(lab.segment(task, start=0))
        model = nn.Linear(2, 1)
        model.load_state_dict(lab.state(trained))
    expected = (model(INPUTS) - INPUTS.sum(1, keepdim=True)).square().mean().item()
    assert trained.metrics["test"]["error"] == pytest.approx(expected, rel=1e-5)


def test_keys_depend_on_data_network_and_version() -> None:
    key = made().key()
    assert made().key() == key
    changed = INPUTS.clone()
    changed[0] += 1
    other_targets = TensorDataset(INPUTS, (TARGETS + 1) % 3)
    for other in (made(TensorDataset(changed, TARGETS)), made(other_targets), made(version=2)):
        assert other.key() != key
    wide = tk.dataset_task("rows", lambda: nn.Linear(2, 3), *[TensorDataset(INPUTS, TARGETS)] * 3)
    assert wide.key() != key


def test_a_search_on_a_data_set(tmp_path: Path) -> None:
    options: dict[str, Any] = {"replicates": 1, "controls": (), "workers": 0, "store": tmp_path}
    run = tk.run("iterative", made(Noisy()), levels=1, recipe={"length": "4it"}, **options)
    assert [round(ticket.density, 1) for ticket in run.tickets] == [0.8]
    assert run.record.task.name == "rows"
