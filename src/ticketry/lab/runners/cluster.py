"""What a runner needs of whatever runs functions elsewhere: four methods over an executor."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Protocol

from ticketry.lab.runners.places import Needs
from ticketry.lab.runners.remote_worker import work


class Cluster(Protocol):
    """Runs `remote_worker.work` on requests, somewhere."""

    name: str
    """As messages call it."""

    def submit(self, request: str, needs: Needs) -> Future[str]:
        """Run it, with what it needs; the future holds its answer, or an error that is not of the training."""

    def room(self) -> int | None:
        """How many requests it should have at once; None for any number."""

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says that the worker is gone, so that another may try."""

    def give_up(self, future: Future[str]) -> None:
        """End what did not come to its end in the time for stopping."""

    def close(self) -> None:
        """Release what it holds. Nothing runs any more that is waited for."""


class OwnExecutor:
    """A user's own `concurrent.futures.Executor`: it stays theirs, and is not shut down here."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self.name = executor, type(executor).__name__

    def submit(self, request: str, needs: Needs) -> Future[str]:
        return self._executor.submit(work, request)

    def room(self) -> int | None:
        return None

    def is_loss(self, error: BaseException) -> bool:
        """A broken executor takes nothing more; one that lost a connection may."""
        return isinstance(error, ConnectionError)

    def give_up(self, future: Future[str]) -> None:
        future.cancel()

    def close(self) -> None:
        """It is the user's."""


def broken(error: BaseException) -> bool:
    """Whether an error says that an executor takes nothing more, or will not give this answer."""
    return isinstance(error, (BrokenExecutor, concurrent.futures.CancelledError))
