"""Making one segment's results true in a store, in this process or in several that it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ticketry.lab.store.store import Store
from ticketry.lab.training.job import Job, Watch, Work
from ticketry.lab.training.ranks.launch import train_in_ranks
from ticketry.lab.training.remake import lacks_weights, make_again
from ticketry.lab.training.segment import Segment


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
    """See to it that the store has results of `segment` and of the same trajectory at the steps `keep`.

    Only one process at a time trains a trajectory; what another has stored meanwhile is not done again. Training goes
    on from the furthest stored state. Without `measure` the result needs no metrics. With `weights` the result is known
    and its weights are made again, if a bundle left them out; that is no work that counts.
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
            job.do(watch)
    return job.work(time.perf_counter() - started, time.process_time() - busy)


def is_done(store: Store, segment: Segment, keep: Sequence[int] = (), *, measure: bool = True) -> bool:
    """Whether nothing is left to do for a segment and the states to keep."""
    trajectory = segment.trajectory
    record = store.trained(trajectory, segment.last)
    return bool(record and (record["metrics"] or not measure)) and all(store.trained(trajectory, step) for step in keep)
