"""The examples of docs/tasks.md: tasks as a user would write them, by name, with every promise of a search kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from samples import sample
from ticketry.search.iterative import Settings
from ticketry.tasks import catalogue
from ticketry.testing import check_search

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
BOUNDS = {"Line": ("rmse", 0.2), "Follow": ("mse", 0.1)}
"""Of the dense network's metric: the tasks can be learnt."""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module for each example, from which ticketry is called."""
    for number, code in enumerate(EXAMPLES):
        (tmp_path / f"tasks_page_{number}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("number", "name"), sample(enumerate(BOUNDS), 1))
def test_examples_keep_every_promise(tasks: Path, number: int, name: str) -> None:
    task = catalogue.get(f"tasks_page_{number}:{name}")
    settings = Settings(densities=(0.5, 0.25), rewind="10%")
    found = check_search(
        "iterative", tasks / "stores", settings=settings, densities=(0.5, 0.25), task=task, recipe=task.recipe
    )
    metric, bound = BOUNDS[name]
    assert found[0].result.metrics["test"][metric] < bound
    del sys.modules[f"tasks_page_{number}"]


def test_a_tasks_options_reach_it(tasks: Path) -> None:
    noisy = catalogue.get("tasks_page_0:Line", options={"noise": "0.5"})
    assert noisy.load().train.targets.std() > catalogue.get("tasks_page_0:Line").load().train.targets.std()
