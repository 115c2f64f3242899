"""Train a segment and store its results; train weights again that are missing because a bundle left them out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.lab.store.references import output_digests
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
    """Train a segment from the latest stored state, store its result, and return the amount of work done.

    Nothing is trained if the store has everything. While another process trains the segment, this call waits, and then
    uses the results of that process. If `weights`, missing weights of a stored result are trained again.
    """
    started, busy = time.perf_counter(), time.process_time()
    watch.report_waiting(segment)
    with store.lock_trajectory(segment.trajectory):
        if is_done(store, segment, keep, measure=measure):
            if weights:
                record = store.load_valid_result(segment.trajectory, segment.last)
                if record and any(map(store.is_left_out, output_digests(record))):
                    retrain_left_out_weights(store, data, segment, watch)
            return Work()
        if segment.arithmetic.ranks > 1:
            return train_in_ranks(store, data, segment, keep, watch, measure=measure)
        job = Job(store, segment.course(data), segment, keep, measure)
        with segment.arithmetic.active():
            job.train(watch)
    return job.to_work(time.perf_counter() - started, time.process_time() - busy)


def is_done(store: Store, segment: Segment, keep: Sequence[int] = (), *, measure: bool = True) -> bool:
    """Return whether the store has the result of a segment and its states at the steps `keep`."""
    trajectory = segment.trajectory
    record = store.load_valid_result(trajectory, segment.last)
    return bool(record and (record["metrics"] or not measure)) and all(
        store.load_valid_result(trajectory, step) for step in keep
    )


# -- weights that a bundle left out ------------------------------------------------------------------------------------


class WeightRetrainer:
    """Repeats trainings to restore weights that the store lacks because a bundle (archive) was packed without them."""

    def __init__(self, store: Store, data: Path | None, tasks: Mapping[str, Task]) -> None:
        self._store, self._data, self._tasks = store, data, tasks

    def __call__(self, digest: str, trajectory: str, step: int) -> None:
        """Repeat the training with the key `trajectory` up to `step`, and store the weights."""
        retrain_left_out_weights(self._store, self._data, self.segment(digest, trajectory, step), Watch())

    def segment(self, digest: str, trajectory: str, step: int) -> Segment:
        """Return the segment whose training gives the weights `digest`; `StoreError` if it cannot be trained here."""
        record = self._store.load_valid_result(trajectory, step)
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


def open_training_store(address: str, data: Path | None, segment: Segment) -> Store:
    """Open the store at `address` for training a segment, with a `WeightRetrainer` that knows the segment's task."""
    store = open_store(address)
    store.retrain = WeightRetrainer(store, data, {digest_of(dict(segment.task.key())): segment.task})
    return store


def retrain_left_out_weights(store: Store, data: Path | None, segment: Segment, watch: Watch) -> None:
    """Repeat the training of a segment whose stored result lacks its weights, and store the weights.

    On another kind of processor the weights may differ in the last bits. Then a warning is logged, and the new weights
    are used wherever the old digest is asked for.
    """
    record = store.load_valid_result(segment.trajectory, segment.last)
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
    """Trains a segment whose result is stored except for its tensors."""

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
