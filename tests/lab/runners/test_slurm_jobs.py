"""Jobs of Slurm: a chain answers its requests in order, and none is lost when its job is told to end."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ticketry.lab.lab import Lab
from ticketry.lab.runners import slurm_jobs
from ticketry.lab.runners.slurm_jobs import Chain, next_request_file

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="jobs of Slurm run on Linux"),
]


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that replaces trainings by a function, and returns the list of requests that are executed."""

    def replace_training(train: Callable[[str], Any]) -> list[str]:
        requests: list[str] = []

        def execute(request: str, pass_signal_on: Callable[[int], object]) -> str:
            requests.append(request)
            if number := train(request):
                pass_signal_on(number)
            return f"answer to {request}"

        monkeypatch.setattr(slurm_jobs, "execute", execute)
        return requests

    return replace_training


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(name)


def test_a_job_answers_what_comes_and_ends_when_nothing_does(tmp_path: Path, trains: Callable[..., list[str]]) -> None:
    requests = trains(lambda request: put(tmp_path, "2") if request == "1" else None)
    put(tmp_path, "1")
    began = time.monotonic()
    assert Chain(tmp_path, linger=0.4, seconds=1000)() == 2
    assert 0.4 <= time.monotonic() - began < 20
    assert requests == ["1", "2"]
    assert (tmp_path / "2.answer").read_text() == "answer to 2"
    assert (tmp_path / "closed").exists()


def test_a_job_leaves_what_its_time_is_too_short_for(tmp_path: Path, trains: Callable[..., list[str]]) -> None:
    requests = trains(lambda request: time.sleep(0.3))
    put(tmp_path, "1", "2")
    assert Chain(tmp_path, linger=30, seconds=0.5)() == 1
    assert requests == ["1"]
    assert next_request_file(tmp_path) == tmp_path / "2"


def test_sigterm_ends_a_job_behind_its_answer(tmp_path: Path, trains: Callable[..., list[str]]) -> None:
    trains(lambda request: signal.SIGTERM)
    put(tmp_path, "1", "2")
    assert Chain(tmp_path, linger=30, seconds=1000)() == 1
    assert (tmp_path / "1.answer").exists()
    assert (tmp_path / "closed").exists()


def test_a_job_that_is_put_back_into_the_queue_repeats_its_request(
    tmp_path: Path, trains: Callable[..., list[str]]
) -> None:
    """submitit's handler of SIGUSR2 never returns; the same job starts again with the same folder."""
    helpers = pytest.importorskip("submitit.helpers", reason="submitit is not installed")

    class Requeued(BaseException):
        pass

    def requeue(number: int, frame: object) -> None:
        raise Requeued

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        trains(lambda request: signal.SIGUSR2)
        put(tmp_path, "1")
        chain = Chain(tmp_path, linger=0.2, seconds=1000)
        with pytest.raises(Requeued):
            chain()
    finally:
        signal.signal(signal.SIGUSR2, before)
    again = chain.checkpoint()
    assert isinstance(again, helpers.DelayedSubmission)
    requests = trains(lambda request: None)
    assert again.function() == 1
    assert requests == ["1"]


def test_a_job_ends_when_its_folder_is_gone(tmp_path: Path, trains: Callable[..., list[str]]) -> None:
    trains(lambda request: None)
    folder = tmp_path / "job"
    folder.mkdir()
    threading.Timer(0.5, shutil.rmtree, [folder]).start()
    began = time.monotonic()
    assert Chain(folder, linger=60, seconds=1000)() == 0
    assert time.monotonic() - began < 30


class ThreadJob:
    """A job of submitit as the runner sees it, in a thread."""

    def __init__(self, chain: Chain) -> None:
        self.job_id, self.paths = "7", SimpleNamespace(result_pickle=Path("/nowhere"))
        self._thread = threading.Thread(target=chain)
        self._thread.start()

    def done(self) -> bool:
        return not self._thread.is_alive()


def test_one_job_trains_two_segments_to_equal_bits(
    tmp_path: Path, lab: Lab, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it ends with the lab; tests/lab/runners/test_schedulers.py has submitit's own jobs."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.chdir(tmp_path)
    jobs: list[ThreadJob] = []

    def submit(chain: Chain) -> ThreadJob:
        jobs.append(ThreadJob(chain))
        return jobs[-1]

    monkeypatch.setattr(slurm_jobs._Jobs, "_build_executor", lambda *_: SimpleNamespace(submit=submit))
    segments = [lab.segment(digits, start=seed, last=9) for seed in range(2)]
    with Lab(tmp_path / "other", device="cpu", runner="slurm:local,jobs=1") as other:
        assert [other.train(one).model for one in segments] == [lab.train(one).model for one in segments]
    assert [job.done() for job in jobs] == [True]
    assert not list(Path(".ticketry-slurm").glob("search-*"))
