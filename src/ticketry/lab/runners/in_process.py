"""The runner that trains in the calling process."""

from __future__ import annotations

import concurrent.futures
import threading

from ticketry.errors import InterruptedTrainingError, UsageError
from ticketry.lab.runners.runner import OnEvent, Order, ReportingWatch
from ticketry.lab.runners.stopping import check
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Work
from ticketry.lab.training.remake import store_for
from ticketry.lab.training.segment import Segment


class InProcess:
    """Trains in the calling process, one segment at a time (thread count and random state belong to the process)."""

    def __init__(self, workers: int, on_event: OnEvent) -> None:
        if workers:
            raise UsageError(f"the runner in-process has no workers, not {workers}")
        self._on_event = on_event
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        future: concurrent.futures.Future[Work] = concurrent.futures.Future()
        watch = ReportingWatch(order.checkpoint_seconds, self._on_event, self._stop.is_set)
        with self._one_at_a_time:
            self._stop.clear()
            try:
                store = store_for(order.store, order.data, segment)
                future.set_result(
                    execute(store, order.data, segment, keep, watch, measure=order.measure, weights=order.weights)
                )
            except InterruptedTrainingError as error:
                check()
                raise KeyboardInterrupt from error
            except Exception as error:
                future.set_exception(error)
        return future

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Nothing is held."""
