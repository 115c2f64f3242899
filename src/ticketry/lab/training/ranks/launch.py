"""Start the processes (ranks) that train one network together, serve their requests, and run in each of them.

The parent process holds the segment's lock or lease and does not train. If a rank is killed, the parent ends the other
ranks and starts all again from the newest stored state. The first rank writes states and results, since all ranks have
the same weights and optimiser state. For a shared store, the parent uploads them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from ticketry.core.ticket.folder import iterate_file_bytes
from ticketry.errors import InterruptedTrainingError, RunnerError, TicketryError, UsageError
from ticketry.lab import process
from ticketry.lab.store.objects import Folder, Objects
from ticketry.lab.store.store import Store, tensors_to_bytes
from ticketry.lab.training.job import Job, Watch, Work
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.precision import FSDP
from ticketry.lab.training.ranks.group import Group, ShardedGroup
from ticketry.lab.training.segment import Segment, require_spec
from ticketry.lab.training.state import TrainingState
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """Describes the training that all ranks carry out together."""

    store: Path
    """Folder of the store, or of the mirror of a shared store."""
    mirrored: bool
    """Whether the folder is the mirror of a shared store."""
    data: Path | None
    spec: Spec
    segment: dict[str, Any]
    """Description of the segment."""
    modules: tuple[str, ...]
    keep: tuple[int, ...]
    measure: bool
    checkpoint_seconds: float
    path: tuple[str, ...]
    """Module search path."""
    environment: dict[str, str]
    """The parent's environment variables."""


def main(rank: int, request: RankRequest, pipes: Sequence[Connection], stop: Connection, meet: Path) -> None:
    """Run the process of a rank, which at the end sends one answer: ``done``, ``stopped`` or ``failed``."""
    process.ignore_signals_in_rank_process()
    process.exit_when_parent_exits()
    sharded = request.segment["arithmetic"].get("parallel") == FSDP  # such a training has no memory to spare
    process.give_back_freed_memory() if sharded else process.keep_freed_memory()
    sys.path[:] = request.path
    os.environ.update(request.environment)
    # For channels-last 1x1 convolutions: the numbers have the same order in memory.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Its replacement is unknown to the oldest supported torch.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    pipe = pipes[rank]
    for number, other in enumerate(pipes):
        if number != rank:
            other.close()
    try:
        answer = _train_in_rank(rank, request, pipe, stop, meet)
    except Exception as error:
        answer = ("failed", process.make_picklable(error))
    pipe.send(answer)  # the parent then ends all ranks


def _train_in_rank(rank: int, request: RankRequest, pipe: Connection, stop: Connection, meet: Path) -> tuple[str, Any]:
    """Train, and return ``done`` with the work done, or ``stopped`` with a message."""
    for module in request.modules:  # the user's own process has imported them
        importlib.import_module(module)
    segment = Segment.from_description(request.segment, catalogue.create_task(request.spec))
    with segment.arithmetic.active():
        kind = ShardedGroup if segment.arithmetic.parallel == FSDP else Group
        group = kind(rank, segment.arithmetic, meet)
        store = Store(request.store, cast("Any", _ParentMirror(pipe, request.store)) if request.mirrored else None)
        course = segment.course(request.data).cut(group)
        job = (_LaterRankJob if rank else Job)(store, course, segment, request.keep, request.measure, group)
        # All ranks except the first neither report nor stop the training.
        watch = Watch(float("inf")) if rank else _FirstRankWatch(request.checkpoint_seconds, pipe, stop)
        job.missing = group.value_of_first_rank(job.missing)
        began, busy = time.perf_counter(), time.process_time()
        try:
            job.train(watch)
        except InterruptedTrainingError as error:
            return "stopped", str(error)
        work = job.to_work(time.perf_counter() - began, time.process_time() - busy)
        group.disconnect()
        return "done", work


class _FirstRankWatch(Watch):
    """Implements `Watch` for the first rank: reports progress to the parent process, and stops on request."""

    def __init__(self, checkpoint_seconds: float, pipe: Connection, stop: Connection) -> None:
        super().__init__(checkpoint_seconds)
        self._pipe, self._stop = pipe, stop

    def report_progress(self, segment: Segment, step: int) -> None:
        self._pipe.send(("progress", step))

    def report_stored(self, segment: Segment, step: int) -> None:
        self._pipe.send(("stored", step))

    def is_stop_requested(self) -> bool:
        return self._stop.poll()


class _LaterRankJob(Job):
    """Trains in a rank other than the first, which helps to measure and to gather tensors, but stores no results."""

    def store_partial(self, state: TrainingState) -> None:
        """Store this rank's part of a sharded state; otherwise do nothing, because the first rank stores the state."""
        if self.sharded:
            super().store_partial(state)

    def put_gathered(self, tensors: Mapping[str, Tensor]) -> str:
        for _ in iterate_file_bytes(tensors, tensors_to_bytes):
            pass
        return ""

    def store_result(self, loop: Loop) -> None:
        if self.sharded:
            self.store_tensors(loop, loop.state())
        elif loop.session.gathers:
            loop.session.state()
        if self.measure and self.missing[0] == self.segment.last:
            loop.measured()
        del self.missing[0]

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        self.measure_again(record)

    def drop_checkpoints(self) -> None:
        """Do nothing, because the first rank deletes the checkpoints."""


