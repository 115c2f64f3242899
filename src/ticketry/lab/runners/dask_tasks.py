"""Training on a Dask cluster: a task of `distributed` for each segment."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

from ticketry.errors import RunnerError, UsageError, needs
from ticketry.lab.runners.chosen import default_workers
from ticketry.lab.runners.places import RESOURCES, Needs, Place, needs_of
from ticketry.lab.runners.ray_tasks import CONNECT_SECONDS, check_answers
from ticketry.lab.runners.remote import Remote
from ticketry.lab.runners.remote_worker import work
from ticketry.lab.runners.runner import OnEvent

LOCAL = "local"
_AHEAD = 2
_ROOM_SECONDS = 2.0
_LOCAL = {
    "distributed.worker.daemon": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "500ms",
}
"""Of workers of this machine. Daemons could start no processes that read examples, and no ranks. By default workers
look at something every 10, 20, 100 and 500 ms, in a thread that takes turns with the one that trains: a training of
short steps took a tenth longer (`benchmarks/runners.py`)."""

_log = logging.getLogger(__name__)


class DaskRunner(Remote):
    """Trains in tasks of Dask: ``dask:HOST:PORT`` of a scheduler, or ``dask:local`` with workers of this machine.

    An address may begin with ``tcp://`` or ``tls://``; ``workers=N`` is of the local ones, whose limit is ``memory=``.
    ``gpus=`` asks for the resource GPU.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_Tasks(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise for options that are not known, no address, or if `distributed` is not installed."""
        place.check((*RESOURCES, "workers"))
        place.count("workers", 1)
        needs_of(place, 1, "cpu")
        if not place.address:
            raise UsageError("--on dask: has no address: dask:HOST:PORT of a scheduler, or dask:local")
        if place.address != LOCAL and "workers" in place.options:
            raise UsageError("--on dask: workers= is of dask:local; a scheduler has its own")
        if place.address != LOCAL and "memory" in place.options:
            raise UsageError("--on dask: memory= is of dask:local; a scheduler's workers have their own --memory-limit")
        needs("distributed", "dask", "training on Dask")


def dask_work(text: str) -> str:
    """`work` in a thread of a worker of Dask's, which is not told by a signal when it has to end."""
    from distributed import get_worker
    from distributed.core import Status

    worker = get_worker()
    leaving = (Status.closing, Status.closing_gracefully, Status.closed, Status.failed)
    return work(text, lambda: worker.status in leaving)


class _Tasks:
    """Segments as tasks of Dask. It tries lost ones again by itself, and what it gives up is tried again from here."""

    name = "Dask"

    def __init__(self, place: Place) -> None:
        import dask
        import distributed

        self._place, self._cluster = place, None
        self._configured = contextlib.ExitStack()
        try:
            if place.address == LOCAL:
                # As long as they live: a lost worker is started anew.
                self._configured.enter_context(dask.config.set(_LOCAL))
                self._cluster = distributed.LocalCluster(
                    n_workers=place.count("workers", default_workers()),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    memory_limit=place.bytes() or "auto",
                )
                self._client = distributed.Client(self._cluster)
            else:
                check_answers(place.address.rpartition("://")[2], "Dask's scheduler")
                self._client = distributed.Client(place.address, timeout=CONNECT_SECONDS)
        except OSError as error:
            self._configured.close()
            raise RunnerError(f"Dask's scheduler {place.address} does not answer as one: {error!s:.300}") from error
        self._logger = logging.getLogger("distributed.client")
        self._logger.addFilter(self._is_to_be_told)
        self._tasks: dict[Future[str], Any] = {}
        self._guard = threading.Lock()
        self._asked_at, self._slots = 0.0, 1

    def submit(self, request: str, needs: Needs) -> Future[str]:
        task = self._client.submit(
            dask_work, request, pure=False, resources={"GPU": needs.gpus} if needs.gpus else None
        )
        outer: Future[str] = Future()
        outer.set_running_or_notify_cancel()  # who cancels it would not be heard by Dask: see `give_up`
        with self._guard:
            self._tasks[outer] = task
        task.add_done_callback(lambda _: self._pass_on(outer))
        return outer

    def _pass_on(self, outer: Future[str]) -> None:
        with self._guard:
            task = self._tasks.pop(outer)
        try:
            outer.set_result(task.result(timeout=CONNECT_SECONDS))
        except BaseException as error:
            outer.set_exception(self._gone() if self._is_gone(error) else error)

    def _is_gone(self, error: BaseException) -> bool:
        """Whether the scheduler is, with which Dask cancels all that was asked of it."""
        return getattr(error, "reason", "") == "scheduler-connection-lost"

    def _gone(self) -> RunnerError:
        return RunnerError(
            f"the connection to Dask's scheduler, {self._place.address}, was lost: it has ended or is out of reach."
            " What was finished is stored; the same command goes on from there once a scheduler answers"
        )

    def _is_to_be_told(self, record: logging.LogRecord) -> bool:
        """Whether a word of Dask's client is: its errors, with long traces, are told by ours, in words."""
        if record.levelno >= logging.ERROR:
            _log.debug("Dask's client: %s", record.getMessage(), exc_info=record.exc_info)
        return record.levelno < logging.ERROR

    def room(self) -> int | None:
        """By the threads of all workers that are there now."""
        if time.monotonic() - self._asked_at > _ROOM_SECONDS:
            self._asked_at = time.monotonic()
            self._slots = sum(self._client.nthreads().values())
        return self._slots + _AHEAD

    def is_loss(self, error: BaseException) -> bool:
        from distributed import KilledWorker

        return isinstance(error, (KilledWorker, ConnectionError))

    def give_up(self, future: Future[str]) -> None:
        with self._guard:
            task = self._tasks.get(future)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        self._client.close()
        self._logger.removeFilter(self._is_to_be_told)
        if self._cluster is not None:
            self._cluster.close()
        self._configured.close()
