"""The runner that trains elsewhere: on whatever runs a function and gives a future of its answer."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass

from ticketry.errors import InterruptedTrainingError, RunnerError
from ticketry.lab.runners.cluster import Cluster
from ticketry.lab.runners.frontier import Frontier
from ticketry.lab.runners.places import Place, needs_of
from ticketry.lab.runners.request import error_of, read_answer, request_of
from ticketry.lab.runners.runner import Event, OnEvent, Order
from ticketry.lab.store.live import Live, live_at
from ticketry.lab.store.opening import open_store
from ticketry.lab.training.job import Work
from ticketry.lab.training.segment import Segment

LOSSES = 3
"""Workers that may be lost with a segment, one after the other and without a new stored state: then it is given up."""
STOP_SECONDS = 30.0
"""Within which all workers have to have stored their states when the driver asks to stop."""
_LOOK_SECONDS = 1.0
"""Between two looks at what workers tell, at least."""
_LOOK_SHARE = 0.02
"""Of its time the driver looks, at most."""
_ALIVE_SECONDS = 600.0
"""Between two signs of life of the driver."""

_log = logging.getLogger(__name__)


@dataclass
class _Sent:
    """A segment on its way."""

    order: Order
    segment: Segment
    text: str
    answer: Future[Work]
    future: Future[str] | None = None
    losses: int = 0
    furthest: int = -1
    """Step of the furthest state that was stored when a worker was last lost."""
    worker: str = ""
    told: tuple[str, int] = ("", -1)


class Remote:
    """Trains on a cluster, through a store that all machines see.

    Workers tell how far they are, and are asked to stop, through files of the store. A worker that is lost (never: an
    error of the training) is replaced, from the last stored state, at most `LOSSES` times in a row without progress.
    """

    def __init__(self, cluster: Cluster, place: Place, on_event: OnEvent) -> None:
        self._cluster, self._place, self._on_event = cluster, place, on_event
        self._driver = uuid.uuid4().hex
        self._live: Live | None = None
        self._frontier = Frontier(cluster.room)
        self._sent: dict[int, _Sent] = {}
        self._came: queue.SimpleQueue[tuple[_Sent, Future[str]] | None] = queue.SimpleQueue()
        self._guard = threading.RLock()
        self._stopped = False
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._judge_all)]

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> Future[Work]:
        request = request_of(order, segment, keep, self._driver)
        with self._guard:
            if self._stopped:
                raise InterruptedTrainingError("this lab was stopped: go on with a new one on the same store")
            if self._live is None:
                self._live = live_at(order.store, self._driver)
                self._live.begin()
                for thread in self._threads:
                    thread.start()
            sent = _Sent(order, segment, request.text(), Future())
            self._sent[id(sent)] = sent
        self._frontier.put(order.ahead + segment.steps, functools.partial(self._begin, sent))
        return sent.answer

    # -- the way of a segment ----------------------------------------------------------------------------------------

    def _begin(self, sent: _Sent) -> None:
        """Send it; from the driver's threads and the cluster's."""
        if self._stopped:
            self._end(sent, InterruptedTrainingError("stopped before it began"))
            return
        arithmetic = sent.segment.arithmetic
        try:
            needs = needs_of(self._place, arithmetic.threads, arithmetic.device, arithmetic.ranks)
            sent.future = self._cluster.submit(sent.text, needs)
        except Exception as error:
            self._end(sent, self._explained(error, sent))
            return
        sent.future.add_done_callback(lambda future: self._came.put((sent, future)))  # from the cluster's own threads

    def _judge_all(self) -> None:
        """Answers, or that there will be none, as they come."""
        while come := self._came.get():
            try:
                self._judge(*come)
            except Exception as error:  # what no worker should answer; whoever waits has to learn of it
                self._end(come[0], error)

    def _judge(self, sent: _Sent, future: Future[str]) -> None:
        error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            if self._stopped:
                self._end(sent, InterruptedTrainingError("stopped; what was stored before is there"))
            elif self._cluster.is_loss(error):
                self._lost(sent, f"{type(error).__name__}: {error}")
            else:
                self._end(sent, self._explained(error, sent))
            return
        found = read_answer(future.result())
        sent.worker = str(found["worker"])
        if found["kind"] == "done":
            self._end(sent, Work(**found["work"]))
        elif found["kind"] == "failed":
            self._end(sent, error_of(found))
        elif found["kind"] == "stopped" or self._stopped:
            self._end(sent, InterruptedTrainingError(str(found.get("message", "stopped; its state is stored"))))
        else:
            self._lost(sent, f"it was told to end (signal {found['number']})")

    def _lost(self, sent: _Sent, why: str) -> None:
        """The worker is gone: another goes on from the last stored state, unless too many were lost there."""
        furthest = open_store(sent.order.store).furthest(sent.segment.trajectory, sent.segment.last)
        sent.losses = 1 if furthest > sent.furthest else sent.losses + 1
        sent.furthest = furthest
        if sent.losses < LOSSES:
            self._on_event(self._event(sent, "lost", max(furthest, sent.segment.first)))
            self._begin(sent)
            return
        self._end(
            sent,
            RunnerError(
                f"{LOSSES} workers of {self._cluster.name} in a row were lost at steps {sent.segment.first} to"
                f" {sent.segment.last} of a training, without a new stored state; the last{self._named(sent)}:"
                f" {why:.300}."
                " They were killed, ran out of memory, or their machines went away. What was finished is stored; the"
                " same command goes on from there"
            ),
        )

    def _explained(self, error: BaseException, sent: _Sent) -> Exception:
        if isinstance(error, (RunnerError, InterruptedTrainingError)):
            return error
        return RunnerError(
            f"{self._cluster.name} did not train steps {sent.segment.first} to {sent.segment.last}{self._named(sent)}:"
            f" {type(error).__name__}: {error}. What was finished is stored; the same command goes on from there"
        )

    def _named(self, sent: _Sent) -> str:
        return f" on {sent.worker}" if sent.worker else ""

    def _end(self, sent: _Sent, result: Work | Exception) -> None:
        with self._guard:
            if self._sent.pop(id(sent), None) is None:
                return
        if self._live:
            self._live.forget(sent.segment.key)
        if isinstance(result, Work):
            sent.answer.set_result(result)
        else:
            sent.answer.set_exception(result)
        self._frontier.ended()

    # -- progress ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        pause, alive, said = _LOOK_SECONDS, time.monotonic(), ""
        while not self._closed.wait(pause):
            began = time.monotonic()
            try:
                self._look_around()
            except Exception as error:  # of the store, the cluster, or who hears of events: the next look may go well
                if said != (said := f"{type(error).__name__}: {error}"):
                    _log.warning("what workers of %s do cannot be told now: %s", self._cluster.name, said)
            if began - alive > _ALIVE_SECONDS and self._live:
                alive = began
                with contextlib.suppress(Exception):
                    self._live.begin()
            pause = max(_LOOK_SECONDS, (time.monotonic() - began) / _LOOK_SHARE)

    def _look_around(self) -> None:
        with self._guard:
            under_way = [one for one in self._sent.values() if one.future is not None]
        self._frontier.fill()  # machines may have come
        for sent in under_way:
            self._look(sent)

    def _look(self, sent: _Sent) -> None:
        assert self._live is not None
        found = self._live.told(sent.segment.key)
        kind, step = found.get("kind"), found.get("step")
        if not isinstance(kind, str) or not isinstance(step, int) or (kind, step) == sent.told:
            return
        sent.told, sent.worker = (kind, step), str(found.get("worker", ""))
        self._on_event(self._event(sent, kind, step))

    def _event(self, sent: _Sent, kind: str, step: int) -> Event:
        return Event(kind, sent.segment.key, sent.segment.first, step, sent.segment.last)

    # -- ending ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        with self._guard:
            if self._stopped:
                return
            self._stopped = True
            under_way = list(self._sent.values())
            if self._live:
                self._live.ask_to_stop()
        for sent in under_way:
            if sent.future is None or not self._is_heard_of(sent):
                if sent.future is not None:
                    self._cluster.give_up(sent.future)
                self._end(sent, InterruptedTrainingError("stopped before it began"))
        _, late = concurrent.futures.wait([one.answer for one in under_way], timeout=STOP_SECONDS)
        for sent in under_way:
            if sent.answer in late and sent.future is not None:
                self._cluster.give_up(sent.future)
                message = f"a worker did not stop within {STOP_SECONDS:.0f} s: its state is that of its last checkpoint"
                self._end(sent, InterruptedTrainingError(message))

    def _is_heard_of(self, sent: _Sent) -> bool:
        """Whether a worker has begun with it: one that did not say so yet has nothing to store."""
        return self._live is not None and bool(self._live.told(sent.segment.key))

    def close(self) -> None:
        if self._sent:
            self.stop()
        self._closed.set()
        self._came.put(None)
        self._cluster.close()
        if self._live:
            for thread in self._threads:
                thread.join(timeout=5)
            self._live.end()
