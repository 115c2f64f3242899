"""Who is trained with whom: segments that are asked for at about the same time, and agree, become one stack."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ticketry.errors import InterruptedTrainingError
from ticketry.lab.execute import Work
from ticketry.lab.runner import Answers, Order, Runner
from ticketry.lab.segment import Segment
from ticketry.lab.together import stack_key

_LINGER_SECONDS = 2.0
"""How long a segment waits, at most, for partners while somebody could train it."""


@dataclass(eq=False)
class _Asked:
    """A segment that waits for partners."""

    order: Order
    segment: Segment
    keep: tuple[int, ...]
    like: str
    """Equal for segments that may be partners."""
    future: concurrent.futures.Future[Work]
    of_piece: bool
    """Whether a piece of a search asks for it."""
    due: float | None = None
    """When it is trained with the partners that are there; None as long as there is nobody to train it."""


class Partners:
    """Collects segments and hands them to a runner in stacks.

    A stack begins as soon as a worker is free and nobody is left who might ask for a partner (every piece of a
    `gathering` waits for its own segments), and in any case when its oldest member has waited for two seconds for
    partners alone. Whoever waits for a segment does this work, so that nothing waits when nobody is there to do it.
    """

    def __init__(self, runner: Runner, most: int, workers: int) -> None:
        self._runner, self._most, self._workers = runner, most, max(workers, 1)
        self._changed = threading.Condition()
        self._waiting: list[_Asked] = []
        self._running = 0
        self._busy = 0
        """Pieces that may still ask for something before they wait."""
        self._awaited: dict[concurrent.futures.Future[Work], int] = {}
        """By how many pieces."""
        self._stopped = False
        self._mine = threading.local()

    # -- asking --------------------------------------------------------------------------------------------------------

    def submit(self, order: Order, segment: Segment, keep: tuple[int, ...]) -> concurrent.futures.Future[Work]:
        """Put a segment into the queue; it is trained while somebody is in `wait_for`."""
        future: concurrent.futures.Future[Work] = concurrent.futures.Future()
        with self._changed:
            if self._stopped and self._is_piece:
                raise InterruptedTrainingError("this lab was stopped")
            self._stopped = False
            like = f"{stack_key(segment, keep)} {order.measure}"
            self._waiting.append(_Asked(order, segment, keep, like, future, self._is_piece))
            self._waiting.sort(key=lambda asked: not asked.of_piece)  # controls fill stacks up
        return future

    def wait_for(self, future: concurrent.futures.Future[Work]) -> None:
        """Return when the future is done; meanwhile begin stacks where it is time to."""
        with self._changed:
            counted = self._is_piece and not future.done()
            if counted:
                self._busy -= 1
                self._awaited[future] = self._awaited.get(future, 0) + 1
                self._changed.notify_all()
            future.add_done_callback(self._came)  # it may be one that is trained alone
            while not future.done():
                stack = self._next_stack()
                if stack:
                    self._begin(stack)
                else:
                    self._changed.wait(self._patience())

    def _came(self, future: concurrent.futures.Future[Work]) -> None:
        with self._changed:
            self._busy += self._awaited.pop(future, 0)
            self._changed.notify_all()

    @contextlib.contextmanager
    def gathering(self, pieces: int) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        """For as long as so many threads run pieces of a search; each runs its piece in what this gives, called."""
        outer, left = self._is_piece, pieces
        with self._changed:
            if not outer:
                self._stopped = False
            self._busy += pieces - outer  # a piece that gathers pieces only waits for them

        def ended(number: int) -> None:
            nonlocal left
            with self._changed:
                # The outer piece counts again from the end of the last inner one, not from when its thread runs again.
                self._busy += outer * (left > 0 and left == number) - number
                left -= number
                self._changed.notify_all()

        @contextlib.contextmanager
        def piece() -> Iterator[None]:
            self._mine.piece = True
            try:
                yield
            finally:
                self._mine.piece = False
                ended(1)

        try:
            yield piece
        finally:
            ended(left)  # those that never began

    @property
    def _is_piece(self) -> bool:
        return bool(getattr(self._mine, "piece", False))

    # -- ending --------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nobody waits for partners any more, and whatever trains stores its state."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = self._waiting, []
        for asked in dropped:
            self._done(asked.future, InterruptedTrainingError("stopped before it began"))
        self._runner.stop()

    # -- stacks --------------------------------------------------------------------------------------------------------

    def _next_stack(self) -> list[_Asked]:
        """Those that are trained now, taken from the queue; none if it is not time yet."""
        if not self._waiting or self._running >= self._workers:
            return []
        now = time.monotonic()
        for asked in self._waiting:
            asked.due = now + _LINGER_SECONDS if asked.due is None else asked.due
        first = self._waiting[0]
        if self._busy > 0 and now < (first.due or now):
            return []
        # By trajectory: the same one may be asked for twice, if not in the same words.
        alike = list({each.segment.trajectory: each for each in self._waiting if each.like == first.like}.values())
        free = self._workers - self._running
        stack = alike[: min(self._most, -(-len(alike) // free))]  # no worker stays idle beside a full stack
        self._waiting = [asked for asked in self._waiting if asked not in stack]
        self._running += 1
        return stack

    def _patience(self) -> float | None:
        """Seconds after which to look again, unless something changes."""
        if not self._waiting or self._running >= self._workers:
            return None
        return max((self._waiting[0].due or 0.0) - time.monotonic(), 0.0)

    def _begin(self, stack: list[_Asked]) -> None:
        """Hand a stack to the runner, which may train it here and now: others are let in meanwhile."""
        segments, (order, keep) = [asked.segment for asked in stack], (stack[0].order, stack[0].keep)
        self._changed.release()
        try:
            future = self._runner.submit_stack(order, segments, keep)
            future.add_done_callback(lambda done: self._finished(stack, done))
        except BaseException as error:
            self._finished(stack, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._changed.acquire()

    def _finished(self, stack: Sequence[_Asked], done: Answers | BaseException) -> None:
        answers: Sequence[Work | BaseException]
        if isinstance(done, BaseException):
            answers = [done] * len(stack)
        else:
            error = done.exception()
            answers = [error] * len(stack) if error else done.result()
        with self._changed:
            self._running -= 1
            for asked, answer in zip(stack, answers, strict=True):
                self._done(asked.future, answer)

    def _done(self, future: concurrent.futures.Future[Work], answer: Work | BaseException) -> None:
        with self._changed:
            # Counted now, not when its thread runs again: or the first of them would find itself alone.
            self._busy += self._awaited.pop(future, 0)
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
            self._changed.notify_all()
