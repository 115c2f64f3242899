"""A task as an object: the name and options that create the same task again, or why there are none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import ticketry as tk
from ticketry.errors import TaskError
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec

SOURCE = """
import torch
from pathlib import Path
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits

class Own(Classification):
    name = "own"
    recipe = Recipe(length="4it", batch=4, lr=0.5)

    def __init__(self, width=3, rate=0.1, deep=False, title="t", model="mlp", folder=None):
        self.width, self.rate, self.deep, self.title, self.model, self.folder = width, rate, deep, title, model, folder
        self.shift, self.steps, self.about = torch.ones(2) * rate, [1, {"a": (2, None)}], self.recipe.changed(lr=rate)

    def build(self):
        return torch.nn.Linear(2, self.width)

    def load(self, data=None):
        inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) + self.shift
        part = Split(inputs, torch.tensor([0, 1, 0, 1]))
        return Splits(part, part, part)

class Keyed(Own):
    def key(self):
        return {"mine": 1}

class Elsewhere(Own):
    def __init__(self, width=3):
        super().__init__(width)
        del self.width
        self.given = width

class Many(Own):
    def __init__(self, **more):
        super().__init__(**more)

class Chance(Own):
    def __init__(self):
        super().__init__()
        self.shift = torch.rand(2)

def inside():
    class Hidden(Own):
        pass
    return Hidden()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "object_tasks.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("object_tasks")
    del sys.modules["object_tasks"]


@pytest.mark.parametrize(
    "given",
    [{}, {"rate": 1e-05}, {"deep": True}, {"title": "a b"}, {"model": "other"}],
    ids=str,
)
def test_an_object_is_the_task_of_its_name_and_options(mine: ModuleType, given: dict[str, Any]) -> None:
    task = catalogue.resolve_task(mine.Own(**given))
    model = given.get("model")
    options = {name: value for name, value in given.items() if name != "model"}
    named = catalogue.get("object_tasks:Own", model=model, options=options)
    assert task.key() == named.key()
    assert task.spec == named.spec == Spec("object_tasks:Own", model, tuple((a, str(b)) for a, b in options.items()))
    assert catalogue.resolve_task(task) is task


def test_a_run_takes_an_object(mine: ModuleType, tmp_path: Path) -> None:
    how: dict[str, Any] = {"levels": 1, "replicates": 1, "controls": (), "workers": 0, "store": tmp_path / "store"}
    run = tk.run("iterative", task=mine.Own(width=2), **how)
    again = tk.run("iterative", task=tk.task("object_tasks:Own", options={"width": 2}), **how)
    assert again.name == run.name
    assert again.now["segments_trained"] == 0


def test_a_task_with_a_key_stays_as_it_is(mine: ModuleType) -> None:
    keyed, digits = mine.Keyed(), catalogue.get("digits")
    assert catalogue.resolve_task(keyed) is keyed
    assert catalogue.resolve_task(digits) is digits
    assert catalogue.resolve_task("digits").key() == digits.key()


def changed(attribute: str, value: object) -> Callable[[ModuleType], Any]:
    def make(mine: ModuleType) -> Any:
        task = mine.Own()
        setattr(task, attribute, value)
        return task

    return make


WRONG: dict[str, tuple[Callable[[ModuleType], Any], str]] = {
    "another attribute": (changed("extra", 1), r"its extra is not that of Own\(\)"),
    "another recipe": (changed("recipe", Recipe(lr=3.0)), "its recipe is not"),
    "a tensor": (changed("shift", nn.Parameter()), "its shift is not"),
    "inside a list": (changed("steps", [1, {"a": (2, 3)}]), "its steps is not"),
    "of a dataclass": (changed("about", Recipe(lr=3.0)), "its about is not"),
    "a kind of number": (changed("steps", [True, {"a": (2, None)}]), "its steps is not"),
    "a list": (changed("title", ["t"]), "its title is a list, which is no option's value"),
    "a number as text": (changed("title", "007"), r"its title is not that of Own\(title='007'\)"),
    "chance": (lambda mine: mine.Chance(), "its shift is not"),
    "an argument": (lambda mine: mine.Elsewhere(), "keeps its constructor's argument 'width' in no attribute"),
    "any arguments": (lambda mine: mine.Many(), r"its constructor takes \*\*more"),
    "hidden": (lambda mine: mine.inside(), "a class inside a function"),
    "a class": (lambda mine: mine.Own, r"not the class Own: call it, Own\(\)"),
    "a network": (lambda mine: nn.Linear(2, 2), "is no Linear: a task is a network with its data, loss and metric"),
    "a number": (lambda mine: 3, r'is no int: give a name \("digits", "my_tasks:Line"\) or a tk.Task'),
    "nothing": (lambda mine: None, "is a task or its name, not None"),
}


def test_objects_that_no_name_creates_again(mine: ModuleType) -> None:
    for make, reason in WRONG.values():
        with pytest.raises(TaskError, match=reason):
            catalogue.resolve_task(make(mine))
    with pytest.raises(TaskError, match=r'has no key\(\).* tk.task\("object_tasks:Own", options='):
        mine.Own().key()


def test_a_class_of_a_script_or_of_a_reloaded_module(mine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mine.Own, "__module__", "__main__")
    with pytest.raises(TaskError, match="is of a script or a notebook"):
        catalogue.resolve_task(mine.Own())
    monkeypatch.setattr(mine.Own, "__module__", "object_tasks")
    task = mine.Own()
    monkeypatch.setattr(mine, "Own", mine.Keyed)
    with pytest.raises(TaskError, match="not the one that object_tasks:Own is now"):
        catalogue.resolve_task(task)
    monkeypatch.delattr(mine, "Own")
    with pytest.raises(TaskError, match="cannot be created again by its name object_tasks:Own"):
        catalogue.resolve_task(task)
