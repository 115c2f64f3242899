"""Weights that a bundle left out are trained again when they are needed: from the initialisation, if it must be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.lab.runners.signals import stop_signal
from ticketry.lab.store.opening import open_store
from ticketry.lab.store.store import Store, digest_of
from ticketry.lab.training.job import Job, Training, Watch
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.segment import Segment
from ticketry.tasks.task import Task

_log = logging.getLogger(__name__)


class Remaker:
    """What a store calls for weights that it knows of but does not have, see `Store.remake`.

    Args:
        tasks: by the digest of their keys: the tasks that are trained now, one of which it was.
    """

    def __init__(self, store: Store, data: Path | None, tasks: Mapping[str, Task]) -> None:
        self._store, self._data, self._tasks = store, data, tasks

    def __call__(self, digest: str, trajectory: str, step: int) -> None:
        """Train up to that step of the trajectory, and store what comes out; errors as of `segment`."""
        make_again(self._store, self._data, self.segment(digest, trajectory, step), _Watch())

    def segment(self, digest: str, trajectory: str, step: int) -> Segment:
        """What gives the weights.

        Raises:
            StoreError: if the training is not known, or cannot be repeated here.
        """
        record = self._store.trained(trajectory, step)
        described = dict(record["segment"]) if record else {}
        described.pop("blobs", None)
        task = self._tasks.get(digest_of(described.get("task")))
        if record is None or task is None:
            raise StoreError(
                f"the weights {digest[:12]}… were left out of the bundle that was unpacked here, and they are of"
                " another task"
            )
        segment = Segment.from_description({**described, "last": step}, task)
        if segment.arithmetic.ranks > 1:
            raise StoreError(
                f"the weights {digest[:12]}… were left out of the bundle that was unpacked here, and"
                f" {segment.arithmetic.ranks} devices trained them together: pack them too, with --weights"
            )
        return segment


def lacks_weights(store: Store, segment: Segment) -> bool:
    """Whether a bundle left out tensors of a result that is known, and they were not made again since."""
    record = store.trained(segment.trajectory, segment.last)
    if record is None:
        return False
    digests = (record["model"], record["training"], *record["variants"].values())
    return any(digest is not None and store.left_out(digest) for digest in digests)


def make_again(store: Store, data: Path | None, segment: Segment, watch: Watch) -> None:
    """Train a segment whose result is known for its weights alone, and store them, also under their digest of before.

    Another kind of processor may give other last bits: what comes out then stands for what was left out, and that is
    told.
    """
    record = store.trained(segment.trajectory, segment.last)
    assert record is not None
    _log.info(
        "weights that a bundle left out are trained again: %s, steps %s to %s",
        segment.task.name,
        segment.first,
        segment.last,
    )
    job = _Again(store, data, segment, record)
    with segment.arithmetic.active():
        Training(job, watch).until(segment.last)


def store_for(address: str, data: Path | None, segment: Segment) -> Store:
    """The store at an address, in which a segment is trained: what bundles left out of it is trained again."""
    store = open_store(address)
    store.remake = Remaker(store, data, {digest_of(dict(segment.task.key())): segment.task})
    return store


class _Again(Job):
    """A job whose result is known, but for its tensors."""

    def __init__(self, store: Store, data: Path | None, segment: Segment, known: Mapping[str, Any]) -> None:
        super().__init__(store, segment.course(data), segment, (), measure=False)
        self.missing = [segment.last]
        self._known = known

    def _store_result(self, loop: Loop, state: Any) -> None:
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
        self.store.drop_partials(self.trajectory, self.segment.last)


class _Watch(Watch):
    def stop_asked(self) -> bool:
        return bool(stop_signal())
