"""One segment whose lock is held, in training: where it begins, and how its states and results are stored."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ticketry.core.ticket.together import pieces_of
from ticketry.errors import InterruptedTrainingError
from ticketry.lab.environment import environment
from ticketry.lab.runners.signals import Stopped, defer_signals, raise_if_stopped, stop_signal
from ticketry.lab.store import parts
from ticketry.lab.store.store import Store, tensors_to_bytes
from ticketry.lab.training.loop import Loop, rounded
from ticketry.lab.training.ranks.group import Group
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import TrainingState, initial_state, part_of
from ticketry.lab.training.stopwatch import Stopwatch
from ticketry.tasks.task import Course

_CURVE_POINTS = 100
_TICK_SECONDS = 0.2


@dataclass
class Watch:
    """What a segment in training tells, and asks, whoever waits for it."""

    checkpoint_seconds: float = 60.0

    def progress(self, segment: Segment, step: int) -> None:
        """Called a few times a second."""

    def waiting(self, segment: Segment) -> None:
        """Called before waiting for another process that trains the same."""

    def stored(self, segment: Segment, step: int) -> None:
        """Called when a state was stored because training is asked to stop."""

    def stop_asked(self) -> bool:
        """Whether training should store its state and stop."""
        return False


@dataclass(frozen=True)
class Work:
    """What was really done: nothing, if the results were there."""

    steps: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    processor_seconds: float = 0.0
    """Of all threads of the process, for both; of several processes that train together, of the first."""


class Job:
    """One segment whose lock is held: where it begins, and its states and results in the store.

    Args:
        group: the processes that train it together, if there are several; `course` is cut among them.
    """

    def __init__(
        self,
        store: Store,
        course: Course,
        segment: Segment,
        keep: Sequence[int],
        measure: bool,
        group: Group | None = None,
    ) -> None:
        self.group = group
        self.store, self.course, self.segment, self.measure = store, course, segment, measure
        self.task = segment.task
        self.trajectory = segment.trajectory
        stops = sorted({*keep, segment.last})
        self.missing = [stop for stop in stops if store.trained(self.trajectory, stop) is None]
        """The steps whose states are still to be stored, in order."""
        self.steps_trained = 0
        self.train_seconds = 0.0
        """Of these steps."""
        self._earlier_seconds = 0.0

    def loop(self) -> Loop:
        """The training of this segment, from where it begins."""
        state = self.furthest_state()
        if self.group is None:
            return Loop(self.store, self.course, self.segment, state)
        found = self.group.first(parts.newest(self.store.paths, self.trajectory, self.missing[0]))
        newer = found is not None and found[0] > state.step
        if newer:  # its weights take the place of these
            state = TrainingState(found[0], state.model, {}, torch.zeros(0))
        self.group.require_same("a stored state", state.step)
        loop = Loop(self.store, self.course, self.segment, state, self.group)
        if newer:
            from ticketry.lab.training.ranks import sharded

            self._earlier_seconds = sharded.load(found[1], loop)
        return loop

    @property
    def in_parts(self) -> bool:
        """Whether this process has but a part of each parameter."""
        return self.group is not None and self.group.in_parts

    def finish(self) -> None:
        """What is left to do when all states are stored."""
        if record := self._unmeasured():
            self.add_metrics(record)
        self.drop_partials()

    def _unmeasured(self) -> dict[str, Any] | None:
        """The record of the result, if metrics are asked for and it has none: kept on the way of a longer segment."""
        record = self.store.trained(self.trajectory, self.segment.last)
        found = record if self.measure and record and not record["metrics"] else None
        if self.group is not None:
            found = self.group.first(found)
        return found

    def do(self, watch: Watch) -> None:
        """Train what is missing.

        Raises:
            InterruptedTrainingError, TrainingError, HoldError: see `Training.until`.
        """
        if self.missing:
            training = Training(self, watch)
            for stop in list(self.missing):
                training.until(stop)
        self.finish()

    def work(self, seconds: float, processor_seconds: float) -> Work:
        """What was done in `seconds` of wall time."""
        return Work(self.steps_trained, self.train_seconds, seconds - self.train_seconds, processor_seconds)

    # -- where to begin ----------------------------------------------------------------------------------------------

    def furthest_state(self) -> TrainingState:
        """The stored state of this trajectory that is nearest before the first missing one."""
        bound = self.missing[0]
        partial = self.store.partial(self.trajectory, bound)
        record = nearest(self.store, self.trajectory, bound)
        if record and not (partial and partial[0] >= record["step"]):
            self._earlier_seconds = record["cost"]["train_seconds"]
            return self._stored_state(record)
        if partial:
            step, tensors = partial
            self._earlier_seconds = float(tensors.pop("seconds"))
            return _unpacked(step, part_of(tensors, "model/"), tensors)
        return self._beginning()

    def _stored_state(self, record: Mapping[str, Any]) -> TrainingState:
        """The state of a result; at the end of a schedule without what would be needed to go on."""
        training: dict[str, Tensor] = {"losses": torch.zeros(0)}
        if record["training"]:
            training = self.store.get_tensors(record["training"])
        for name, digest in record["variants"].items():
            training |= _within(f"variants/{name}/", self.store.get_tensors(digest))
        return _unpacked(record["step"], self.store.get_tensors(record["model"]), training)

    def _beginning(self) -> TrainingState:
        state = begun(self.store, self.segment)
        around = self.segment.surroundings(self.store, self.course)
        state.variants = {one.name: one.first_state(around, state.model) for one in self.segment.variants}
        return state

    # -- storing -----------------------------------------------------------------------------------------------------

    def store_partial(self, state: TrainingState) -> None:
        """Keep a state inside the segment, to go on from."""
        tensors = _within("model/", state.model) | _packed(state, state.variants)
        tensors["seconds"] = torch.tensor(self._earlier_seconds + self.train_seconds, dtype=torch.float64)
        if self.group is None or not self.group.in_parts:
            self.store.put_partial(self.trajectory, state.step, tensors)
            return
        from ticketry.lab.training.ranks import sharded

        sharded.save(self.group, self.store, self.trajectory, state.step, tensors)

    def store_result(self, loop: Loop) -> None:
        """Store the first missing result: that of `loop` as it is now. Asked to stop meanwhile, store its state."""
        state = loop.state()
        assert state.step == self.missing[0]
        try:
            raise_if_stopped()
            self._store_result(loop, state)  # measured, which may take long
        except Stopped:
            self.store_partial(state)
            raise
        del self.missing[0]

    def _store_result(self, loop: Loop, state: TrainingState) -> None:
        stop = state.step
        segment = self.segment.until(stop)
        record = {
            "segment": {**segment.describe(), "blobs": segment.blobs()},
            "step": stop,
            **self.store_tensors(loop, state),
            **(loop.measured() if self.measure and stop == self.segment.last else {"metrics": None}),
            "loss": _curve(state.losses, segment.first),
            "cost": {
                "steps": stop - segment.first,
                "train_seconds": round(self._earlier_seconds + self.train_seconds, 3),
            },
            "environment": environment(),
            **loop.facts(),
        }
        self.store.put_result(self.trajectory, stop, record)

    def store_tensors(self, loop: Loop, state: TrainingState) -> dict[str, Any]:
        """Store the tensors of a state; their digests."""
        lasting: dict[str, dict[str, Tensor]] = {}
        on_the_way: dict[str, dict[str, Tensor]] = {}
        for name, own in state.variants.items():
            for entry, value in own.items():
                part = lasting if loop.effects[name].lasting(entry) else on_the_way
                part.setdefault(name, {})[entry] = value
        return {
            "model": self._put(state.model),
            # Only a state on the way is ever trained on: at the end of the schedule the weights are enough.
            "training": self._put(_packed(state, on_the_way)) if state.step < self.segment.total else None,
            "variants": {name: self._put(own) for name, own in lasting.items()},
        }

    def _put(self, tensors: Mapping[str, Tensor]) -> str:
        return self.put_gathered(tensors) if self.in_parts else self.store.put_tensors(tensors)

    def put_gathered(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors in parts, one at a time; all ranks call this."""
        return self.store.put_pieces(pieces_of(tensors, tensors_to_bytes))

    def drop_partials(self) -> None:
        """States inside the segment are of no use any more."""
        self.store.drop_partials(self.trajectory, self.segment.last)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Measure a stored result, and store it with its metrics."""
        measured = self.measured_again(record)
        self.store.put_result(self.trajectory, self.segment.last, {**record, **measured})

    def measured_again(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of a stored result, as entries of its record."""
        loop = Loop(self.store, self.course, self.segment, self._stored_state(record), self.group)
        loop.stopped()
        return dict(loop.measured())