class _ParentMirror:
    """Gives a rank access to a shared store: it reads files in the mirror, and asks the parent for all other work."""

    def __init__(self, pipe: Connection, root: Path) -> None:
        self._pipe, self._folder = pipe, Folder(root)

    def open(self) -> None:
        """Do nothing, because the parent process has opened the mirror."""

    def get(self, name: str, *, fresh: bool = False) -> bytes | None:
        data = None if fresh else self._folder.get(name)
        return self._call_parent("get", name, fresh=fresh) if data is None else data

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._call_parent, name)

    def _call_parent(self, name: str, *arguments: Any, **named: Any) -> Any:
        self._pipe.send(("store", (name, arguments, named)))
        kind, value = self._pipe.recv()
        if kind == "failed":
            raise value
        return value


# -- the parent of the ranks -------------------------------------------------------------------------------------------


LOSSES = 3
"""Number of restarts, without a newer stored state in between, after which the training fails."""
_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0
"""Seconds that the first rank has to store its state after a request to stop; after that, the ranks are killed."""
_OTHERS_SECONDS = 2.0
"""Seconds for which errors of further ranks are awaited after one rank has failed, to find the first cause."""

_LEVEL = "TORCH_CPP_LOG_LEVEL"

_log = logging.getLogger(__name__)


class _LostRankError(Exception):
    """Raised if a rank ended without an answer."""


def check_machine(devices: int, threads: int, workers: int, device: str) -> None:
    """Raise `UsageError` if this machine has too few cores or GPUs to train `workers` networks at once."""
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if gpus:
        if devices > gpus:
            raise UsageError(
                f"--devices {devices} asks for as many GPUs, and this machine has {gpus}: choose fewer, or --device cpu"
            )
        return
    cores = os.cpu_count() or 1
    each = devices * threads
    if each > cores:
        raise UsageError(
            f"--devices {devices} with {threads} thread{'s' if threads > 1 else ''} each compute on {each} cores, and"
            f" this machine has {cores}: choose fewer"
        )
    if each * workers > cores:
        raise UsageError(
            f"{workers} networks at once, each on {devices} devices of {threads} thread{'s' if threads > 1 else ''},"
            f" compute on {each * workers} cores, and this machine has {cores}, where they would wait for one another"
            f" at every step. Choose --workers {max(cores // each, 1)}"
        )


def train_in_ranks(
    store: Store, data: Path | None, segment: Segment, keep: Sequence[int], watch: Watch, *, measure: bool
) -> Work:
    """Train a segment in several processes and return the amount of work; this process must hold the segment's lock."""
    spec = require_spec(segment.task)
    for digest in filter(store.is_left_out, segment.start_digests()):
        store.get_bytes(digest)  # weights that a bundle left out are trained again once, here
    request = RankRequest(
        store=store.paths.root,
        mirrored=store.mirror is not None,
        data=data,
        spec=spec,
        segment=segment.describe(),
        modules=tuple(segment.imported_modules()),
        keep=tuple(keep),
        measure=measure,
        checkpoint_seconds=watch.checkpoint_seconds,
        path=tuple(sys.path),
        environment=dict(os.environ),
    )
    reached, losses = -1, 0
    while True:
        try:
            with _RankProcesses(segment.arithmetic.ranks, request) as launched:
                return launched.serve(store, segment, watch)
        except _LostRankError as lost:
            now = store.last_stored_step(segment.trajectory, segment.last)
            losses = 1 if now > reached else losses + 1
            reached = now
            if losses >= LOSSES:
                raise RunnerError(
                    f"{lost}, {losses} times without a newer state: it was killed, ran out of memory, or the script"
                    " that started it is not guarded by `if __name__ == '__main__':`. What was finished is stored; the"
                    " same command goes on from there (fewer --devices, or a smaller --recipe.batch, need less memory)"
                ) from None
            _log.warning("%s: all ranks begin again at step %s", lost, max(now, segment.first))


@dataclass
class _RankProcess:
    """Holds the process of a rank, the connection to it, and its answer, in the parent process."""

    number: int
    process: Any
    pipe: Connection
    answer: tuple[str, Any] | None = None
    silent: bool = False
    """Whether the rank has closed the connection."""

    @property
    def is_lost(self) -> bool:
        """Whether the process ended without an answer."""
        return self.answer is None and not self.process.is_alive() and (self.silent or not self.pipe.poll())

    @property
    def has_failed(self) -> bool:
        return self.answer is not None and self.answer[0] == "failed"


