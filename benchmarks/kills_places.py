"""Runners of the kill benchmark: real schedulers on this machine, restarted when they end.

To be cheap to kill, what can be is forked from the process of the benchmark, which has everything imported: commands,
workers of ``processes``, Dask's scheduler and its workers. Workers of Ray and jobs of Slurm begin with a new Python.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

from lab.runners import elsewhere, slurm_here


class Place:
    """A runner without processes besides those that the command starts."""

    def __init__(self, on: str) -> None:
        self.on = on

    def schedulers(self) -> dict[str, int]:
        """Processes that give work to others, by their name."""
        return {}

    def mend(self) -> None:
        """Begin again what has ended."""


@contextlib.contextmanager
def place(on: str, folder: Path) -> Iterator[Place]:
    """Start the scheduler that ``--on`` names in a folder, and end it after the block."""
    kinds: dict[str, Callable[[str, Path], Any]] = {"dask": _dask, "ray": _ray, "slurm": _slurm}
    kind = on.partition(":")[0]
    folder.mkdir(parents=True, exist_ok=True)
    if on.partition(",")[0] in ("dask:cluster", "ray:cluster") or (kind == "slurm" and not on.startswith("slurm:loc")):
        with kinds[kind](on, folder) as found:
            yield found
    else:
        yield Place(on)


def preload_workers() -> Callable[[], None]:
    """Workers of ``processes`` are forks of a server that has all imported; what a command has to do to use it."""
    forkserver.set_forkserver_preload(
        ["__main__", "ticketry.lab.runners.executor_runner", "sklearn.datasets", "counted_task"]
    )
    forkserver.ensure_running()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    usual = multiprocessing.get_context

    def begin() -> None:
        server.ensure_running = resource_tracker.ensure_running  # the server is not this process's child
        multiprocessing.get_context = lambda method=None: usual("forkserver" if method == "spawn" else method)  # type: ignore[assignment]

    return begin


def forked(log: Path, begin: Callable[[], object]) -> int:
    """Fork a process in a new process group; its output is written to a file."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setsid()
            os.chdir(log.parent)
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            begin()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def has_ended(pid: int) -> bool:
    """Return whether a child has ended, and reap it."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    return True


def end(pid: int) -> None:
    """A child, at once."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- Dask ------------------------------------------------------------------------------------------------------------


class _Dask(Place):
    """A scheduler and two workers, by the programs that ``dask scheduler`` and ``dask worker`` are."""

    def __init__(self, folder: Path) -> None:
        self._port, self._folder = elsewhere.free_port(), folder
        super().__init__(f"dask:127.0.0.1:{self._port}")
        self.pids: dict[str, int] = {}
        self.mend()

    def schedulers(self) -> dict[str, int]:
        return {"scheduler": self.pids["scheduler"]}

    def mend(self) -> None:
        for name in ("scheduler", "worker-0", "worker-1"):
            if name not in self.pids or has_ended(self.pids[name]):
                self.pids[name] = forked(
                    self._folder / f"{name}.log", self._scheduler if name == "scheduler" else self._worker
                )
                if name == "scheduler":
                    elsewhere.wait_for_port(self._port)

    def _scheduler(self) -> None:
        from distributed.cli import dask_scheduler

        dask_scheduler.main(["--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard"])

    def _worker(self) -> None:
        from distributed.cli import dask_worker

        words = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--memory-limit", "2GB"]
        dask_worker.main([f"127.0.0.1:{self._port}", *words, "--local-directory", str(self._folder)])


@contextlib.contextmanager
def _dask(on: str, folder: Path) -> Iterator[_Dask]:
    found = _Dask(folder)
    try:
        yield found
    finally:
        for pid in found.pids.values():
            end(pid)


# -- Ray -------------------------------------------------------------------------------------------------------------

_THREE_NODES = """
import json, sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
pid = lambda node, kind: node.all_processes[kind][0].process.pid
def tell():
    told = {f"raylet {at}": pid(node, "raylet") for at, node in enumerate(nodes, 1)}
    print(json.dumps({"address": cluster.address, "nodes": told}), flush=True)
tell()
for line in sys.stdin:
    for at, node in enumerate(nodes):
        if node.any_processes_alive() and all(one.process.poll() is None for one in node.all_processes["raylet"]):
            continue
        cluster.remove_node(node, allow_graceful=False)
        nodes[at] = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    tell()
cluster.shutdown()
"""


class _Ray(Place):
    """Three nodes of one core each; the command runs on the first. A node that ended is replaced."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._asked_at = process, time.monotonic()
        self._read_event()
        super().__init__(f"ray:{self._told['address']},cpus=1")

    def _read_event(self) -> None:
        assert self._process.stdout is not None
        self._told: dict[str, Any] = json.loads(self._process.stdout.readline())

    def schedulers(self) -> dict[str, int]:
        """Return the process ids of the nodes without the command."""
        return dict(self._told["nodes"])

    def mend(self) -> None:
        if time.monotonic() - self._asked_at < 2:
            return
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read_event()
        self._asked_at = time.monotonic()


@contextlib.contextmanager
def _ray(on: str, folder: Path) -> Iterator[_Ray]:
    known = {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    with open(folder / "cluster.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _THREE_NODES],
            text=True,
            env=known,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield _Ray(process)
        finally:
            process.communicate(timeout=120)


# -- Slurm -----------------------------------------------------------------------------------------------------------


class _Slurm(Place):
    """munged, slurmctld and slurmd with a separate configuration; the last two are restarted."""

    def __init__(self, on: str, daemons: slurm_here.Daemons) -> None:
        super().__init__(on)
        self._daemons = daemons

    def schedulers(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._daemons.running.items() if name != "munged"}

    def mend(self) -> None:
        self._daemons.begin()


@contextlib.contextmanager
def _slurm(on: str, folder: Path) -> Iterator[_Slurm]:
    with pytest.MonkeyPatch.context() as patch, slurm_here.slurm(patch, folder / "slurm") as daemons:
        yield _Slurm(on, daemons)