class Training:
    """A job in training: tells how far it is, and stores checkpoints at a time interval."""

    def __init__(self, job: Job, watch: Watch) -> None:
        self.job, self.watch = job, watch
        self.loop = job.loop()
        self._next_tick = self._next_checkpoint = 0.0
        self._stopwatch = Stopwatch()
        self._stop = self._due = False

    def until(self, stop: int) -> None:
        """Train up to step `stop`, and store the result.

        Raises:
            InterruptedTrainingError: if the watch asked for a stop; the state is stored.
            TrainingError, HoldError: see `Loop.train_until`.
        """
        before = self.loop.step
        self._next_tick = now = time.monotonic()
        self._stopwatch.start(now)
        self._next_checkpoint = now + self.watch.checkpoint_seconds
        self._stop = self._due = False
        try:
            with defer_signals():
                self.loop.train_until(stop, self._tick)
        finally:
            self.job.train_seconds += self._stopwatch.lap(time.monotonic())
            self.job.steps_trained += self.loop.step - before
        try:
            self.job.store_result(self.loop)
        except Stopped as stopped:
            raise self._interrupted() from stopped
        self.watch.progress(self.job.segment, stop)

    def _interrupted(self) -> InterruptedTrainingError:
        self.watch.stored(self.job.segment, self.loop.step)
        return InterruptedTrainingError(
            f"stopped at step {self.loop.step}; its state is stored", stop_signal() or signal.SIGINT
        )

    def _tick(self) -> None:
        now = time.monotonic()
        group = self.job.group
        late = now + (now - self._stopwatch.then) >= self._next_checkpoint  # after the next step it would be
        self.job.train_seconds += self._stopwatch.lap(now)
        if late or now >= self._next_tick:
            self._next_tick = now + min(_TICK_SECONDS, self.watch.checkpoint_seconds)
            self.watch.progress(self.job.segment, self.loop.step)
            self._stop = self.watch.stop_asked()
            self._due = self._stop or late
        elif group is None:
            return
        if not (self._due if group is None else group.agreed(self._due)):
            return
        self.job.store_partial(self.loop.state())
        stored = time.monotonic()
        self._stopwatch.start(stored)
        self._next_checkpoint = _next_checkpoint(now, stored, self.watch.checkpoint_seconds)
        self._due = False
        if self._stop:
            raise self._interrupted()


