"""Making one segment's results true in a store, in this process."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.gates import Gates
from ticketry.core.mask import Mask
from ticketry.core.structure import ShrinkPlan, rebuild
from ticketry.errors import InterruptedTrainingError, TaskError
from ticketry.lab.evaluate import evaluate
from ticketry.lab.gated import attached, next_round
from ticketry.lab.loop import Loop, TrainingState, initial_state, rebuilt
from ticketry.lab.loops import loop_of
from ticketry.lab.segment import Segment, Start
from ticketry.lab.shrunk import remembered_plan, task_structure
from ticketry.lab.store import Store
from ticketry.lab.supervised import course_of
from ticketry.tasks.course import Course
from ticketry.version import __version__

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

    def stop_asked(self) -> bool:
        """Whether training should store its state and stop."""
        return False


@dataclass(frozen=True)
class Work:
    """What was really done: nothing, if the results were there."""

    steps: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0


def execute(
    store: Store, data: Path | None, segment: Segment, keep: Sequence[int], watch: Watch, *, measure: bool = True
) -> Work:
    """See to it that the store has results of `segment` and of the same trajectory at the steps `keep`.

    Only one process at a time trains a trajectory; what another has stored meanwhile is not done again. Training goes
    on from the furthest stored state. Without `measure` the result needs no metrics.
    """
    started = time.perf_counter()
    watch.waiting(segment)
    with store.lock(segment.trajectory):
        if is_done(store, segment, keep, measure=measure):
            return Work()
        job = Job(store, loaded(segment, data), segment, keep, measure)
        with segment.arithmetic.active():
            if job.missing:
                training = Training(job.loop(), [job], watch)
                for stop in list(job.missing):
                    training.until(stop)
            job.finish()
    return job.work(time.perf_counter() - started)


def is_done(store: Store, segment: Segment, keep: Sequence[int] = (), *, measure: bool = True) -> bool:
    """Whether nothing is left to do for a segment and the states to keep."""
    trajectory = segment.trajectory
    record = store.result(trajectory, segment.last)
    return bool(record and (record["metrics"] or not measure)) and all(store.result(trajectory, step) for step in keep)


def loaded(segment: Segment, folder: Path | None) -> Course:
    """The course of a segment's task; `TaskError` if its data are not what the segment was made for."""
    course = course_of(segment.task, folder)
    count = course.sizes()["train"]
    if segment.task.steps_per_epoch(count, segment.recipe) != segment.per_epoch:
        raise TaskError(
            f"the task {segment.task.name!r} has {count} training examples now, which is not what this store knows of"
            " it: give changed data another key (an option, a version) or use another store"
        )
    return course