class _RankProcesses:
    """Starts the processes of all ranks; at the end of a ``with`` block, kills those that still run."""

    def __init__(self, count: int, request: RankRequest) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ticketry-ranks-")
        pipes = [Pipe() for _ in range(count)]
        told, self._stop = Pipe(duplex=False)
        theirs = [each for _, each in pipes]
        preload = [__name__, "torch.nn.parallel.distributed", "PIL.Image"]
        try:
            with process.block_signals(), _hide_torch_warnings():
                context = start_processes(  # type: ignore[no-untyped-call]
                    main,
                    (request, theirs, told, Path(self._folder.name) / "meet"),
                    nprocs=count,
                    join=False,
                    start_method=process.choose_start_context(preload).get_start_method(),
                )
        except AssertionError as error:  # raised by multiprocessing in a daemonic process
            self._folder.cleanup()
            raise RunnerError(
                "this worker may not start processes of its own, and several devices need them (Dask:"
                " DASK_DISTRIBUTED__WORKER__DAEMON=False; or train on one device)"
            ) from error
        for each in (*theirs, told):
            each.close()
        self.ranks = [
            _RankProcess(number, running, pipe)
            for number, (running, (pipe, _)) in enumerate(zip(context.processes, pipes, strict=True))
        ]
        self._stop_time = 0.0

    def __enter__(self) -> _RankProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if rank.process.is_alive():
                rank.process.kill()
        for rank in self.ranks:
            rank.process.join()
            rank.pipe.close()
        self._stop.close()
        self._folder.cleanup()

    def serve(self, store: Store, segment: Segment, watch: Watch) -> Work:
        """Serve requests of the ranks until the first rank has finished; return the amount of work that it has done."""
        first = self.ranks[0]
        with process.defer_signals():
            while first.answer is None:
                self._handle_rank_messages(store, segment, watch)
                if any(rank.is_lost or rank.has_failed for rank in self.ranks):
                    self._await_other_ranks(store, segment, watch)
                    raise self._choose_error()
                self._ask_ranks_to_stop(segment, watch)
        kind, value = first.answer
        if kind == "stopped":
            raise InterruptedTrainingError(value, process.received_stop_signal() or signal.SIGINT)
        if kind == "failed":
            self._await_other_ranks(store, segment, watch)
            raise self._choose_error()
        found: Work = value
        return found

    def _handle_rank_messages(self, store: Store, segment: Segment, watch: Watch) -> None:
        """Handle messages of the ranks; without messages, wait a fraction of a second."""
        pipes = {rank.pipe: rank for rank in self.ranks if rank.answer is None and not rank.silent}
        ends = [rank.process.sentinel for rank in self.ranks if rank.answer is None and not rank.is_lost]
        for ready in wait([*pipes, *ends], timeout=_POLL_SECONDS):
            if (rank := pipes.get(ready)) is None:  # type: ignore[call-overload]
                continue
            try:
                kind, value = rank.pipe.recv()
                if kind == "store":
                    rank.pipe.send(_call_objects(store.objects, *value))
            except (EOFError, OSError):
                rank.silent = True
                continue
            if kind == "progress":
                watch.report_progress(segment, value)
            elif kind == "stored":
                watch.report_stored(segment, value)
            elif kind != "store":
                rank.answer = kind, value

    def _ask_ranks_to_stop(self, segment: Segment, watch: Watch) -> None:
        if not self._stop_time:
            if watch.is_stop_requested():
                self._stop_time = time.monotonic()
                with contextlib.suppress(OSError):
                    self._stop.send_bytes(b"stop")
        elif time.monotonic() - self._stop_time > _STOP_SECONDS:
            raise InterruptedTrainingError(
                f"stopped; the newest state of {segment.task.name} is that of its last checkpoint",
                process.received_stop_signal() or signal.SIGINT,
            )

    def _await_other_ranks(self, store: Store, segment: Segment, watch: Watch) -> None:
        until = time.monotonic() + _OTHERS_SECONDS
        while time.monotonic() < until and any(rank.answer is None and not rank.is_lost for rank in self.ranks):
            self._handle_rank_messages(store, segment, watch)

    def _choose_error(self) -> Exception:
        """Return the error of a lost rank, else a ticketry error that a rank raised, else any error of a rank."""
        for rank in self.ranks:
            if rank.is_lost:
                return _LostRankError(
                    f"rank {rank.number} of {len(self.ranks)} ended without an answer (exit code"
                    f" {rank.process.exitcode})"
                )
        errors = [rank.answer[1] for rank in self.ranks if rank.answer and rank.has_failed]
        found: Exception = min(errors, key=lambda error: not isinstance(error, TicketryError))
        return found


@contextlib.contextmanager
def _hide_torch_warnings() -> Iterator[None]:
    """Within a ``with`` block, start processes without torch's C++ warnings (one would be about unused parameters)."""
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "ERROR"
    try:
        yield
    finally:
        os.environ.pop(_LEVEL, None)


def _call_objects(objects: Objects, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[str, Any]:
    """Call the method `name` of `objects` for a rank; return "done" and the result, or "failed" and the error."""
    try:
        value = getattr(objects, name)(*arguments, **named)
        return "done", list(value) if isinstance(value, Iterator) else value
    except Exception as error:
        return "failed", error