def _next_checkpoint(taken: float, stored: float, interval: float) -> float:
    """When to begin with the next state, so that it is stored within the interval, too: what is lost is at most that.

    Storing is taken to last at most half as long again as it did now. Where that is most of the interval, states cannot
    be that near to one another: then as much time is trained as one took to store, or half of the interval.
    """
    storing = stored - taken
    return max(taken + interval - 1.5 * storing, stored + min(storing, interval / 2))


def nearest(store: Store, trajectory: str, bound: int) -> dict[str, Any] | None:
    """Of a trajectory the last result up to step `bound` that is stored with all that training goes on from."""
    for step in reversed(store.stored_steps(trajectory)):
        record = store.trained(trajectory, step)
        if step > bound or not (record and record["training"]):
            continue
        if not any(map(store.left_out, (record["model"], record["training"]))):
            return record
    return None


def begun(store: Store, segment: Segment) -> TrainingState:
    """The state at a segment's first step, without that of its variants.

    Its session goes on with the training whose optimiser goes on, see `Session.state`.
    """
    start = segment.start
    if start.state is not None:
        model = store.get_tensors(start.state)
    else:
        assert start.seed is not None
        model = initial_state(segment.task, start.seed)
    state = TrainingState(segment.first, model, {}, torch.zeros(0))
    if start.optimizer is not None:
        before = _unpacked(0, {}, store.get_tensors(start.optimizer))
        state.optimizer, state.session = before.optimizer, before.session
    return state


def _packed(state: TrainingState, variants: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    parts = {"optimizer/": state.optimizer, "session/": state.session}
    parts |= {f"variants/{name}/": dict(own) for name, own in variants.items()}
    packed = {name: value for prefix, tensors in parts.items() for name, value in _within(prefix, tensors).items()}
    return packed | {"losses": state.losses}


def _unpacked(step: int, model: dict[str, Tensor], training: Mapping[str, Tensor]) -> TrainingState:
    variants: dict[str, dict[str, Tensor]] = {}
    for key, value in part_of(training, "variants/").items():
        name, _, entry = key.partition("/")
        variants.setdefault(name, {})[entry] = value
    parts = (part_of(training, "optimizer/"), training["losses"], variants, part_of(training, "session/"))
    return TrainingState(step, model, *parts)


def _within(folder: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{folder}{name}": value for name, value in tensors.items()}


def _curve(losses: Tensor, first: int) -> list[tuple[int, float]]:
    """(step, mean loss since the point before): at most 100 points."""
    if not len(losses):
        return []
    size = -(-len(losses) // _CURVE_POINTS)
    parts = torch.split(losses.double(), size)
    return [(first + min((i + 1) * size, len(losses)), rounded(float(part.mean()))) for i, part in enumerate(parts)]
