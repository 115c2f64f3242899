"""Training on executors: equal bits, and what happens to lost workers, errors, stops and workers of other versions."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ticketry.errors import InterruptedTrainingError, RunnerError, TaskError, TrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.runners import executor_runner, worker
from ticketry.lab.runners.executor_runner import LOSSES, ExecutorRunner, Pool
from ticketry.lab.runners.runner import Event, Needs, Place
from ticketry.lab.runners.worker import Request

pytestmark = pytest.mark.timeout(240)


class Threads(Pool):
    """A pool of threads whose first workers are lost, after they have called a function."""

    def __init__(self, losses: int = 0, after: Callable[[], None] = lambda: None) -> None:
        super().__init__(ThreadPoolExecutor(2), "the cluster")
        self._losses, self._after = losses, after
        self.requests: list[str] = []

    def submit(self, request: str, needs: Needs) -> Future[str]:
        self.requests.append(request)
        if self._losses:
            self._losses -= 1
            return self.executor.submit(self._lose, request)
        return super().submit(request, needs)

    def _lose(self, request: str) -> str:
        self._after()
        raise ConnectionResetError("the node went away")

    def close(self) -> None:
        self.executor.shutdown()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """A function that builds a lab which trains on a pool, on a store of its own."""
    labs = []

    def make(pool: Pool, **options: object) -> Lab:
        lab = Lab(tmp_path / "away", runner=ThreadPoolExecutor(1), device="cpu", **options)
        lab._chosen = replace(lab._chosen, make=lambda on_event: ExecutorRunner(pool, Place("executor"), on_event))
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.close()


def test_a_users_executor_gives_equal_bits(tmp_path, lab, digits):
    recipe = digits.recipe.changed(length="20it")
    segments = [lab.segment(digits, start=seed, recipe=recipe) for seed in range(2)]
    wanted = lab.train_many(segments, keep=(7,))
    events: list[Event] = []
    with (
        ThreadPoolExecutor(2) as pool,
        Lab(tmp_path / "other", device="cpu", on_event=events.append, runner=pool) as other,
    ):
        found = other.train_many(segments, keep=(7,))
        assert [(one.model, one.training, one.metrics) for one in found] == [
            (one.model, one.training, one.metrics) for one in wanted
        ]
        assert other.at(found[0], 7).model == lab.at(wanted[0], 7).model
        assert other.ledger.steps_trained == 40
        assert pool.submit(int, "3").result() == 3, "it is not shut down"
    assert not any((tmp_path / "other" / "live").iterdir())
    assert {"started", "progress", "finished"} <= {event.kind for event in events}


def test_the_runner_of_the_documentation_gives_equal_bits(tmp_path, lab, digits):
    recipe = digits.recipe.changed(length="20it")
    wanted = lab.train(lab.segment(digits, start=0, recipe=recipe))
    with Lab(tmp_path / "other", device="cpu", runner="own_runner:Mine", workers=2) as other:
        found = other.train(other.segment(digits, start=0, recipe=recipe))
        assert other.ledger.steps_trained == 20
    assert (found.model, found.metrics) == (wanted.model, wanted.metrics)


def test_a_lost_worker_is_replaced(away, lab, digits):
    pool = Threads(losses=LOSSES - 1)
    segment = lab.segment(digits, start=0, recipe=digits.recipe.changed(length="20it"))
    events: list[Event] = []
    other = away(pool, on_event=events.append)
    assert other.train(segment).model == lab.train(segment).model
    assert len(pool.requests) == LOSSES
    assert [event.kind for event in events].count("lost") == LOSSES - 1


def test_too_many_lost_workers_are_an_error(away, digits):
    pool = Threads(losses=100)
    lab = away(pool)
    with pytest.raises(RunnerError) as caught:
        lab.train(lab.segment(digits, start=0, last=9))
    assert len(pool.requests) == LOSSES
    assert f"{LOSSES} workers of the cluster in a row were lost at steps 0 to 9" in str(caught.value)
    assert "ConnectionResetError: the node went away" in str(caught.value)


def test_losses_with_progress_in_between_do_not_add_up(away, lab, digits):
    """As on preemptible machines: each worker gets a little further."""
    segment = lab.segment(digits, start=0, recipe=digits.recipe.changed(length="60it"))
    steps, store = iter(range(1, 60)), list[Lab]()

    def store_newer_state() -> None:
        store[0].store.put_checkpoint(segment.trajectory, next(steps), {})

    pool = Threads(losses=2 * LOSSES, after=store_newer_state)
    store.append(away(pool))
    with pytest.raises(Exception):  # noqa: B017  # the states are no checkpoints: the worker that is not lost says so
        store[0].train(segment)
    assert len(pool.requests) == 2 * LOSSES + 1


def test_an_error_of_the_training_is_not_retried(away, digits):
    pool = Threads()
    lab = away(pool)
    hot = digits.recipe.changed(length="200it", optimizer="sgd", lr=1e6)
    with pytest.raises(TrainingError, match="the loss is"):
        lab.train(lab.segment(digits, start=1, recipe=hot))
    assert len(pool.requests) == 1


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("ticketry", "9.9", "has ticketry .*, and the search's own process 9.9.*install the same there"),
        ("processor", "riscv64 RVV", "has a processor of the kind .*ATEN_CPU_CAPABILITY"),
    ],
)
def test_a_worker_that_would_give_other_bits_is_an_error(away, digits, what, value, words):
    pool = Threads()
    submit = pool.submit
    lab = away(pool)
    segment = lab.segment(digits, start=0, last=3)

    def submit_for_another_driver(request: str, needs: Needs) -> Future[str]:
        read = Request.parse(request)
        return submit(replace(read, made_with={**read.made_with, what: value}).to_json(), needs)

    pool.submit = submit_for_another_driver
    with pytest.raises(RunnerError) as caught:
        lab.train(segment)
    assert re.search(words, str(caught.value))
    assert re.search(r"the worker \S+ \(process \d+\) has", str(caught.value))
    assert not lab.store.stored_steps(segment.trajectory)


def test_a_request_of_another_version():
    found = json.loads(worker.execute(json.dumps({"version": 99})))
    assert found["kind"] == "failed"
    assert "reads requests of version 2, and this one is of version 99" in found["args"][0]


def test_requests(away, digits, tmp_path, monkeypatch):
    """A request is plain text without the driver's cache; a worker that does not see the store does not create it."""
    monkeypatch.setenv("TICKETRY_CACHE", "/of/this/machine")
    monkeypatch.setenv("TICKETRY_OFFLINE", "1")
    pool = Threads()
    lab = away(pool)
    assert lab.train(lab.segment(digits, start=0, last=3)).metrics
    request = Request.parse(pool.requests[0])
    assert request.to_json() == pool.requests[0]
    assert request.key.endswith("@3")
    assert request.spec.name == "digits"
    assert request.environment["TICKETRY_OFFLINE"] == "1"
    assert "TICKETRY_CACHE" not in request.environment
    found = json.loads(worker.execute(replace(request, store=str(tmp_path / "elsewhere")).to_json()))
    assert found["kind"] == "failed"
    assert "does not see the store" in found["args"][0]
    assert not (tmp_path / "elsewhere").exists()


