"""A lab on an empty store, and small tasks that train in a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Segment
from ticketry.records.metric import Metric
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits, Task


class PointsTask(Classification):
    """Points in the plane, inside or outside a circle; the network has everything that makes resuming hard."""

    name = "points"
    recipe = Recipe(length="24it", batch=32, optimizer="adam", lr=1e-2)

    def key(self) -> Mapping[str, object]:
        return {"name": self.name, "class": type(self).__name__}

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.Linear(16, 2)
        )

    def load(self, data: Path | None = None) -> Splits:
        return Splits(train=_points(200, 0), validation=_points(50, 1), test=_points(60, 2))


def _points(count: int, seed: int) -> Split:
    places = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return Split(places, (places.norm(dim=1) > 1).long())


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are compared with those of plain loops on the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path / "store") as found:
        yield found


@pytest.fixture(scope="session")
def points_class() -> type[PointsTask]:
    """To derive tasks from that misbehave."""
    return PointsTask


@pytest.fixture
def points() -> Task:
    """200 points; a network with batch norm and dropout; 24 steps, 7 an epoch."""
    return PointsTask()


@pytest.fixture
def digits() -> Task:
    """The built-in task; give it a short recipe."""
    return catalogue.get("digits")


@pytest.fixture
def half(points: Task, lab: Lab) -> str:
    """Digest of a stored mask that keeps half of the weights of `points`."""
    return lab.store.put_mask(prune(points.build(), 0.5, score="random"))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def equal_bits():
    """``equal_bits(one, other)``: whether two states have the same names and bits."""
    return same


def stored_segments(lab: tk.Lab, task: tk.Task, *keys: str) -> list[Segment]:
    """The segments of these keys that were trained, as if all were of this task: some controls are other networks."""
    parts = [key.partition("@") for key in keys]
    found = [lab.store.load_result(trajectory, int(last)) for trajectory, _, last in parts]
    told = [{name: value for name, value in one["segment"].items() if name != "blobs"} for one in found if one]
    return [Segment.from_description({**one, "task": dict(task.key())}, task) for one in told]


class Lines(Task):
    """y = 2 x: a regression."""

    name = "lines"
    metric = Metric("loss", "", higher_is_better=False)
    recipe = Recipe(length="20it", batch=16, optimizer="adam", lr=1e-2)

    def key(self):
        return {"name": self.name}

    def build(self):
        return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))

    def load(self, data: Path | None = None):
        x = torch.linspace(-1, 1, 64).view(-1, 1)
        return Splits(*(Split(x, 2 * x) for _ in range(3)))

    def loss(self, outputs, targets, *, label_smoothing=0.0):
        return nn.functional.mse_loss(outputs, targets)

    def measure(self, outputs, targets):
        return {"loss": (outputs - targets).square().sum()}

    def summary(self, sums, count):
        return {"loss": sums["loss"] / count}
