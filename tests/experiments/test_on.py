"""Where a run was trained: told by its files, part of no key, and taken from a file only if the user says so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ticketry as tk
from lab_fixtures import PointsTask
from ticketry.errors import TaskError, TrustError, UsageError
from ticketry.experiments.options import LabOptions, open_lab
from ticketry.experiments.run_file import read_run_file, require_trust
from ticketry.lab.lab import Lab

SMALL = {"levels": 1, "replicates": 1, "controls": "none", "recipe": {"length": "5it"}}


def test_a_run_says_where_it_was_trained(tmp_path: Path) -> None:
    first = tk.run("iterative", "digits", store=tmp_path, on="in-process", **SMALL)
    assert first.record.environment["on"] == "in-process"
    assert read_run_file(first.path / "run.toml")["on"] == "in-process"
    again = tk.run("iterative", "digits", store=tmp_path, workers=0, **SMALL)
    assert (again.name, again.now["segments_trained"]) == (first.name, 0)


@pytest.mark.parametrize("on", ["ray:elsewhere:6379", "dask:elsewhere:8786", "slurm:partition=all", "module:Runner"])
def test_a_file_that_names_machines(on: str) -> None:
    with pytest.raises(TrustError, match="name where to train yourself with --on"):
        require_trust({"task": "digits", "on": on}, (), of="the run file run.toml")
    require_trust({"task": "digits", "on": on}, ("on",), of="the run file run.toml")


@pytest.mark.parametrize("on", ["processes:2", "processes", "in-process"])
def test_a_file_that_names_this_machine(on: str) -> None:
    require_trust({"task": "digits", "on": on}, (), of="the run file run.toml")


def test_a_task_of_this_process_alone(tmp_path: Path) -> None:
    options = LabOptions(store=tmp_path / "store", on="processes:2")
    with pytest.raises(TaskError, match="was made in this process"), open_lab(options, PointsTask()):
        pass
    with open_lab(LabOptions(store=tmp_path / "store"), PointsTask()) as lab:
        assert lab.on == "in-process"


def test_words_of_a_lab(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, Lab(tmp_path / "store", runner=pool) as lab:
        assert lab.on == "ThreadPoolExecutor"
    with Lab(tmp_path / "store", runner="processes:3") as lab:
        assert (lab.on, lab.workers, lab.asked) == ("processes", 3, "processes:3")
    with pytest.raises(UsageError, match="has no option"):
        Lab(tmp_path / "other", runner="slurm:partiton=x")
    assert not (tmp_path / "other").exists()
