"""Making the results of several segments true in a store by training them in a stack, in this process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ticketry.errors import TrainingError, UsageError
from ticketry.lab.execute import Job, Training, Watch, Work, is_done, loaded
from ticketry.lab.loop import TrainingState
from ticketry.lab.segment import Segment, digest_of
from ticketry.lab.stack_check import check_stackable
from ticketry.lab.stacked import MembersFailedError, StackedLoop
from ticketry.lab.store import Store

Answer = Work | TrainingError
"""What was done for a member, or why it could not be trained to its end."""


def stack_key(segment: Segment, keep: Sequence[int]) -> str:
    """Equal for segments that can be members of one stack: all but start, mask and order seed."""
    described = segment.describe()
    own = {name: described.pop(name) for name in ("start", "mask", "order_seed")}
    return digest_of([described, own["start"]["optimizer"] is None, sorted(keep)])


def execute_together(
    store: Store,
    data: Path | None,
    segments: Sequence[Segment],
    keep: Sequence[int],
    watch: Watch,
    *,
    measure: bool = True,
) -> list[Answer]:
    """As `execute`, for the members of a stack, in their order; what is there already is not a member.

    Raises:
        UsageError: if the segments are not of one stack, or two of them are the same.
        TaskError: if the network cannot be stacked.
        InterruptedTrainingError: if the watch asked for a stop; the states of all members are stored.
    """
    started = time.perf_counter()
    if len({stack_key(segment, keep) for segment in segments}) != 1:
        raise UsageError("segments in a stack agree in all but start, mask and order seed")
    if len({segment.trajectory for segment in segments}) != len(segments):
        raise UsageError("a stack has no segment twice")
    for segment in segments:
        watch.waiting(segment)
    with contextlib.ExitStack() as locks:
        for trajectory in sorted(segment.trajectory for segment in segments):  # all take them in one order: no deadlock
            locks.enter_context(store.lock(trajectory))
        open_segments = [segment for segment in segments if not is_done(store, segment, keep, measure=measure)]
        jobs: list[Job] = []
        failed: dict[str, TrainingError] = {}
        if open_segments:
            course = loaded(segments[0], data)
            # In one order, whoever came first: in vectorised sums a member's bits depend on its place.
            open_segments.sort(key=lambda segment: segment.trajectory)
            jobs = [Job(store, course, segment, keep, measure) for segment in open_segments]
            with segments[0].arithmetic.active():
                failed = _Stack(jobs, watch).run()
                for job in jobs:
                    if job.trajectory not in failed:
                        job.finish()
    others = (time.perf_counter() - started - sum(job.train_seconds for job in jobs)) / max(len(jobs), 1)
    works = {job.trajectory: Work(job.steps_trained, job.train_seconds, others) for job in jobs}
    return [failed.get(segment.trajectory) or works.get(segment.trajectory, Work()) for segment in segments]


class _Stack:
    """Jobs that are trained together, as far as they are equally far.

    After a crash some members may be a checkpoint ahead: those furthest behind are trained until they catch up.
    """

    def __init__(self, jobs: Sequence[Job], watch: Watch) -> None:
        self._open = [job for job in jobs if job.missing]
        self._states = {job.trajectory: job.furthest_state() for job in self._open}
        self._failed: dict[str, TrainingError] = {}
        self._watch = watch
        self._training: Training | None = None
        if self._open:
            first = self._open[0]
            models = [self._states[job.trajectory].model for job in self._open]
            check_stackable(first.segment, models, first.course)

    def run(self) -> dict[str, TrainingError]:
        """Train all; trajectory -> why it could not be trained to its end."""
        while self._open:
            group, stop = self._next()
            try:
                self._train(group, stop)
            except MembersFailedError as error:
                self._drop(group, error)
            self._open = [job for job in self._open if job.missing and job.trajectory not in self._failed]
        return self._failed

    def _next(self) -> tuple[list[Job], int]:
        """Who is trained next, and up to which step."""
        steps = {job.trajectory: self._states[job.trajectory].step for job in self._open}
        front = min(steps.values())
        behind = [job for job in self._open if steps[job.trajectory] == front]
        like = _history(self._states[behind[0].trajectory])
        group = [job for job in behind if _history(self._states[job.trajectory]) == like]
        ahead = [step for step in steps.values() if step > front]
        return group, min([job.missing[0] for job in group] + ahead)

    def _train(self, group: list[Job], stop: int) -> None:
        training = self._training
        if training is None or training.jobs != group:
            states = [self._states[job.trajectory] for job in group]
            segments, masks = [job.segment for job in group], [job.mask for job in group]
            loop = StackedLoop(group[0].course, segments, states, masks)
            training = self._training = Training(loop, group, self._watch)
        training.until(stop)
        self._keep(group, training.loop.states())

    def _drop(self, group: list[Job], error: MembersFailedError) -> None:
        assert self._training is not None
        loop, self._training = self._training.loop, None
        assert isinstance(loop, StackedLoop)
        self._failed.update({group[position].trajectory: reason for position, reason in error.errors.items()})
        healthy = [position for position in range(len(group)) if position not in error.errors]
        self._keep([group[position] for position in healthy], loop.healthy(healthy))

    def _keep(self, jobs: Sequence[Job], states: Sequence[TrainingState]) -> None:
        self._states.update({job.trajectory: state for job, state in zip(jobs, states, strict=True)})


def _history(state: TrainingState) -> frozenset[tuple[str, float]]:
    """What must be equal in an optimiser for all members of a stack: what it holds, and how many steps it has made."""
    entries = state.optimizer.items()
    return frozenset((name, float(value) if name.endswith("/step") else 0.0) for name, value in entries)
