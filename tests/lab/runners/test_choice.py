"""What --on may say, and what is refused before anything is sent."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ticketry.errors import MissingExtraError, TicketryError, UsageError
from ticketry.experiments.options import LabOptions
from ticketry.lab.runners import slurm_jobs
from ticketry.lab.runners.choice import choose_runner
from ticketry.lab.runners.runner import Place, default_workers


def test_words() -> None:
    assert (choose_runner("", 0).name, choose_runner("", 0).workers) == ("in-process", 0)
    assert (choose_runner("", 3).name, choose_runner("", 3).workers) == ("processes", 3)
    assert choose_runner("processes:3", 0).workers == 3
    assert choose_runner("processes", 0).workers == default_workers()
    assert choose_runner("in-process", 0).workers == 0
    assert Place.parse("ray:head:6379,gpus=0.25,memory=2GB") == Place(
        "ray", "head:6379", {"gpus": "0.25", "memory": "2GB"}
    )
    assert Place.parse("ray://head:10001") == Place("ray", "//head:10001")
    assert Place.parse("dask:tcp://10.0.0.1:8786").address == "tcp://10.0.0.1:8786"
    assert Place.parse("my.module:Runner") == Place("my.module:Runner")


def makes_nothing(workers: int, on_event: Any) -> Any:
    return workers


class OfOne:
    def __init__(self, workers: int) -> None: ...


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("makes_nothing", "the runner .*makes_nothing returned 3, which has no method submit"),
        ("OfOne", r"the runner .*OfOne cannot be called with \(workers, on_event\), nor with \(…, place\): too many"),
    ],
)
def test_ones_own_that_is_no_runner(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_runner(f"{__name__}:{name}", 3).make(lambda event: None)


def test_what_a_training_takes() -> None:
    assert Place("ray").resources_per_training(threads=2).cpus == 2
    assert Place("ray").resources_per_training(device="cuda").gpus == 1
    shared = Place.parse("ray:cpus=0.5,gpus=0.25,memory=1.5GB").resources_per_training(device="cuda")
    assert (shared.cpus, shared.gpus, shared.memory) == (0.5, 0.25, 1_500_000_000)
    assert Place.parse("ray:memory=512M").resources_per_training().memory == 512_000_000


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("4:00:00", 240), ("30:30", 30.5), ("2-12:00:00", 3600), ("1-0", 1440)]
)
def test_times_of_slurm(text: str, minutes: float) -> None:
    assert slurm_jobs.parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("processes:0", "processes:N needs a number of at least 1, got '0'"),
        ("processes:2,memory=1GB", "has no option 'memory'"),
        ("in-process:3", "takes no details"),
        ("rays", r"runner 'rays' is not known: .*did you mean ray\?"),
        ("ray:a:1,b:2", "has two addresses, a:1 and b:2"),
        ("ray:cpus=many", "cpus must be a number, got 'many'"),
        ("ray:cpus=1,cpus=2", "'cpus=2' is given twice"),
        ("ray:memory=8 parsecs", "memory must be a size such as 8GB, got '8 parsecs'"),
        ("dask", "needs an address: dask:HOST:PORT of a scheduler, or dask:local"),
        ("dask:host:8786,workers=2", "workers= is only for dask:local"),
        ("dask:host:8786,memory=2GB", "memory= is only for dask:local"),
        ("slurm:head", "takes options or local, got 'head'"),
        ("slurm:partiton=gpu", r"has no option 'partiton': .*did you mean partition\?"),
        ("slurm:time=soon", "time must be 90 .minutes., 4:00:00 or 2-00:00:00, got 'soon'"),
        ("slurm:local,partition=gpu", "slurm:local has no partition"),
        ("slurm:jobs=0", "jobs must be a whole number above 0, got '0'"),
    ],
)
def test_what_cannot_be_meant(on: str, words: str) -> None:
    """An error of usage, whether the packages are installed or not, before the store is opened."""
    with pytest.raises(UsageError, match=words):
        choose_runner(on, 0)


def test_a_number_of_workers_beside_it() -> None:
    with pytest.raises(UsageError, match="--on and --workers both choose where to train: give one of the two"):
        LabOptions(on="ray", workers=2)
    with pytest.raises(UsageError, match="leave out --workers"):
        choose_runner("processes:3", 2)
    with pytest.raises(UsageError, match=r"knows its number of workers|is not installed"):
        choose_runner("ray", 2)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match="an executor knows its number of workers"):
        choose_runner(pool, 2)


@pytest.mark.parametrize(
    ("on", "package", "extra"),
    [("ray", "ray", "ray"), ("dask:local", "distributed", "dask"), ("slurm:local", "submitit", "slurm")],
)
def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, on: str, package: str, extra: str) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "ticketry_engine.errors.find_spec", lambda name: None if name == package else there(name), raising=True
    )
    with pytest.raises(
        MissingExtraError, match=rf"needs {package}, which is not installed: pip install 'ticketry.{extra}"
    ):
        choose_runner(on, 0)


def test_slurm_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TicketryError, match=r"this machine has no sbatch|needs submitit"):
        choose_runner("slurm:partition=gpu", 0)
