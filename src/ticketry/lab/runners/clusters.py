"""Train on a Ray or Dask cluster; each segment is a task that requests the resources of one training."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from ticketry.errors import RunnerError, UsageError, needs
from ticketry.files import parse_json
from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool
from ticketry.lab.runners.runner import RESOURCES, Needs, OnEvent, Place, default_workers
from ticketry.lab.runners.worker import execute

CONNECT_SECONDS = 10.0
"""Seconds that a cluster has to answer."""
_CLIENT = "ray://"
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": 20_000, "RAY_grpc_client_keepalive_timeout_ms": 20_000}
"""Environment variables for Ray: milliseconds after which Ray checks a silent connection, and milliseconds to answer.

Ray's defaults are 5 and 2 minutes. A task on a machine that vanished counts as running until its connection is closed.
Ray reads these variables when it is first imported.
"""


class RayRunner(ExecutorRunner):
    """Trains in tasks of Ray: ``ray:HOST:PORT`` on the cluster at an address, or ``ray`` without an address.

    Without an address, Ray uses the cluster that is configured on this machine, or starts a cluster that ends with the
    search. ``cpus=``, ``gpus=`` and ``memory=`` are for one training. ``env=FILE`` is a JSON file with a runtime
    environment of Ray.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_RayTasks(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise an error if an option is unknown, if a number is invalid, or if Ray is not installed."""
        place.check((*RESOURCES, "env"))
        place.resources_per_training()
        needs("ray", "ray", "training on Ray")


class _RayTasks(Pool):
    """Sends requests as tasks of Ray; Ray's own retries are off, because the runner sends lost tasks again itself."""

    name = "Ray"

    def __init__(self, place: Place) -> None:
        for name, milliseconds in _KEEPALIVE.items():
            os.environ.setdefault(name, str(milliseconds))
        import ray

        self._ray, self._place = ray, place
        self._ours, self._closed = not ray.is_initialized(), threading.Event()
        if self._ours:
            connected: Future[None] = Future()
            threading.Thread(
                target=self._connect_and_keep_thread_alive, args=[connected], name="ray", daemon=True
            ).start()
            connected.result()
        self._execute = ray.remote(max_retries=0, max_calls=0)(execute)
        self._refs: dict[Future[str], Any] = {}

    def _connect_and_keep_thread_alive(self, connected: Future[None]) -> None:
        """Connect to Ray in this thread, set the future `connected`, and keep the thread alive until `close`.

        On Linux, processes that Ray starts end with the thread that connected (prctl(2), PR_SET_PDEATHSIG). The thread
        that trains first would end too early.
        """
        try:
            self._connect(self._place.address)
        except BaseException as error:
            connected.set_exception(error)
            return
        connected.set_result(None)
        self._closed.wait()

    def _connect(self, address: str) -> None:
        address = _CLIENT + address.lstrip("/") if address.startswith("//") else address
        if address not in ("", "auto", "local"):
            check_port(address.removeprefix(_CLIENT), "Ray")
        try:
            self._ray.init(
                address=address or None,
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=None if address else False,
                runtime_env=_read_ray_environment(self._place),
            )
        except Exception as error:
            raise RunnerError(
                f"no Ray cluster can be reached ({address or 'none started here'}): {error!s:.300}. Start one with"
                " `ray start --head`, or leave the address away for one of this machine"
            ) from error

    def submit(self, request: str, needs: Needs) -> Future[str]:
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        if needs.memory:
            options["memory"] = needs.memory
        ref = self._execute.options(**options).remote(request)
        future: Future[str] = ref.future()
        self._refs[future] = ref
        future.add_done_callback(lambda done: self._refs.pop(done, None))
        return future

    def is_loss(self, error: BaseException) -> bool:
        exceptions = self._ray.exceptions
        return isinstance(
            error,
            (
                exceptions.WorkerCrashedError,
                exceptions.NodeDiedError,
                exceptions.OutOfMemoryError,
                exceptions.ObjectLostError,
                exceptions.LocalRayletDiedError,
            ),
        )

    def give_up(self, future: Future[str]) -> None:
        if (ref := self._refs.get(future)) is not None:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()
        self._closed.set()


def _read_ray_environment(place: Place) -> dict[str, Any] | None:
    """Return the content of the JSON file that the option ``env=`` names; None without this option."""
    if "env" not in place.options:
        return None
    try:
        found = parse_json(Path(place.options["env"]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--on ray: env= names a JSON file with a runtime environment of Ray's: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("--on ray: env= names a JSON file with an object")
    return found


def check_port(address: str, what: str) -> None:
    """Raise `RunnerError`, which names the server `what`, if no server answers at the address HOST:PORT in time."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RunnerError(f"the address of {what} is HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise RunnerError(
            f"no server answers at the address of {what}, {address}, within {CONNECT_SECONDS:.0f} s:"
            f" {error.strerror or error}"
        ) from None


LOCAL = "local"
_LOCAL = {
    "distributed.worker.daemon": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "500ms",
}
"""Dask's configuration for local workers. They are not daemonic, so that they can start further processes. They inspect
themselves less often, because the default made trainings with short steps a tenth longer (`benchmarks/runners.py`)."""

_log = logging.getLogger(__name__)


class DaskRunner(ExecutorRunner):
    """Trains in tasks of Dask: ``dask:HOST:PORT`` with a scheduler's address, or ``dask:local`` with workers here.

    An address may begin with ``tcp://`` or ``tls://``. With ``dask:local``, ``workers=N`` sets the number of workers,
    and ``memory=`` their memory limit. ``gpus=`` requests that many units of Dask's resource GPU for each training.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_DaskTasks(place), place, on_event)

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
    """Carry out a training request on a Dask worker; stop when Dask closes the worker, because Dask sends no signal."""
    from distributed import get_worker
    from distributed.core import Status

    worker = get_worker()
    leaving = (Status.closing, Status.closing_gracefully, Status.closed, Status.failed)
    return execute(request, lambda: worker.status in leaving)


class _DaskTasks(Pool):
    """Sends requests as tasks of a Dask client; Dask itself repeats lost tasks a few times."""

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
                    memory_limit=place.parse_memory() or "auto",
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
        logger.addFilter(_hide_and_log_errors)
        self._resources.callback(logger.removeFilter, _hide_and_log_errors)
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


def _hide_and_log_errors(record: logging.LogRecord) -> bool:
    """Return whether to show a log message of Dask's client; errors are hidden, because the runner reports them."""
    if record.levelno >= logging.ERROR:
        _log.debug("Dask's client: %s", record.getMessage(), exc_info=record.exc_info)
    return record.levelno < logging.ERROR
