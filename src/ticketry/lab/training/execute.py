"""Training a segment into a store: the entrance for every runner, and weights that a bundle left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.lab.signals import stop_signal
from ticketry.lab.store.store import Store, digest_of, open_store
from ticketry.lab.training.job import Job, Watch, Work
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.ranks.launch import train_in_ranks
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import TrainingState
from ticketry.tasks.task import Task

_log = logging.getLogger(__name__)


def execute(
    store: Store,
    data: Path | None,
    segment: Segment,
    keep: Sequence[int],
    watch: Watch,
    *,
    measure: bool = True,
    weights: bool = False,
) -> Work:
    """Put the results of `segment`, and of its trajectory at the steps `keep`, into the store.

    Only one process at a time trains a trajectory. Training resumes from the furthest stored state; results that
    another process stored meanwhile are not trained again. Without `measure` the result needs no metrics. With
    `weights` the result is known; its weights are trained again if a bundle left them out, and do not count as work.
    """
    started, busy = time.perf_counter(), time.process_time()
    watch.waiting(segment)
    with store.lock(segment.trajectory):
        if is_done(store, segment, keep, measure=measure):
            if weights and lacks_weights(store, segment):
                make_again(store, data, segment, watch)
            return Work()
        if segment.arithmetic.ranks > 1:
            return train_in_ranks(store, data, segment, keep, watch, measure=measure)
        job = Job(store, segment.course(data), segment, keep, measure)
        with segment.arithmetic.active():
            job.train(watch)
    return job.work(time.perf_counter() - started, time.process_time() - busy)


def is_done(store: Store, segment: Segment, keep: Sequence[int] = (), *, measure: bool = True) -> bool:
    """Return whether the store has the result of a segment and all states to keep."""
    trajectory = segment.trajectory
    record = store.trained(trajectory, segment.last)
    return bool(record and (record["metrics"] or not measure)) and all(store.trained(trajectory, step) for step in keep)


# -- weights that a bundle left out ------------------------------------------------------------------------------------


class Remaker:
    """Trains weights again that a bundle left out; a store calls it, see `Store.remake`.

    Args:
        tasks: the tasks in use, by the digests of their keys.
    """

    def __init__(self, store: Store, data: Path | None, tasks: Mapping[str, Task]) -> None:
        self._store, self._data, self._tasks = store, data, tasks

    def __call__(self, digest: str, trajectory: str, step: int) -> None:
        """Train up to that step of the trajectory and store the weights; errors as of `segment`."""
        make_again(self._store, self._data, self.segment(digest, trajectory, step), _SignalWatch())

    def segment(self, digest: str, trajectory: str, step: int) -> Segment:
        """Return the segment that gives the weights; `StoreError` if it is unknown or cannot be repeated here."""
        record = self._store.trained(trajectory, step)
        described = dict(record["segment"]) if record else {}
        described.pop("blobs", None)
        task = self._tasks.get(digest_of(described.get("task")))
        left_out = f"the weights {digest[:12]}… were left out of the bundle that was unpacked here, and"
        if record is None or task is None:
            raise StoreError(f"{left_out} they are of another task")
        segment = Segment.from_description({**described, "last": step}, task)
        if segment.arithmetic.ranks > 1:
            raise StoreError(
                f"{left_out} {segment.arithmetic.ranks} devices trained them together: pack them too, with --weights"
            )
        return segment


def store_for(address: str, data: Path | None, segment: Segment) -> Store:
    """Open the store in which a segment is trained; weights that bundles left out of it are trained again."""
    store = open_store(address)
    store.remake = Remaker(store, data, {digest_of(dict(segment.task.key())): segment.task})
    return store


def lacks_weights(store: Store, segment: Segment) -> bool:
    """Return whether a bundle left out tensors of a known result, and they were not trained again since."""
    record = store.trained(segment.trajectory, segment.last)
    if record is None:
        return False
    digests = (record["model"], record["training"], *record["variants"].values())
    return any(digest is not None and store.left_out(digest) for digest in digests)


def make_again(store: Store, data: Path | None, segment: Segment, watch: Watch) -> None:
    """Train a segment with a known result for its weights, and store them under their previous digest too.

    Another kind of processor may give other last bits; the new weights then replace those that were left out, with a
    warning.
    """
    record = store.trained(segment.trajectory, segment.last)
    assert record is not None
    _log.info(
        "weights that a bundle left out are trained again: %s, steps %s to %s",
        segment.task.name,
        segment.first,
        segment.last,
    )
    job = _WeightsJob(store, data, segment, record)
    with segment.arithmetic.active():
        job.train(watch)


class _WeightsJob(Job):
    """A job whose result is known except for its tensors."""

    def __init__(self, store: Store, data: Path | None, segment: Segment, known: Mapping[str, Any]) -> None:
        super().__init__(store, segment.course(data), segment, (), measure=False)
        self.missing = [segment.last]
        self._known = known

    def _store_result(self, loop: Loop, state: TrainingState) -> None:
        made = self.store_tensors(loop, state)
        pairs = [(self._known["model"], made["model"]), (self._known["training"], made["training"])]
        pairs += [(digest, made["variants"].get(name)) for name, digest in self._known["variants"].items()]
        for before, now in pairs:
            if before and now and before != now:
                _log.warning(
                    "trained again, the weights %s… have other bits than the bundle's (another kind of processor?):"
                    " they stand for those from here on",
                    before[:12],
                )
                self.store.put_memo("again", before, {"model": now})


class _SignalWatch(Watch):
    def stop_asked(self) -> bool:
        return bool(stop_signal())
