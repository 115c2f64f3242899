"""Example inputs of tasks: what a model is compiled, exported and timed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("digits", {}, (1, 8, 8)), ("cifar10", {}, (3, 32, 32)), ("imagefolder", {"size": "48"}, (3, 48, 48))],
)
def test_images_need_no_data(name: str, options: dict[str, str], shape: tuple[int, ...], tmp_path: Path) -> None:
    task = tk.task(name, options=options)
    made = task.example(3, tmp_path / "nothing is here")
    assert made.shape == (3, *shape)
    assert made.dtype == torch.float32
    assert 0.8 < float(made.std()) < 1.2
    assert torch.equal(made, task.example(3))


class Rows(Classification):
    """Stored as bytes, half of them; the model takes floats."""

    name = "rows"
    recipe = Recipe(length="1ep", batch=4, optimizer="sgd", lr=0.1)

    def build(self) -> Any:
        return torch.nn.Linear(2, 2)

    def load(self, data: Path | None = None) -> Splits:
        whole = torch.arange(40, dtype=torch.uint8).view(20, 2)
        parts = [Split(whole[i : i + 5], torch.zeros(5, dtype=torch.long)) for i in (0, 5, 10)]
        return Splits(*parts)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float() / 2


def test_others_take_the_first_of_the_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.tensor([[5.0, 5.5], [6.0, 6.5]])
    assert torch.equal(Rows().example(2), expected)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.chdir(Path(__file__).parents[2])
    own = tk.task("examples.own_task:Moons")
    assert torch.equal(own.example(4), own.load().validation.inputs[:4])


class Reads:
    """A split that is read from disk, as a folder's is."""

    workers, batch, augmentations = 0, 4, ()

    def request(self, rows: torch.Tensor, augment: tuple[str, ...] = (), seed: int = 0) -> Any:
        return lambda: (rows.unsqueeze(1) * torch.ones(1, 2)).to(torch.uint8)


def test_what_is_read_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(torch.tensor([7, 9, 11]), torch.zeros(3, dtype=torch.long), Reads())
    monkeypatch.setattr(Rows, "load", lambda self, data=None: Splits(split, split, split))
    assert torch.equal(Rows().example(2), torch.tensor([[3.5, 3.5], [4.5, 4.5]]))
