"""States inside a segment on their way to a shared store: by a thread, the newest wins, training never waits."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.lab.remote.lease import Lease
from ticketry.lab.remote.objects import Remote
from ticketry.lab.remote.states import State, States, state_of, with_state
from ticketry.lab.store.paths import Paths

_LAST_SECONDS = 15.0
"""What the end of a training that was stopped waits for its last state: schedulers give some 30."""

_log = logging.getLogger(__name__)


class Uploads:
    """Of the one trajectory that a lease is of."""

    def __init__(self, remote: Remote, lease: Lease, paths: Paths) -> None:
        self._remote, self._lease = remote, lease
        self._states = States(remote, paths, lease.trajectory)
        self._changed = threading.Condition()
        self._waiting: tuple[int, Path] | None = None
        self._busy = self._closed = False
        self._step = self._dropped = -1
        """Up to this step states are of no use any more."""
        self._thread: threading.Thread | None = None
        self._superseded: list[State] = []

    def newest(self, step: int, path: Path) -> None:
        """This state is to be uploaded, in place of any that waits."""
        with self._changed:
            self._waiting = (step, path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drop(self, last: int) -> None:
        """Those up to step `last` are of no use any more."""
        with self._changed:
            self._dropped = last
            if self._waiting and self._is_dropped(self._waiting[0]):
                self._waiting = None
        state = state_of(self._lease.known)
        if state is not None and state.step <= last:
            self._superseded.append(state)
            # Written with whatever is told of the trajectory next: at the latest when the lease is given back.
            self._lease.known = with_state(self._lease.known, None)

    def close(self) -> None:
        """Wait for what is on its way, unless it is of no use, and not for long: it is on this machine, too."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_awaited(), timeout=_LAST_SECONDS)
            if self._is_awaited():
                _log.warning("the last state of a training was not uploaded in time: this machine alone has it")
            self._closed = True
            self._changed.notify_all()

    def _is_awaited(self) -> bool:
        return bool(self._waiting or (self._busy and not self._is_dropped(self._step)))

    def _is_dropped(self, step: int) -> bool:
        return step <= self._dropped

    def tidy(self) -> None:
        """Delete what no trajectory names any more."""
        try:
            for state in self._superseded:
                self._remote.impatient(_LAST_SECONDS).delete(self._states.names(state))
        except StoreError as error:
            _log.info("old states stay until `ticketry store gc`: %s", error)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._waiting is None:
                    return
                step, path = self._waiting
                self._waiting, self._busy, self._step = None, True, step
            try:
                self._upload(step, path)
            except FileNotFoundError:
                pass  # a newer one has taken its place
            except (StoreError, OSError) as error:
                _log.warning("a state inside a training was not uploaded, the next one will be: %s", error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _upload(self, step: int, path: Path) -> None:
        state = self._states.push(step, path)
        before = state_of(self._lease.known)
        if not self._is_dropped(step):
            self._lease.change(lambda known: with_state(known, state))
        if self._is_dropped(step):  # meanwhile: it may have been told, or not
            if state_of(self._lease.known) == state:
                self._lease.change(lambda known: with_state(known, None) if state_of(known) == state else known)
            self._remote.delete(self._states.names(state))
        if before is not None and before != state:
            self._remote.delete(self._states.names(before))
