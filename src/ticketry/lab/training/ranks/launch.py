"""Starting the processes that train one network together, and what they need of the one that starts them.

The worker that was given a segment holds its lock (or lease) and starts a process for each rank, by torch's own launch
of processes. It trains nothing itself, so that a rank which fails, or is killed, takes nothing with it: the others are
ended, and all begin again at the newest state. The first rank writes states and results; all ranks have the same
weights and the same optimiser's state, so that one of them has all there is to store. Where the store's folder is the
mirror of a shared one, the worker publishes what is written, for it holds the lease.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import start_processes

from ticketry.errors import InterruptedTrainingError, RunnerError, TicketryError
from ticketry.lab.runners.signals import block_signals, defer_signals, stop_signal
from ticketry.lab.store.link import Link
from ticketry.lab.store.store import Store
from ticketry.lab.training.job import Watch, Work
from ticketry.lab.training.ranks import member
from ticketry.lab.training.ranks.member import Asked, main
from ticketry.lab.training.segment import Segment, check_task

LOSSES = 3
"""Times that ranks may be lost one after the other without a newer state."""
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 30.0
"""Within which the first rank stores its state when it is asked to stop; later it is ended without."""
_OTHERS_SECONDS = 2.0
"""After one rank has failed, within which others say why they did: where one is gone, all the others fail of it."""

_LEVEL = "TORCH_CPP_LOG_LEVEL"

_log = logging.getLogger(__name__)


class _LostRankError(Exception):
    """A rank is gone without a word."""


def train_in_ranks(
    store: Store, data: Path | None, segment: Segment, keep: Sequence[int], watch: Watch, *, measure: bool
) -> Work:
    """Train a segment, whose lock is held, in processes that this one starts; what was done in them.

    Raises:
        TaskError: for a task that no other process can make.
        InterruptedTrainingError: if the watch asked for a stop; the state is stored.
        RunnerError: if ranks are lost again and again.
        TicketryError: whatever the training raises.
    """
    task = segment.task
    check_task(task.name, task.spec)
    assert task.spec is not None
    for digest in filter(store.left_out, segment.blobs()):
        store.get_bytes(digest)  # what a bundle left out is trained again here, once
    request = Asked(
        store=store.paths.root,
        linked=type(store.link) is not Link,
        data=data,
        spec=task.spec,
        segment=segment.describe(),
        modules=tuple(segment.modules()),
        keep=tuple(keep),
        measure=measure,
        checkpoint_seconds=watch.checkpoint_seconds,
        path=tuple(sys.path),
        environment=dict(os.environ),
    )
    reached, losses = -1, 0
    while True:
        try:
            with _Launched(segment.arithmetic.ranks, request) as launched:
                return launched.attend(store, segment, watch)
        except _LostRankError as lost:
            now = store.furthest(segment.trajectory, segment.last)
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
class _Rank:
    """A process, as the one that started it sees it."""

    number: int
    process: Any
    pipe: Connection
    answer: tuple[str, Any] | None = None
    silent: bool = False
    """Whether nothing more can come from it."""

    @property
    def gone(self) -> bool:
        """Whether it ended without an answer."""
        return self.answer is None and not self.process.is_alive() and (self.silent or not self.pipe.poll())


class _Launched:
    """The processes of all ranks, which end with the block."""

    def __init__(self, count: int, request: Asked) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ticketry-ranks-")
        pipes = [Pipe() for _ in range(count)]
        told, self._stop = Pipe(duplex=False)
        theirs = [each for _, each in pipes]
        try:
            with block_signals(), _quiet():
                context = start_processes(  # type: ignore[no-untyped-call]
                    main,
                    (request, theirs, told, Path(self._folder.name) / "meet"),
                    nprocs=count,
                    join=False,
                    start_method=_method(),
                )
        except AssertionError as error:  # multiprocessing's word for it
            self._folder.cleanup()
            raise RunnerError(
                "this worker may not start processes of its own, and several devices need them (Dask:"
                " DASK_DISTRIBUTED__WORKER__DAEMON=False; or train on one device)"
            ) from error
        for each in (*theirs, told):
            each.close()
        self.ranks = [
            _Rank(number, process, pipe)
            for number, (process, (pipe, _)) in enumerate(zip(context.processes, pipes, strict=True))
        ]
        self._told_to_stop = 0.0

    def __enter__(self) -> _Launched:
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

    # -- attending -----------------------------------------------------------------------------------------------------

    def attend(self, store: Store, segment: Segment, watch: Watch) -> Work:
        """Until the first rank has done all: pass on what it tells, and what it is asked."""
        first = self.ranks[0]
        with defer_signals():
            while first.answer is None:
                self._look(store, segment, watch)
                if any(rank.gone or _failed(rank) for rank in self.ranks):
                    self._hear_others(store, segment, watch)
                    raise self._failure()
                self._ask_to_stop(segment, watch)
        kind, value = first.answer
        if kind == "stopped":
            step, message = value
            watch.stored(segment, step)
            raise InterruptedTrainingError(message, stop_signal() or signal.SIGINT)
        if kind == "failed":
            self._hear_others(store, segment, watch)
            raise self._failure()
        found: Work = value
        return found

    def _look(self, store: Store, segment: Segment, watch: Watch) -> None:
        """Take what ranks have sent, or wait for it a while."""
        pipes = {rank.pipe: rank for rank in self.ranks if rank.answer is None and not rank.silent}
        ends = [rank.process.sentinel for rank in self.ranks if rank.answer is None and not rank.gone]
        for ready in wait([*pipes, *ends], timeout=_LOOK_SECONDS):
            if (rank := pipes.get(ready)) is None:  # type: ignore[call-overload]
                continue
            try:
                kind, value = rank.pipe.recv()
                if kind == "link":
                    rank.pipe.send(_called(store.link, *value))
            except (EOFError, OSError):
                rank.silent = True
                continue
            if kind == "progress":
                watch.progress(segment, value)
            elif kind != "link":
                rank.answer = kind, value

    def _ask_to_stop(self, segment: Segment, watch: Watch) -> None:
        if not self._told_to_stop:
            if watch.stop_asked():
                self._told_to_stop = time.monotonic()
                with contextlib.suppress(OSError):
                    self._stop.send_bytes(b"stop")
        elif time.monotonic() - self._told_to_stop > _STOP_SECONDS:
            raise InterruptedTrainingError(
                f"stopped; the newest state of {segment.task.name} is that of its last checkpoint",
                stop_signal() or signal.SIGINT,
            )

    def _hear_others(self, store: Store, segment: Segment, watch: Watch) -> None:
        until = time.monotonic() + _OTHERS_SECONDS
        while time.monotonic() < until and any(rank.answer is None and not rank.gone for rank in self.ranks):
            self._look(store, segment, watch)

    def _failure(self) -> Exception:
        """What is to be raised: that a rank is gone, which makes others fail; else an error of ours before others."""
        for rank in self.ranks:
            if rank.gone:
                return _LostRankError(
                    f"rank {rank.number} of {len(self.ranks)} ended without an answer (exit code"
                    f" {rank.process.exitcode})"
                )
        errors = [rank.answer[1] for rank in self.ranks if _failed(rank) and rank.answer]
        found: Exception = min(errors, key=lambda error: not isinstance(error, TicketryError))
        return found


def _method() -> str:
    """How ranks start: forked from a clean process that has torch and all this imported, where the system can do that.

    From nothing each takes seconds, which a segment of a search would pay for each time.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload([member.__name__, "torch.nn.parallel.distributed", "PIL.Image"])
    return "forkserver"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Processes started in this block do not print torch's own warnings, unless a user has said what is to be printed.

    There is one in each first step, about `find_unused_parameters`, from a thread whose warnings Python does not see.
    """
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "ERROR"
    try:
        yield
    finally:
        os.environ.pop(_LEVEL, None)


def _failed(rank: _Rank) -> bool:
    return rank.answer is not None and rank.answer[0] == "failed"


def _called(link: Link, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[str, Any]:
    """What a method of the link gives, or raises."""
    try:
        return "done", getattr(link, name)(*given, **named)
    except Exception as error:
        return "failed", error
