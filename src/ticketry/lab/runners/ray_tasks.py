"""Training on a Ray cluster: a task of Ray Core for each segment, with what it needs of a node."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ticketry.errors import RunnerError, needs
from ticketry.files import parse_json
from ticketry.lab.runners.places import RESOURCES, Needs, Place, needs_of
from ticketry.lab.runners.remote import Remote
from ticketry.lab.runners.remote_worker import work
from ticketry.lab.runners.runner import OnEvent

CONNECT_SECONDS = 10.0
"""Within which a cluster has to answer."""
_ROOM_SECONDS = 2.0
"""Between two questions for how many nodes there are."""
_AHEAD = 2
"""Tasks that are sent beyond those that run, so that no worker waits for the driver."""
_CLIENT = "ray://"
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": 20_000, "RAY_grpc_client_keepalive_timeout_ms": 20_000}
"""After how long Ray asks a silent worker for a sign of life, and waits for it; 5 and 2 minutes by default.

Ray tells of a node that is dead by its health check, but a task there counts as running as long as its connection does:
of a machine that has vanished nobody closes it. Read by Ray when it is first imported.
"""


class RayRunner(Remote):
    """Trains in tasks of Ray: on a cluster, ``ray:HOST:PORT``, or ``ray`` on one of this machine.

    ``cpus=``, ``gpus=`` and ``memory=`` are of one training. Without an address it is the cluster that Ray knows of
    here, or one that is started, and ends with the search. ``env=FILE`` is a runtime environment of Ray's, in JSON.
    """

    def __init__(self, workers: int, on_event: OnEvent, place: Place) -> None:
        super().__init__(_Tasks(place), place, on_event)

    @staticmethod
    def check(place: Place) -> None:
        """Raise for options that are not known, an address that is none, or if Ray is not installed."""
        place.check((*RESOURCES, "env"))
        needs_of(place, 1, "cpu")
        needs("ray", "ray", "training on Ray")


class _Tasks:
    """Segments as tasks of Ray. Retries are ours, which know of stored states: Ray is told to retry nothing."""

    name = "Ray"

    def __init__(self, place: Place) -> None:
        for name, milliseconds in _KEEPALIVE.items():
            os.environ.setdefault(name, str(milliseconds))
        import ray

        self._ray, self._place = ray, place
        self._ours, self._closed = not ray.is_initialized(), threading.Event()
        if self._ours:
            self._stay(functools.partial(self._connect, place.address))
        self._work = ray.remote(max_retries=0, max_calls=0)(work)
        self._refs: dict[Future[str], Any] = {}
        self._asked_at, self._slots = 0.0, 1
        self._guard = threading.Lock()

    def _stay(self, connect: Callable[[], None]) -> None:
        """Connect in a thread that lives until `close`.

        What Ray starts on this machine ends with the thread that started it (Linux, prctl(2), on PR_SET_PDEATHSIG); the
        thread that trains first may be that of one replicate of many.
        """
        connected: Future[None] = Future()

        def kept() -> None:
            try:
                connect()
            except BaseException as error:
                connected.set_exception(error)
                return
            connected.set_result(None)
            self._closed.wait()

        threading.Thread(target=kept, name="ray", daemon=True).start()
        connected.result()

    def _connect(self, address: str) -> None:
        address = _CLIENT + address.lstrip("/") if address.startswith("//") else address
        if address not in ("", "auto", "local"):
            check_answers(address.removeprefix(_CLIENT), "Ray")
        try:
            self._ray.init(
                address=address or None,
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=None if address else False,
                runtime_env=_runtime_environment(self._place),
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
        ref = self._work.options(**options).remote(request)
        inner: Future[str] = ref.future()
        outer: Future[str] = Future()
        outer.set_running_or_notify_cancel()  # who cancels it would not be heard by Ray: see `give_up`
        with self._guard:
            self._refs[outer] = ref
        inner.add_done_callback(functools.partial(self._pass_on, outer))
        return outer

    def _pass_on(self, outer: Future[str], inner: Future[str]) -> None:
        with self._guard:
            self._refs.pop(outer, None)
        if error := inner.exception():
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def room(self) -> int | None:
        """By the resources of all nodes that are there now."""
        if time.monotonic() - self._asked_at > _ROOM_SECONDS:
            self._asked_at = time.monotonic()
            there, one = self._ray.cluster_resources(), needs_of(self._place, 1, "cpu")
            shares = [(one.cpus, "CPU"), (one.gpus, "GPU"), (one.memory or 0, "memory")]
            self._slots = int(min((there.get(name, 0) // each for each, name in shares if each), default=1))
        return self._slots + _AHEAD

    def is_loss(self, error: BaseException) -> bool:
        exceptions = self._ray.exceptions
        gone = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
            exceptions.LocalRayletDiedError,
        )
        return isinstance(error, gone)

    def give_up(self, future: Future[str]) -> None:
        with self._guard:
            ref = self._refs.get(future)
        if ref is not None:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()
        self._closed.set()


def _runtime_environment(place: Place) -> dict[str, Any] | None:
    """Of a JSON file that ``env=`` names."""
    from pathlib import Path

    from ticketry.errors import UsageError

    if "env" not in place.options:
        return None
    try:
        found = parse_json(Path(place.options["env"]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--on ray: env= names a JSON file with a runtime environment of Ray's: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("--on ray: env= names a JSON file with an object")
    return found


def check_answers(address: str, what: str, seconds: float = CONNECT_SECONDS) -> None:
    """Raise `RunnerError` unless somebody answers at HOST:PORT, within some seconds."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RunnerError(f"the address of {what} is HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise RunnerError(
            f"nobody answers at the address of {what}, {address}, within {seconds:.0f} s: {error.strerror or error}"
        ) from None
