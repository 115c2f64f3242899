"""Training elsewhere: the same bits, and what becomes of lost workers, errors, stops and workers of other versions."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

import own_runner
import ticketry as tk
from ticketry.errors import InterruptedTrainingError, RunnerError, TaskError, TrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.runners import remote, remote_worker
from ticketry.lab.runners.places import Needs, Place
from ticketry.lab.runners.remote import LOSSES, Remote
from ticketry.lab.runners.request import Request
from ticketry.lab.runners.runner import Event

pytestmark = pytest.mark.timeout(240)


class Threads:
    """A cluster of threads whose first workers are lost, after they have trained for a while or before."""

    name = "the cluster"

    def __init__(self, losses: int = 0, *, room: int | None = None, after: Callable[[], None] = lambda: None) -> None:
        self._pool, self._losses, self._room, self._after = ThreadPoolExecutor(2), losses, room, after
        self.requests: list[str] = []
        self.closed = False

    def submit(self, request: str, needs: Needs) -> Future[str]:
        self.requests.append(request)
        if self._losses:
            self._losses -= 1
            return self._pool.submit(self._lose, request)
        return self._pool.submit(remote_worker.work, request)

    def _lose(self, request: str) -> str:
        self._after()
        raise ConnectionResetError("the node went away")

    def room(self) -> int | None:
        return self._room

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, ConnectionError)

    def give_up(self, future: Future[str]) -> None:
        future.cancel()

    def close(self) -> None:
        self.closed = True
        self._pool.shutdown()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """A lab that trains on a cluster, on a store of its own."""
    labs = []

    def make(cluster: object, **options: object) -> Lab:
        lab = Lab(tmp_path / "away", executor=ThreadPoolExecutor(1), device="cpu", **options)
        made = replace(lab._chosen, make=lambda on_event: Remote(cluster, Place("executor"), on_event))
        lab._chosen = made
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.close()


def _pool(kind: str) -> Executor:
    if kind == "threads":
        return ThreadPoolExecutor(2)
    if kind == "processes":
        return ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    executorlib = pytest.importorskip("executorlib", reason="executorlib is not installed")
    return executorlib.SingleNodeExecutor(max_workers=2)


@pytest.mark.parametrize(
    "kind",
    ["threads", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("processes", "executorlib"))],
)
def test_any_executor_gives_the_same_bits(tmp_path, lab, digits, kind):
    recipe = digits.recipe.changed(length="40it")
    segments = [lab.segment(digits, start=seed, recipe=recipe) for seed in range(2)]
    wanted = lab.train_many(segments, keep=(7,))
    events: list[Event] = []
    with _pool(kind) as pool, Lab(tmp_path / "other", device="cpu", on_event=events.append, executor=pool) as other:
        found = other.train_many(segments, keep=(7,))
        assert [(one.model, one.training, one.metrics) for one in found] == [
            (one.model, one.training, one.metrics) for one in wanted
        ]
        assert other.at(found[0], 7).model == lab.at(wanted[0], 7).model
        assert other.ledger.steps_trained == 80
        assert pool.submit(int, "3").result() == 3, "it stays the user's"
    assert not any((tmp_path / "other" / "live").iterdir())
    assert {"started", "finished"} <= {event.kind for event in events}


def test_the_runner_of_the_page_gives_the_same_bits(tmp_path, lab, digits):
    recipe = digits.recipe.changed(length="20it")
    wanted = lab.train(lab.segment(digits, start=0, recipe=recipe))
    with Lab(tmp_path / "other", device="cpu", runner="own_runner:Mine") as other:
        found = other.train(other.segment(digits, start=0, recipe=recipe))
        assert other.ledger.steps_trained == 20
    assert (found.model, found.metrics) == (wanted.model, wanted.metrics)


@pytest.mark.parametrize("workers", [0, 2])
def test_ones_own_is_sent_as_many_as_its_cluster_has_room_for(tmp_path, digits, monkeypatch, workers):
    """Without a number of workers too: the cluster says how many there are."""
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(own_runner.MyCluster, "room", lambda self: 2)
    monkeypatch.setattr(own_runner, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(2))

    def working(request):
        both.wait()  # a training that is sent alone waits in vain
        return remote_worker.work(request)

    monkeypatch.setattr(own_runner, "work", working)
    with Lab(tmp_path / "store", device="cpu", runner="own_runner:Mine", workers=workers) as lab:
        settings = tk.search.oneshot.Settings(density=(0.5,))
        recipe = digits.recipe.changed(length="10it")
        found = tk.search.oneshot(lab, digits, settings, recipe=recipe, replicates=2)
    assert [len(one) for one in found] == [2, 2]


def test_a_lost_worker_is_replaced(away, lab, digits):
    cluster = Threads(losses=LOSSES - 1)
    recipe = digits.recipe.changed(length="20it")
    segment = lab.segment(digits, start=0, recipe=recipe)
    events: list[Event] = []
    other = away(cluster, on_event=events.append)
    assert other.train(segment).model == lab.train(segment).model
    assert len(cluster.requests) == LOSSES
    assert [event.kind for event in events].count("lost") == LOSSES - 1


def test_too_many_are_lost(away, digits):
    """The message says how many, where and what the last one's end was."""
    cluster = Threads(losses=100)
    lab = away(cluster)
    with pytest.raises(RunnerError) as caught:
        lab.train(lab.segment(digits, start=0, last=9))
    assert len(cluster.requests) == LOSSES
    assert f"{LOSSES} workers of the cluster in a row were lost at steps 0 to 9" in str(caught.value)
    assert "ConnectionResetError: the node went away" in str(caught.value)


