"""A search method in one file of the user's own, by the file's name and by package.module."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.cli import main
from ticketry.errors import TrustError, UsageError

SOURCE = '''\
"""Keep the largest weights of the trained network.

A method of one's own.
"""

from dataclasses import dataclass

from ticketry.search import Found, Training


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of mine."""

    density: tuple[float, ...] = (0.2,)
    """Fractions of weights kept, a ticket each."""


def plan(settings):
    """Plan a ticket for each density, the densest first."""
    densities = enumerate(sorted(settings.density, reverse=True), start=1)
    return [Training(level=level, density=density) for level, density in densities]


def search(lab, task, recipe, settings, seeds):
    """One replicate."""
    import ticketry as tk
    from ticketry.lab.retrain import retraining

    dense = lab.train(lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe), keep=(0,))
    early = lab.at(dense, 0)
    yield Found(0, None, early, dense, "continue", dense)
    for level, density in enumerate(sorted(settings.density, reverse=True), start=1):
        mask = lab.store.put_mask(tk.prune(lab.model(task, dense), density, distribution="layerwise"))
        how = {"retrain": "continue", "rewound": early, "trained": dense, "order_seed": seeds.order}
        ticket = lab.train(retraining(lab, task, recipe, mask=mask, **how))
        yield Found(level, mask, early, dense, "continue", ticket, searched=(dense,))
'''

FAST = ("--replicates", "1", "--workers", "0", "--controls", "none", "--recipe.length", "4it", "--json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with ``my_method.py`` and ``my_methods/mine.py``."""
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods" / "__init__.py").write_text("")
    for file in ("my_method.py", "my_methods/mine.py"):
        (tmp_path / file).write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_method", "my_methods")]:
        del sys.modules[name]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["search", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_by_the_module_s_name_and_its_run_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "my_methods.mine"
    found = answer(capsys, name, "--task", "digits", "--density", "0.3,0.1", *FAST)
    assert [round(one["density"], 2) for one in found["tickets"]] == [0.3, 0.1]
    assert found["run"].startswith("my-methods-mine-digits-")
    run = Path(found["report"]).with_name("run.toml")
    record = json.loads(run.with_name("run.json").read_text())
    assert record["method"] == name
    assert set(record["sources"]) == {"method"}
    again = answer(capsys, "--config", str(run), "--trust", "--workers", "0", "--json")
    assert again["now"]["steps_trained"] == 0
    assert again["run"] == found["run"]
    assert main(["search", "--config", str(run)]) == 2, "what a file names is data"
    assert "--trust" in capsys.readouterr().err
    by_place = answer(capsys, f"{name}:search", "--task", "digits", "--density", "0.3,0.1", *FAST)
    assert by_place["now"]["steps_trained"] == 0, "the same trainings"


def test_help_and_a_file_that_is_no_method(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "my_method", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Keep the largest weights of the trained network" in told
    assert "Fractions of weights kept, a ticket each." in told
    (folder / "nothing_here.py").write_text("x = 1\n")
    assert main(["search", "nothing_here", "--task", "digits"]) == 2
    assert "nothing_here is no search method: it has no Settings" in capsys.readouterr().err


def test_from_python_and_verified_where_it_is_trusted(folder: Path) -> None:
    options = {"replicates": 1, "controls": (), "recipe": {"length": "20it"}, "workers": 0, "store": folder / "store"}
    run = tk.run("my_method", density=0.2, **options)
    assert run.tickets[0].density == pytest.approx(0.2, abs=0.01)
    with pytest.raises(TrustError, match="'my_method'"):
        tk.verify(run.tickets[0].path, about="procedure", seeds=3, workers=0, store=folder / "store")
    del sys.modules["my_method"]
    shutil.move(folder / "my_method.py", folder / "moved.py")
    with pytest.raises(UsageError, match=r"search method 'my_method' is not known"):
        tk.run("my_method", density=0.2, **options)
