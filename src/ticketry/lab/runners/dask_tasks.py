"""Train on a Dask cluster; each segment is a task of `Client.get_executor`."""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import CancelledError, Future
from typing import Any

from ticketry.errors import RunnerError, UsageError, needs
from ticketry.lab.runners.events import OnEvent
from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool
from ticketry.lab.runners.place import RESOURCES, Needs, Place, default_workers
from ticketry.lab.runners.ray_tasks import CONNECT_SECONDS, check_port
from ticketry.lab.runners.worker import execute

LOCAL = "local"
_LOCAL = {
    "distributed.worker.daemon": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "500ms",
}
"""Dask's configuration for local workers. They are not daemonic, so that they can start further processes. They inspect
themselves less often than by default, when trainings with short steps took a tenth longer (`benchmarks/runners.py`)."""

_log = logging.getLogger(__name__)


class DaskRunner(ExecutorRunner):
    """Trains in tasks of Dask: ``dask:HOST:PORT`` with a scheduler's address, or ``dask:local`` with workers here.

    An address may begin with ``tcp://`` or ``tls://``. With ``dask:local``, ``workers=N`` sets the number of workers,
    and ``memory=`` their memory limit. ``gpus=`` requests that many units of Dask's resource GPU for each training.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_Tasks(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise an error if an option is unknown, if the address is missing, or if `distributed` is not installed."""
        place.check((*RESOURCES, "workers"))
        place.parse_count("workers", 1)
        place.resources_per_training()
        if not place.address:
            raise UsageError("--on dask: needs an address: dask:HOST:PORT of a scheduler, or dask:local")
        if place.address != LOCAL and "workers" in place.options:
            raise UsageError("--on dask: workers= is only for dask:local; a scheduler has its own workers")
        if place.address != LOCAL and "memory" in place.options:
            raise UsageError(
                "--on dask: memory= is only for dask:local; a scheduler's workers have their own --memory-limit"
            )
        needs("distributed", "dask", "training on Dask")


def execute_on_dask(request: str) -> str:
    """Carry out a request in a thread of a Dask worker, and return the answer of `execute`.

    The training stops when Dask closes the worker; this is seen from the worker's status, since Dask sends no signal.
    """
    from distributed import get_worker
    from distributed.core import Status

    worker = get_worker()
    leaving = (Status.closing, Status.closing_gracefully, Status.closed, Status.failed)
    return execute(request, lambda: worker.status in leaving)


class _Tasks(Pool):
    """Sends requests as tasks of a Dask client; Dask itself repeats lost tasks, until it gives them up."""

    def __init__(self, place: Place) -> None:
        import dask
        import distributed

        self._address, self._resources = place.address, contextlib.ExitStack()
        try:
            if place.address == LOCAL:
                self._resources.enter_context(dask.config.set(_LOCAL))  # until `close`: lost workers are replaced
                cluster = distributed.LocalCluster(
                    n_workers=place.parse_count("workers", default_workers()),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    memory_limit=place.parse_size() or "auto",
                )
                self._resources.enter_context(cluster)
                self.client = distributed.Client(cluster)
            else:
                check_port(place.address.rpartition("://")[2], "Dask's scheduler")
                self.client = distributed.Client(place.address, timeout=CONNECT_SECONDS)
        except OSError as error:
            self._resources.close()
            raise RunnerError(f"Dask's scheduler {place.address} does not answer as one: {error!s:.300}") from error
        logger = logging.getLogger("distributed.client")
        logger.addFilter(_hide_error)
        self._resources.callback(logger.removeFilter, _hide_error)
        super().__init__(self.client.get_executor(pure=False), "Dask")

    def submit(self, request: str, needs: Needs) -> Future[str]:
        resources: Any = {"resources": {"GPU": needs.gpus}} if needs.gpus else {}
        return self.executor.submit(execute_on_dask, request, **resources)

    def is_loss(self, error: BaseException) -> bool:
        from distributed import KilledWorker

        return isinstance(error, (KilledWorker, ConnectionError))

    def explain(self, error: BaseException) -> str:
        if isinstance(error, CancelledError):  # Dask cancels all tasks of a scheduler that is gone
            return (
                f"the connection to Dask's scheduler, {self._address}, was lost: it has ended or is out of reach, and"
                " the same command goes on once a scheduler answers"
            )
        return super().explain(error)

    def close(self) -> None:
        self.client.close()
        self._resources.close()


def _hide_error(record: logging.LogRecord) -> bool:
    """Return whether to show a log message of Dask's client; errors are hidden, because the runner reports them."""
    if record.levelno >= logging.ERROR:
        _log.debug("Dask's client: %s", record.getMessage(), exc_info=record.exc_info)
    return record.levelno < logging.ERROR