def test_losses_with_progress_between_them_do_not_add_up(away, lab, digits):
    """As on machines that are taken away again and again: each worker gets a little further."""
    recipe = digits.recipe.changed(length="60it")
    segment = lab.segment(digits, start=0, recipe=recipe)
    steps = iter(range(5, 60, 5))
    store: list[Lab] = []

    def gets_further() -> None:
        state = lab.store.get_tensors(lab.train(segment.until(next(steps))).model)
        store[0].store.put_partial(segment.trajectory, next(marks), state)

    marks = iter(range(1, 60))
    cluster = Threads(losses=2 * LOSSES, after=gets_further)
    other = away(cluster)
    store.append(other)
    with pytest.raises(Exception):  # noqa: B017  # the states are no checkpoints: the worker that is not lost says so
        other.train(segment)
    assert len(cluster.requests) == 2 * LOSSES + 1


def test_an_error_of_the_training_is_not_tried_again(away, digits):
    cluster = Threads()
    lab = away(cluster)
    hot = digits.recipe.changed(length="200it", optimizer="sgd", lr=1e6)
    with pytest.raises(TrainingError, match="the loss is"):
        lab.train(lab.segment(digits, start=1, recipe=hot))
    assert len(cluster.requests) == 1


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("ticketry", "9.9", "has ticketry .*, and the search's own process 9.9.*install the same there"),
        ("numerics", "77", "has ticketry's numbers of version 1, and the search's own process 77"),
        ("torch", "1.0", "has torch .*, and the search's own process 1.0"),
        ("processor", "riscv64 RVV", "has a processor of the kind .*ATEN_CPU_CAPABILITY"),
    ],
)
def test_a_worker_that_would_give_other_bits_says_so(away, digits, what, value, words):
    cluster = Threads()
    submit = cluster.submit
    lab = away(cluster)
    segment = lab.segment(digits, start=0, last=3)

    def of_another_driver(request: str, needs: Needs) -> Future[str]:
        read = Request.read(request)
        return submit(replace(read, made_with={**read.made_with, what: value}).text(), needs)

    cluster.submit = of_another_driver
    with pytest.raises(RunnerError) as caught:
        lab.train(segment)
    assert re.search(words, str(caught.value))
    assert re.search(r"the worker \S+ \(process \d+\) has", str(caught.value))
    assert not lab.store.stored_steps(segment.trajectory)


def test_a_request_of_another_version():
    told = json.loads(remote_worker.work(json.dumps({"version": 99})))
    assert told["kind"] == "failed"
    assert "reads requests of version 2, and this one is of version 99" in told["args"][0]


def test_a_store_that_a_worker_does_not_see(away, digits, tmp_path):
    """A worker on another machine, where that folder is not: it must not make an empty store there."""
    cluster = Threads()
    lab = away(cluster)
    assert lab.train(lab.segment(digits, start=0, last=3)).metrics
    lost = json.dumps({**json.loads(cluster.requests[0]), "store": str(tmp_path / "elsewhere")})
    told = json.loads(remote_worker.work(lost))
    assert told["kind"] == "failed"
    assert "does not see the store" in told["args"][0]
    assert not (tmp_path / "elsewhere").exists()


