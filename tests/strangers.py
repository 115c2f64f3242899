"""Files as a stranger would write them, and a watch on what commands do with them in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from cli.calling import call
from ticketry.lab.store.files import write_with_digest
from ticketry.tasks import catalogue

MODEL = "lenet-300-100@0.02"

EVIL = """\
import pathlib
pathlib.Path({mark!r}).write_text("imported")
from ticketry.tasks.task import Task

class Mine(Task):
    def __init__(self, **options): pathlib.Path({mark!r}).write_text("made")

def make(**options): pathlib.Path({mark!r}).write_text("called")

def make_as_told(**options) -> Task: pathlib.Path({mark!r}).write_text("called")

def score(model, scope, **more): pathlib.Path({mark!r}).write_text("scored")
"""


def info_of_digits(**changes: Any) -> dict[str, Any]:
    """Information of a digits ticket from a search, with some entries replaced."""
    task = catalogue.get("digits", model=MODEL)
    info: dict[str, Any] = {
        "method": "oneshot",
        "settings": {"density": 0.5, "pattern": "unstructured"},
        "recipe": asdict(task.recipe),
        "task": {
            "name": "digits",
            "key": json.loads(json.dumps(dict(task.key()))),
            "spec": {"name": "digits", "model": MODEL, "options": {}},
        },
        "level": 1,
        "replicate": 0,
        "parameters": 458,
        "seeds": {"initialisation": 0, "order": 0, "mask": 0},
        "rewind_step": 0,
        "retrain": "continue",
        "segment": {"first": 0, "last": 12, "shrunk": False},
    }
    return {**info, **changes}


def forged(folder: Path, info: dict[str, Any]) -> Path:
    """Write a digits ticket with arbitrary information and matching digests."""
    torch.manual_seed(0)
    model = catalogue.get("digits", model=MODEL).build()
    mask = tk.prune(model, density=0.5)
    return tk.Ticket(mask, model.state_dict(), info, trained=model.state_dict()).save(folder)


class Watch:
    """A folder in which commands run, with a module that must not be imported."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.mark = folder / "the-mark"
        self.store = folder / "store"
        self._capsys = capsys
        (folder / "evil.py").write_text(EVIL.format(mark=str(self.mark)))
        self.before = self.files()
        self.path = list(sys.path)

    def files(self) -> set[str]:
        """Return all paths below the folder except the store, which a command may create."""
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
        return {name for name in found if not name.startswith("store") and "__pycache__" not in name}

    def refused(self, *words: str) -> str:
        """Run a command that must refuse its input: return its one-line error; check that it did nothing else."""
        code, out, err = call(self._capsys, *words)
        assert code in (1, 2), (code, out, err)
        assert "Traceback" not in err
        assert out == ""
        assert err.startswith("ticketry: "), err
        assert len(err.strip().splitlines()) == 1, err
        assert all(letter.isprintable() for letter in err.rstrip("\n")), err
        self.untouched()
        return err

    def untouched(self) -> None:
        """Check that nothing was written, imported or added to `sys.path`."""
        assert not self.mark.exists(), self.mark.read_text()
        assert "evil" not in sys.modules
        assert sys.path == self.path
        assert self.files() == self.before

    def expect(self) -> None:
        """Take the current files as those of the test."""
        self.before = self.files()


@pytest.fixture
def watch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Run the test in a new folder below `tmp_path`."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TICKETRY_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    found = Watch(here, capsys)
    yield found
    sys.modules.pop("evil", None)


@contextmanager
def changed_json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the object in a sealed JSON file; changes in the block are written with a matching digest."""
    values: dict[str, Any] = json.loads(path.read_text())
    values.pop("sha256", None)
    yield values
    write_with_digest(path, values)


Attack = Callable[[Path], object]
