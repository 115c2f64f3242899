"""Images streamed from disk: the same bits as from memory, whoever reads them and wherever it was stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ticketry.errors import DataError, InterruptedTrainingError, RunnerError
from ticketry.evidence.connectivity import recompute_batch_norm_
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training import data_loading
from ticketry.lab.training import job as job_module
from ticketry.lab.training.data_loading import DataOrder
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.supervised import Supervised
from ticketry.tasks import catalogue
from ticketry.tasks.images import FolderClassification
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Split, Splits, Task
from ticketry_engine.support.seeds import mix_seeds
from watches import StopAt

TRAIN, TEST = 24, 5
PLAIN = Recipe(length="2ep", batch=16, optimizer="adam", lr=1e-3, augment=("crop", "flip"))
CROPPED = PLAIN.changed(augment=("resized_crop", "flip"))
STEPS = 10  # two epochs of 66 images


Make = Callable[..., FolderClassification]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 + 15 images of noise in three classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    draws = np.random.Generator(np.random.PCG64(0))
    for part, count in (("train", TRAIN), ("val", TEST)):
        for name in ("frog", "lemon", "coffee"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{name}_{index}.JPEG")
    return root


@pytest.fixture
def folder(images: Path) -> Make:
    """The task, of 16x16 pixels and a LeNet-5; options can be given."""

    def made(**options: object) -> FolderClassification:
        texts = {name: str(value) for name, value in options.items()}
        task = catalogue.get(
            "imagefolder", model="lenet-5", options={"path": str(images), "size": "16", "resize": "16", **texts}
        )
        assert isinstance(task, FolderClassification)
        return task

    return made


def in_memory(split: Split) -> Split:
    """The same split with everything read."""
    assert split.reader is not None
    return Split(split.reader.request(split.inputs)(), split.targets)


class InMemory(FolderClassification):
    """The same task with everything read before."""

    def key(self) -> dict[str, object]:
        return {**super().key(), "name": "in memory"}

    def load(self, data: Path | None = None) -> Splits:
        splits = super().load(data)
        return Splits(in_memory(splits.train), in_memory(splits.validation), in_memory(splits.test))


def trained(folder: Path, task: Task, recipe: Recipe, **settings: object):
    """Weights and metrics of the whole recipe."""
    with Lab(folder, device="cpu", **settings) as lab:
        result = lab.train(lab.segment(task, start=1, order_seed=2, recipe=recipe))
        return lab.state(result), result.metrics


# -- the same bits -----------------------------------------------------------------------------------------------------


def test_streamed_as_in_memory(folder: Make, tmp_path: Path, equal_bits) -> None:
    streamed = folder(workers=1)
    settings = {name: getattr(streamed, name) for name in ("path", "size", "resize", "validation", "model", "recipe")}
    one = trained(tmp_path / "one", streamed, PLAIN)
    other = trained(tmp_path / "other", InMemory(**settings), PLAIN)
    assert equal_bits(one[0], other[0])
    assert one[1] == other[1]


def test_random_crops_change_the_numbers_and_follow_the_order_seed(folder: Make) -> None:
    task, order = folder(workers=0), DataOrder(5, 66, 16)
    split = task.load().train

    def batches(seed: int, names: tuple[str, ...], first: int = 0) -> list[torch.Tensor]:
        found = data_loading.batches(split, order.batch, range(first, 7), "cpu", augment=names, seed=seed)
        return [inputs for inputs, _ in found]

    one, again, other = (batches(seed, ("resized_crop",)) for seed in (1, 1, 2))
    for step in range(7):
        assert torch.equal(one[step], again[step])
        assert not torch.equal(one[step], other[step])
        assert not torch.equal(one[step], batches(1, ())[step])
    for late, early in zip(batches(1, ("resized_crop",), first=3), one[3:], strict=True):
        assert torch.equal(late, early)
    assert not torch.equal(one[0], one[5])  # another epoch


def test_stopped_in_the_middle_of_an_epoch(folder: Make, tmp_path: Path, equal_bits, monkeypatch) -> None:
    """And read by two processes instead of none."""
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)
    whole, metrics = trained(tmp_path / "whole", folder(workers=0), CROPPED)
    with Lab(tmp_path / "parts", device="cpu") as lab:
        segment = lab.segment(folder(workers=2), start=1, order_seed=2, recipe=CROPPED)
        store = Store(tmp_path / "parts")
        assert segment.last == STEPS
        for stop in (3, 7):
            with pytest.raises(InterruptedTrainingError, match=f"at step {stop}"):
                execute(store, None, segment, (), StopAt(at=stop, checkpoint_seconds=1e9))
        assert execute(store, None, segment, (8,), Watch()).steps == 3
        result = lab.train(segment)
        assert equal_bits(lab.state(result), whole)
        assert result.metrics == metrics
    assert not readers()


def test_recalibrated_as_in_memory(folder: Make) -> None:
    task, model = folder(workers=2), torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    splits, seen = task.load(), []
    split = splits.train
    for each in (split, in_memory(split)):
        course = Supervised(task, replace(splits, train=each))
        assert recompute_batch_norm_(course, model, Recipe(batch=16, augment=("flip",)), 4, Arithmetic()) == 4
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    order = DataOrder(mix_seeds("recalibrate"), len(split), 16)
    first = task.prepare(in_memory(split).inputs[torch.cat([order.batch(step) for step in range(4)])])
    torch.testing.assert_close(seen[0]["0.running_mean"], first.mean((0, 2, 3)))


def test_the_global_random_state_is_left_alone(folder: Make) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert sum(len(targets) for _, targets in data_loading.batches_in_order(folder(workers=1).load().test, "cpu")) == 15
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_gives_each_example_once_in_order(folder: Make, monkeypatch) -> None:
    monkeypatch.setattr(data_loading, "EVALUATED", 4)
    monkeypatch.setattr("ticketry.tasks.images._EVALUATED_PIXELS", 4 * 16 * 16)
    split = folder(workers=2).load().test
    memory = in_memory(split)
    for each in (split, memory):
        parts = list(data_loading.batches_in_order(each, "cpu"))
        assert [len(targets) for _, targets in parts] == [4, 4, 4, 3]
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), memory.inputs)
        assert torch.equal(torch.cat([targets for _, targets in parts]), memory.targets)


# -- memory, and what goes wrong ---------------------------------------------------------------------------------------


def readers() -> list[int]:
    """Processes that read for this one: all that fork from its server."""
    from multiprocessing import forkserver

    server = forkserver._forkserver._forkserver_pid
    return [pid for pid, parent in processes() if parent == server and server is not None]


def processes() -> list[tuple[int, int]]:
    """(number, parent) of all that run."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found.append((int(place.name), int(fields[1])))
    return found