def test_a_request_is_plain(away, digits):
    cluster = Threads()
    lab = away(cluster)
    lab.train(lab.segment(digits, start=0, last=3))
    request = Request.read(cluster.requests[0])
    assert request.text() == cluster.requests[0]
    assert request.key.endswith("@3")
    assert request.spec.name == "digits"


def test_where_the_search_keeps_its_cache_is_no_matter_of_its_workers(away, digits, monkeypatch):
    monkeypatch.setenv("TICKETRY_CACHE", "/of/this/machine")
    monkeypatch.setenv("TICKETRY_OFFLINE", "1")
    cluster = Threads()
    lab = away(cluster)
    lab.train(lab.segment(digits, start=0, last=3))
    travelled = Request.read(cluster.requests[0]).environment
    assert travelled["TICKETRY_OFFLINE"] == "1"
    assert "TICKETRY_CACHE" not in travelled


def test_a_stop_stores_what_is_trained(away, digits):
    events: list[Event] = []
    cluster = Threads()
    lab = away(cluster, on_event=events.append)
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
    assert lab.store.partial(long.trajectory, long.last)[0] > 0
    with pytest.raises(InterruptedTrainingError, match="go on with a new one on the same store"):
        lab.train(lab.segment(digits, start=2))


def test_a_stop_is_bounded(away, digits, monkeypatch):
    """A worker that does not answer holds nobody up for longer than was said."""
    monkeypatch.setattr(remote, "STOP_SECONDS", 0.5)
    released = threading.Event()
    cluster = Threads(losses=1, after=lambda: released.wait(30))
    lab = away(cluster)
    future = lab._running().submit(lab._order, lab.segment(digits, start=0, last=3), ())
    began = time.monotonic()
    lab.stop()
    assert time.monotonic() - began < 5
    with pytest.raises(InterruptedTrainingError, match=r"did not stop within|stopped"):
        future.result(1)
    released.set()


def test_the_longest_chain_goes_first(away, digits):
    """With room for one, of what waits the one that most steps wait for."""
    gate = threading.Event()
    cluster = Threads(room=1)
    submit = cluster.submit
    cluster.submit = lambda request, needs: (gate.wait(30), submit(request, needs))[1]
    lab = away(cluster)
    runner = lab._running()
    segments = [lab.segment(digits, start=seed, last=2) for seed in range(4)]
    futures = []
    first = threading.Thread(target=lambda: futures.append(runner.submit(lab._order, segments[0], ())))
    first.start()
    time.sleep(0.2)
    for segment, ahead in zip(segments[1:], (5, 50, 20), strict=True):
        futures.append(runner.submit(replace(lab._order, ahead=ahead), segment, ()))
    gate.set()
    first.join()
    for future in futures:
        future.result(60)
    keys = [Request.read(text).key for text in cluster.requests]
    assert keys == [segments[index].key for index in (0, 2, 3, 1)]


def test_a_task_of_this_process_alone(away, points):
    cluster = Threads()
    lab = away(cluster)
    with pytest.raises(TaskError, match="was made in this process and another cannot make it"):
        lab.train(lab.segment(points, start=0))
    assert not cluster.requests


def test_a_cluster_that_cannot_be_asked_for_a_while(away, digits, monkeypatch, caplog):
    """The looks by which later machines are found go on; why they failed is said once."""
    monkeypatch.setattr(remote, "_LOOK_SECONDS", 0.02)
    asked = threading.Event()

    class Away(Threads):
        """It has room from the third question on."""

        questions = 0

        def room(self) -> int:
            self.questions += 1
            if self.questions == 1:
                return 0
            if self.questions <= 3:
                raise ConnectionError("nobody answers")
            asked.set()
            return 1

    lab = away(Away())
    lab.train(lab.segment(digits, start=0, last=3))
    assert asked.is_set()
    assert lab.ledger.segments_trained == 1
    assert caplog.text.count("what workers of the cluster do cannot be told now: ConnectionError: nobody answers") == 1


def test_an_answer_that_is_none(away, digits):
    cluster = Threads()
    cluster.submit = lambda request, needs: cluster._pool.submit(lambda: "hello")
    lab = away(cluster)
    with pytest.raises(RunnerError, match="gave an answer that is none of ticketry's: 'hello'"):
        lab.train(lab.segment(digits, start=0, last=3))
