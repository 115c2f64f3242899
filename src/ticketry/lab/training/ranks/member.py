"""Run a rank, which is one of the processes that train a network together."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ticketry.core.ticket.folder import iterate_file_bytes
from ticketry.errors import InterruptedTrainingError
from ticketry.lab.process_guard import (
    end_with_parent,
    give_back_freed_memory,
    keep_freed_memory,
    make_picklable,
)
from ticketry.lab.signals import ignore_signals_as_rank
from ticketry.lab.store.folder import Folder
from ticketry.lab.store.store import Store, tensors_to_bytes
from ticketry.lab.training.job import Job, Watch, Work
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.precision import FSDP, Arithmetic
from ticketry.lab.training.ranks.group import Group
from ticketry.lab.training.segment import Segment
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
    """Run the process of a rank, which at the end sends one answer: ``done``, ``stopped`` or ``failed``.

    Args:
        rank: number of the rank, from 0.
        request: what to train.
        pipes: connections of all ranks to the parent process.
        stop: connection through which the parent asks to stop.
        meet: file through which the ranks find one another.
    """
    ignore_signals_as_rank()
    end_with_parent()
    # A sharded training has no memory to spare.
    (give_back_freed_memory if request.segment["arithmetic"].get("parallel") == FSDP else keep_freed_memory)()
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
        answer: tuple[str, Any] = ("done", _train(rank, request, pipe, stop, meet))
    except _StoppedAt as stopped:
        answer = ("stopped", stopped.args)
    except Exception as error:
        answer = ("failed", make_picklable(error))
    pipe.send(answer)  # the parent then ends all ranks


def _train(rank: int, request: RankRequest, pipe: Connection, stop: Connection, meet: Path) -> Work:
    for module in request.modules:  # the user's own process has imported them
        importlib.import_module(module)
    segment = Segment.from_description(request.segment, catalogue.create_task(request.spec))
    with segment.arithmetic.active():
        group = _group_class(segment.arithmetic).join(rank, segment.arithmetic, meet)
        store = Store(request.store, cast("Any", _ParentMirror(pipe, request.store)) if request.mirrored else None)
        course = segment.course(request.data).cut(group)
        kind = _OtherJob if rank else Job
        job = kind(store, course, segment, request.keep, request.measure, group)
        watch = _OtherWatch() if rank else _FirstWatch(request.checkpoint_seconds, pipe, stop)
        job.missing = group.first(job.missing)
        began, busy = time.perf_counter(), time.process_time()
        try:
            job.train(watch)
        except InterruptedTrainingError as error:
            raise _StoppedAt(watch.stored_at, str(error)) from error
        work = job.work(time.perf_counter() - began, time.process_time() - busy)
        group.disconnect()
        return work


def _group_class(arithmetic: Arithmetic) -> type[Group]:
    if arithmetic.parallel != FSDP:
        return Group
    from ticketry.lab.training.ranks.sharded import ShardedGroup

    return ShardedGroup


class _StoppedAt(Exception):
    """Raised if the training was stopped and its state is stored; the arguments are the step and a message."""


class _OtherWatch(Watch):
    """Watch for all ranks except the first; it reports nothing and never stops the training."""

    stored_at = 0

    def __init__(self) -> None:
        super().__init__(checkpoint_seconds=float("inf"))


class _FirstWatch(_OtherWatch):
    """Watch for the first rank; it reports progress to the parent process, and stops the training on request."""

    def __init__(self, checkpoint_seconds: float, pipe: Connection, stop: Connection) -> None:
        super().__init__()
        self.checkpoint_seconds = checkpoint_seconds
        self._pipe, self._stop = pipe, stop

    def report_progress(self, segment: Segment, step: int) -> None:
        self._pipe.send(("progress", step))

    def report_stored(self, segment: Segment, step: int) -> None:
        self.stored_at = step

    def is_stop_requested(self) -> bool:
        return self._stop.poll()


class _OtherJob(Job):
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
        return self._call("get", name, fresh=fresh) if data is None else data

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        self._pipe.send(("store", (name, arguments, named)))
        kind, value = self._pipe.recv()
        if kind == "failed":
            raise value
        return value
