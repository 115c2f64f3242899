"""Threads that stay, each woken and waited for by a lock: a native call in each, none of which holds Python's lock."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class _Post:
    """Where one thread finds its work: two locks, held until there is something to do, and until it is done."""

    def __init__(self) -> None:
        self.given, self.done = threading.Lock(), threading.Lock()
        self.given.acquire()
        self.done.acquire()
        self.job: Job | None = None
        self.finished = True
        self.error: BaseException | None = None

    def serve(self) -> None:
        while True:
            self.given.acquire()
            if self.job is None:
                return
            function, arguments = self.job
            try:
                function(*arguments)
            except BaseException as error:
                self.error = error
            self.finished = True
            self.done.release()
            del function, arguments

    def give(self, job: Job) -> None:
        self.job, self.finished = job, False
        self.given.release()

    def wait(self) -> None:
        """Until the work is done: whoever is interrupted meanwhile still waits, as its memory is in use until then."""
        try:
            self.done.acquire()
        except KeyboardInterrupt:
            while not self.finished:
                with suppress(KeyboardInterrupt):
                    time.sleep(0.001)
            raise


class Workers:
    """So many threads beside the caller's. Used by one caller at a time; they end when nobody holds this any more."""

    def __init__(self, count: int) -> None:
        self._posts = [_Post() for _ in range(count)]
        for post in self._posts:
            threading.Thread(target=post.serve, daemon=True, name="ticketry-engine").start()
        weakref.finalize(self, _dismiss, self._posts)

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the first job here and each other one on a thread of its own; return when all are done.

        Raises:
            Exception: the first that a job raised, when all have ended. These workers are not to be used again then.
        """
        posts = self._posts[: len(jobs) - 1]
        if len(posts) < len(jobs) - 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self._posts) + 1} threads")
        for post, job in zip(posts, jobs[1:], strict=True):
            post.give(job)
        errors: list[BaseException] = []
        waiting: list[Job] = [(post.wait, ()) for post in posts]
        for function, arguments in [jobs[0], *waiting]:
            try:
                function(*arguments)
            except BaseException as error:
                errors.append(error)
        errors += [post.error for post in posts if post.error is not None]
        if errors:
            raise errors[0]


def _dismiss(posts: Sequence[_Post]) -> None:
    for post in posts:
        post.job = None
        post.given.release()