class Counting:
    """A reader that keeps count of what was asked for."""

    batch, augmentations = 5, ()

    def __init__(self, workers: int) -> None:
        self.workers, self.asked = workers, 0

    def request(self, rows, augment=(), seed=0):
        from answers import Answer

        self.asked += 1
        return Answer(rows.clone())


ANSWER = """
import os, signal
from dataclasses import dataclass
from ticketry.errors import DataError

@dataclass(frozen=True)
class Answer:
    rows: object

    def __call__(self):
        if 90 in self.rows:
            raise DataError("row 90 is broken")
        if 91 in self.rows:
            os.kill(os.getpid(), signal.SIGKILL)
        if 92 in self.rows:
            raise ValueError("a mistake")
        return self.rows * 2
"""


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that reading processes can import; rows from 90 on fail, each in its way."""
    (tmp_path / "answers.py").write_text(ANSWER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "answers", raising=False)


def rows_from(reader: Counting, order: list[int]):
    split = Split(torch.arange(100), torch.arange(100) + 1, reader)
    return data_loading.batches(split, lambda step: torch.tensor([order[step]]), range(len(order)), "cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_reads_only_a_few_batches_ahead(workers: int) -> None:
    reader = Counting(workers)
    batches = rows_from(reader, list(range(80)))
    for step in range(10):
        inputs, targets = next(batches)
        assert (int(inputs), int(targets)) == (2 * step, step + 1)
        assert reader.asked <= step + 1 + 2 * workers
    batches.close()
    assert not readers()


def test_a_daemon_reads_in_its_own_process(monkeypatch, caplog) -> None:
    """As workers of Dask are: Python lets them start none."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert [int(inputs) for inputs, _ in rows_from(Counting(2), [7, 3, 5])] == [14, 6, 10]
    assert not readers()
    assert "DASK_DISTRIBUTED__WORKER__DAEMON=False" in caplog.text


def test_what_a_reader_refuses_reaches_the_user_as_it_is() -> None:
    batches = rows_from(Counting(2), [1, 2, 90, 3])
    assert [int(next(batches)[0]) for _ in range(2)] == [2, 4]
    with pytest.raises(DataError, match=r"^row 90 is broken$"):
        next(batches)
    assert not readers()


def test_a_readers_own_mistake_keeps_its_traceback() -> None:
    with pytest.raises(RunnerError, match=r"(?s)in __call__.*ValueError: a mistake"):
        next(rows_from(Counting(1), [92]))
    assert not readers()


def test_a_killed_reader_is_told(capfd, monkeypatch) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))  # of 5 seconds
    with pytest.raises(RunnerError, match=r"reads examples ended without an answer.*workers=0"):
        list(rows_from(Counting(1), [0, 1, 91, 3, 4]))
    assert not readers()


def test_a_broken_image_is_named(images: Path, tmp_path: Path, folder: Make) -> None:
    import shutil

    shutil.copytree(images, tmp_path / "images")
    task = folder(path=tmp_path / "images", workers=0)
    split = task.load().train
    broken = Path(split.reader.listing.path(int(split.inputs[30])))
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(DataError, match=rf"{broken} cannot be read as an image"):
        trained(tmp_path / "store", task, PLAIN)
    assert not readers()


def search(images: Path, store: Path) -> subprocess.Popen[str]:
    """A search with two readers, longer than any test."""
    options = {"path": images, "size": 16, "resize": 16, "workers": 2}
    command = [sys.executable, "-m", "ticketry", "search", "iterative", "--task", "imagefolder", "--model", "lenet-5"]
    command += ["--option", *(f"{name}={value}" for name, value in options.items())]
    command += ["--recipe.length", "100000it", "--store", str(store), "--workers", "1", "--checkpoint-seconds", "0.2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def of_session(session: int) -> list[int]:
    """What runs of a search."""
    found = []
    for pid, _ in processes():
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_no_orphans(images: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C goes to the whole group, a kill to the first process alone."""
    process = search(images, tmp_path / "store")
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("store/partial/*")) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        assert len(of_session(process.pid)) >= 5  # itself, a trainer, its server, two readers
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130, err
            assert "Traceback" not in err
        end = time.monotonic() + 30
        while of_session(process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert of_session(process.pid) == []
    finally:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
