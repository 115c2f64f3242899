"""A pilot: one job that trains segment after segment, as long as there are some and its time lasts.

The driver puts requests into a folder that all jobs see, a `Box`; pilots take them from there, the oldest first, and
lay their answers beside. So a scheduler's job starts Python and torch once, not for each segment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketry.files import content_of, join_inside, write_atomically
from ticketry.folders import delete_tree_if_possible, exists
from ticketry.lab.runners.remote_worker import work

_LOOK_SECONDS = 0.1
"""Between two looks of a pilot that waits."""


class Box:
    """Requests and answers, as files that are written whole and moved: each is in one folder at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._queue, self._taken, self._answers = (root / name for name in ("queue", "taken", "answers"))

    # -- of the driver -----------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make its folders; `OSError` if that cannot be."""
        for folder in (self._queue, self._taken, self._answers):
            folder.mkdir(parents=True)

    def put(self, name: str, request: str) -> None:
        """A request for whoever takes it; names are taken in their order. `OSError` if it cannot be written."""
        write_atomically(self._queue / name, request.encode(), parents=False)

    def withdraw(self, name: str) -> bool:
        """Take a request back; False if somebody has it already."""
        with contextlib.suppress(FileNotFoundError):
            (self._queue / name).unlink()
            return True
        return False

    def answered(self) -> list[str]:
        """Requests that have an answer which was not read yet."""
        return _names(self._answers)

    def read_answer(self, name: str) -> str:
        """The answer to a request, which is not there afterwards."""
        path = self._answers / name
        found = content_of(path).decode()
        path.unlink()
        return found

    def taken(self) -> dict[str, str]:
        """Requests that a pilot has, or had until it answered, by the pilot."""
        return {pilot: name for name, _, pilot in (one.partition("@") for one in _names(self._taken))}

    def forget(self, name: str, pilot: str) -> None:
        """That a pilot had a request."""
        with contextlib.suppress(OSError):
            (self._taken / f"{name}@{pilot}").unlink()

    def remove(self) -> None:
        """Delete it: pilots that wait end."""
        delete_tree_if_possible(self.root)

    # -- of a pilot --------------------------------------------------------------------------------------------------

    def take(self, pilot: str) -> tuple[str, str] | None:
        """The oldest request, which no other pilot gets now, and its name; None if there is none.

        Raises:
            OSError: if the box is gone.
        """
        for name in sorted(_names(self._queue)):
            mine = join_inside(self._taken, f"{name}@{pilot}")
            try:
                os.rename(self._queue / name, mine)
            except FileNotFoundError:  # another was faster; or, on a network file system, the answer to ours was lost
                if not exists(mine):
                    continue
            return name, content_of(mine).decode()
        return None

    def give_back(self, pilot: str) -> None:
        """Whatever a pilot has not answered may be taken by any."""
        for taken in _names(self._taken):
            name, _, holder = taken.partition("@")
            if holder == pilot:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._taken / taken, self._queue / name)

    def answer(self, name: str, pilot: str, text: str) -> None:
        """Answer a request; `OSError` if the box is gone."""
        write_atomically(self._answers / name, text.encode(), parents=False)
        self.forget(name, pilot)


def _names(folder: Path) -> list[str]:
    """Of files that are whole, read from the folder itself: what is known of single files may be old on other nodes."""
    with os.scandir(folder) as found:
        return [one.name for one in found if not one.name.startswith(".")]


@dataclass
class Pilot:
    """What a job runs: `Box` -> how many segments it trained.

    It ends when there was nothing to do for `patience` seconds, its box is gone, it was told to end, or less of its
    time is left than the last segment took. Where that is too late, a signal says that the time is over: the training
    stores its state, its request goes back into the box, and the job back into the queue.
    """

    box: Path
    patience: float
    seconds: float
    """Of its job, less those that a signal comes before its end."""

    def __post_init__(self) -> None:
        self._leaving = False

    def __call__(self) -> int:
        box, me, trained = Box(self.box), _job(), 0
        began = idle_since = time.monotonic()
        with contextlib.suppress(OSError), _handled((signal.SIGTERM,), self._leave):
            box.give_back(me)  # what this job had when its node went away, and it was begun again
            while not self._leaving and time.monotonic() - idle_since < self.patience:
                if (found := self._next(box, me)) is None:
                    continue
                name, request = found
                taken = time.monotonic()
                told = work(request, lambda: self._leaving)
                box.answer(name, me, told)
                trained += 1
                idle_since = time.monotonic()
                if idle_since - began + (idle_since - taken) > self.seconds:
                    break
        return trained

    def _next(self, box: Box, me: str) -> tuple[str, str] | None:
        """A request, or nothing after a moment, in which there is nothing to store: told that time is over, it ends."""
        if (found := box.take(me)) is None:
            with _handled((signal.SIGUSR1, signal.SIGUSR2), self._leave):
                time.sleep(_LOOK_SECONDS)
        return found

    def _leave(self, *_: object) -> None:
        self._leaving = True

    def checkpoint(self) -> Any:
        """Called by submitit once the state is stored, before the job goes back into the queue."""
        from submitit.helpers import DelayedSubmission

        with contextlib.suppress(OSError):
            Box(self.box).give_back(_job())
        return DelayedSubmission(Pilot(self.box, self.patience, self.seconds))


def _job() -> str:
    from submitit import JobEnvironment

    return str(JobEnvironment().job_id)


@contextlib.contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handle: Callable[..., None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
