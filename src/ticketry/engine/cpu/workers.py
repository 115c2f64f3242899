"""Threads that stay, each woken and waited for by a lock: a native call in each, none of which holds Python's lock."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class _Post:
    """Where one thread finds its work: two locks, held until there is something to do, and until it is done."""

    def __init__(self) -> None:
        self.given, self.done = threading.Lock(), threading.Lock()
        self.given.acquire()
        self.done.acquire()
        self.job: Job | None = None
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
            self.done.release()


class Workers:
    """So many threads beside the caller's. Used by one caller at a time; they end when nobody holds this any more."""

    def __init__(self, count: int) -> None:
        self._posts = [_Post() for _ in range(count)]
        for post in self._posts:
            threading.Thread(target=post.serve, daemon=True, name="ticketry-engine").start()
        weakref.finalize(self, _dismiss, self._posts)

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the first job here and each other one on a thread of its own; return when all are done."""
        others = list(zip(self._posts, jobs[1:], strict=False))
        if len(others) < len(jobs) - 1:
            raise ValueError(f"{len(jobs)} jobs for {len(self._posts) + 1} threads")
        for post, job in others:
            post.job = job
            post.given.release()
        function, arguments = jobs[0]
        function(*arguments)
        for post, _ in others:
            post.done.acquire()
            if post.error is not None:
                error, post.error = post.error, None
                raise error


def _dismiss(posts: Sequence[_Post]) -> None:
    for post in posts:
        post.job = None
        post.given.release()
