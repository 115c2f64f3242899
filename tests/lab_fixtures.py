"""A lab on an empty store, and small tasks that train in a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
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