class Job:
    """One segment whose lock is held: where it begins, and its states and results in the store."""

    def __init__(self, store: Store, course: Course, segment: Segment, keep: Sequence[int], measure: bool) -> None:
        self.store, self.course, self.segment, self.measure = store, course, segment, measure
        self.task = segment.task
        self.trajectory = segment.trajectory
        stops = sorted({*keep, segment.last})
        self.missing = [stop for stop in stops if store.result(self.trajectory, stop) is None]
        """The steps whose states are still to be stored, in order."""
        self.mask: Mask | None = store.get_mask(segment.mask) if segment.mask else None
        self.steps_trained = 0
        self.train_seconds = 0.0
        """Of these steps; of a stack's time this network's share."""
        self._earlier_seconds = 0.0

    def loop(self) -> Loop:
        """The training of this segment alone, from where it begins."""
        return loop_of(self.course, self.segment, self.furthest_state(), self.mask, self._plan)

    def _plan(self) -> ShrinkPlan:
        assert self.segment.mask is not None
        return remembered_plan(self.store, self.task, self.segment.mask, self.course)

    def finish(self) -> None:
        """What is left to do when all states are stored."""
        record = self.store.result(self.trajectory, self.segment.last)
        if self.measure and record and not record["metrics"]:  # kept on the way of a longer segment
            self._add_metrics(record)
        self.store.drop_partials(self.trajectory, self.segment.last)

    def work(self, seconds: float) -> Work:
        """What was done in `seconds` of wall time."""
        return Work(self.steps_trained, self.train_seconds, seconds - self.train_seconds)

    # -- where to begin ----------------------------------------------------------------------------------------------

    def furthest_state(self) -> TrainingState:
        """The stored state of this trajectory that is nearest before the first missing one."""
        bound = self.missing[0]
        partial = self.store.partial(self.trajectory, bound)
        for step in reversed(self.store.stored_steps(self.trajectory)):
            record = self.store.result(self.trajectory, step)
            if step > bound or (partial and partial[0] >= step) or not (record and record["training"]):
                continue
            training = self.store.get_tensors(record["training"])
            if record.get("gates"):
                training |= _within("gates/", self.store.get_tensors(record["gates"]))
            self._earlier_seconds = record["cost"]["train_seconds"]
            return _unpacked(step, self.store.get_tensors(record["model"]), training)
        if partial:
            step, tensors = partial
            self._earlier_seconds = float(tensors.pop("seconds"))
            model = {name[6:]: value for name, value in tensors.items() if name.startswith("model/")}
            return _unpacked(step, model, {n: value for n, value in tensors.items() if not n.startswith("model/")})
        return self._beginning()

    def _beginning(self) -> TrainingState:
        start = self.segment.start
        if start.state is not None:
            model = self.store.get_tensors(start.state)
        else:
            assert start.seed is not None
            model = initial_state(self.task, start.seed)
        optimizer: dict[str, Tensor] = {}
        if start.optimizer is not None:
            optimizer = _unpacked(0, {}, self.store.get_tensors(start.optimizer)).optimizer
        gates: dict[str, Tensor] = {}
        if start.gates is not None:
            gates = next_round(self.segment, model, self.mask, self.store.get_tensors(start.gates))
        return TrainingState(self.segment.first, model, optimizer, torch.zeros(0), gates, carried(self.store, start))

    # -- storing -----------------------------------------------------------------------------------------------------

    def store_partial(self, state: TrainingState) -> None:
        """Keep a state inside the segment, to go on from."""
        tensors = {f"model/{name}": value for name, value in state.model.items()} | _packed(state, state.gates)
        tensors["seconds"] = torch.tensor(self._earlier_seconds + self.train_seconds, dtype=torch.float64)
        self.store.put_partial(self.trajectory, state.step, tensors)

    def store_result(self, loop: Loop, state: TrainingState, position: int = 0) -> None:
        """Store the first missing result: that of `loop`, whose state at `position` is `state`."""
        stop = self.missing.pop(0)
        assert stop == state.step
        measured = self.measure and stop == self.segment.last
        gates = {name: value for name, value in state.gates.items() if name == "round" or name.startswith("s/")}
        on_the_way = {name: value for name, value in state.gates.items() if name not in gates}
        record = {
            "segment": self.segment.until(stop).describe(),
            "step": stop,
            "model": self.store.put_tensors(state.model),
            # Only a state on the way is ever trained on: at the end of the schedule the weights are enough.
            "training": self.store.put_tensors(_packed(state, on_the_way)) if stop < self.segment.total else None,
            **(self._measured(loop.plain_model(position, state), loop.gates) if measured else {"metrics": None}),
            "loss": _curve(state.losses, self.segment.first),
            "cost": {
                "steps": stop - self.segment.first,
                "train_seconds": round(self._earlier_seconds + self.train_seconds, 3),
            },
            "environment": environment(),
            **loop.facts(),
        }
        if gates:
            record["gates"] = self.store.put_tensors(gates)
        self.store.put_result(self.trajectory, stop, record)

    def _add_metrics(self, record: Mapping[str, Any]) -> None:
        model = rebuilt(self.task, self.store.get_tensors(record["model"]))
        model = self.segment.arithmetic.place(rebuild(model, self._plan()) if self.segment.shrunk else model)
        gates = None
        if self.segment.gates:
            tensors = self.store.get_tensors(record["gates"])
            followed = functools.partial(task_structure, self.task, self.course)
            gates = attached(self.segment, model, self.mask, tensors, followed)
            gates.anneal(self.segment.progress)
        self.store.put_result(self.trajectory, self.segment.last, {**record, **self._measured(model, gates)})

    def _measured(self, model: nn.Module, gates: Gates | None) -> dict[str, dict[str, dict[str, float]]]:
        """The entries of a record that tell how good a network is: with gates, hard ones, and soft ones beside."""
        if gates is None:
            return {"metrics": self._metrics(model)}
        with gates.hardened():
            hard = self._metrics(model)
        return {"metrics": hard, "soft_metrics": self._metrics(model)}

    def _metrics(self, model: nn.Module) -> dict[str, dict[str, float]]:
        arithmetic = self.segment.arithmetic
        return {split: _rounded(evaluate(self.course, model, split, arithmetic)) for split in ("validation", "test")}