def test_a_stop_stores_the_state(away, digits):
    events: list[Event] = []
    lab = away(Threads(), on_event=events.append)
    long = lab.segment(digits, start=0, recipe=digits.recipe.changed(length="10000000it"))

    def stop_later() -> None:
        end = time.monotonic() + 60
        while not any(event.kind == "progress" for event in events) and time.monotonic() < end:
            time.sleep(0.05)
        lab.stop()

    stopper = threading.Thread(target=stop_later)
    stopper.start()
    with pytest.raises(InterruptedTrainingError):
        lab.train(long)
    stopper.join()
    step = lab.store.newest_checkpoint(long.trajectory, long.last)[0]
    assert step > 0
    assert [event.step for event in events if event.kind == "stored"] == [step]
    with pytest.raises(InterruptedTrainingError, match="continue with a new one on the same store"):
        lab.train(lab.segment(digits, start=2))


def test_a_stop_is_bounded(away, digits, monkeypatch):
    """A worker that does not answer delays the driver only for a limited time."""
    monkeypatch.setattr(executor_runner, "STOP_SECONDS", 0.5)
    released = threading.Event()
    lab = away(Threads(losses=1, after=lambda: released.wait(30)))
    future = lab._get_runner().submit(lab._order, lab.segment(digits, start=0, last=3), ())
    began = time.monotonic()
    lab.stop()
    assert time.monotonic() - began < 5
    with pytest.raises(InterruptedTrainingError, match=r"did not stop within|stopped"):
        future.result(1)
    released.set()


def test_a_task_without_a_name_is_not_sent(away, points):
    pool = Threads()
    lab = away(pool)
    with pytest.raises(TaskError, match="was made in this process and another cannot make it"):
        lab.train(lab.segment(points, start=0))
    assert not pool.requests


def test_an_answer_of_another_program_is_an_error(away, digits):
    pool = Threads()
    pool.submit = lambda request, needs: pool.executor.submit(lambda: "hello")
    lab = away(pool)
    with pytest.raises(RunnerError, match="returned an answer of another program: 'hello'"):
        lab.train(lab.segment(digits, start=0, last=3))
