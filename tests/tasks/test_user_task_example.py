"""examples/own_task.py as a user would name it, from the folder above it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ticketry.tasks import catalogue

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])


def test_moons_are_learnt() -> None:
    task = catalogue.get("examples.own_task:Moons", options={"noise": "0.1", "hidden": "32"})
    splits = task.load()
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.lr)
    for _ in range(task.recipe.steps(per_epoch=1)):
        for indices in torch.randperm(len(splits.train)).split(task.recipe.batch):
            optimizer.zero_grad()
            outputs = model(task.prepare(splits.train.inputs[indices]))
            task.loss(outputs, splits.train.targets[indices]).backward()
            optimizer.step()
    with torch.no_grad():
        sums = task.measure(model(task.prepare(splits.test.inputs)), splits.test.targets)
    summary = task.summary({name: float(value) for name, value in sums.items()}, len(splits.test))
    assert summary[task.metric.name] > 97


def test_its_data_do_not_depend_on_the_seed() -> None:
    task = catalogue.get("examples.own_task:Moons")
    torch.manual_seed(1)
    first = task.load().train.inputs
    torch.manual_seed(2)
    assert torch.equal(task.load().train.inputs, first)