class Training:
    """Jobs that one loop trains: tells how far they are, and stores checkpoints at a time interval."""

    def __init__(self, loop: Loop, jobs: Sequence[Job], watch: Watch) -> None:
        self.loop, self.jobs, self.watch = loop, jobs, watch
        self._mark = self._next_tick = self._next_checkpoint = 0.0

    def until(self, stop: int) -> None:
        """Train up to step `stop`; its results are stored for the jobs that miss them there.

        Raises:
            InterruptedTrainingError: if the watch asked for a stop; the states are stored.
            TrainingError, HoldError: see `Loop.train_until`.
        """
        before = self.loop.step
        self._mark = self._next_tick = time.monotonic()
        self._next_checkpoint = self._mark + self.watch.checkpoint_seconds
        try:
            self.loop.train_until(stop, self._tick)
        finally:
            self._count(time.monotonic())
            for job in self.jobs:
                job.steps_trained += self.loop.step - before
        if any(stop in job.missing for job in self.jobs):
            for position, (job, state) in enumerate(zip(self.jobs, self.loop.states(), strict=True)):
                if stop in job.missing:
                    job.store_result(self.loop, state, position)
                    self.watch.progress(job.segment, stop)

    def _count(self, now: float) -> None:
        for job in self.jobs:
            job.train_seconds += (now - self._mark) / len(self.jobs)
        self._mark = now

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + min(_TICK_SECONDS, self.watch.checkpoint_seconds)
        for job in self.jobs:
            self.watch.progress(job.segment, self.loop.step)
        stop = self.watch.stop_asked()
        if stop or now >= self._next_checkpoint:
            self._count(now)
            for job, state in zip(self.jobs, self.loop.states(), strict=True):
                job.store_partial(state)
            self._mark = time.monotonic()
            self._next_checkpoint = self._mark + self.watch.checkpoint_seconds
        if stop:
            raise InterruptedTrainingError(f"stopped at step {self.loop.step}; its state is stored")


def carried(store: Store, start: Start) -> dict[str, Tensor]:
    """What a session begins with, see `Session.state`: it goes on with the training whose optimiser goes on."""
    return {} if start.optimizer is None else _unpacked(0, {}, store.get_tensors(start.optimizer)).session


def environment() -> dict[str, Any]:
    """What a result was made with; not part of any key."""
    return {
        "ticketry": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
    }


@functools.cache  # it is asked for by every result and every ticket
def processor() -> str:
    """The name of the CPU, and of the GPU if there is one."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def _packed(state: TrainingState, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {"optimizer/": state.optimizer, "gates/": gates, "session/": state.session}
    packed = {name: value for prefix, tensors in parts.items() for name, value in _within(prefix, tensors).items()}
    return packed | {"losses": state.losses}


def _unpacked(step: int, model: dict[str, Tensor], training: dict[str, Tensor]) -> TrainingState:
    parts = {
        prefix: {name[len(prefix) :]: value for name, value in training.items() if name.startswith(prefix)}
        for prefix in ("optimizer/", "gates/", "session/")
    }
    return TrainingState(step, model, parts["optimizer/"], training["losses"], parts["gates/"], parts["session/"])


def _within(folder: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{folder}{name}": value for name, value in tensors.items()}


def _curve(losses: Tensor, first: int) -> list[tuple[int, float]]:
    """(step, mean loss since the point before): at most 100 points."""
    if not len(losses):
        return []
    size = -(-len(losses) // _CURVE_POINTS)
    parts = torch.split(losses.double(), size)
    return [(first + min((i + 1) * size, len(losses)), round(float(part.mean()), 6)) for i, part in enumerate(parts)]


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}
