"""Train one segment whose lock this process holds: resume, store checkpoints, and store results."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ticketry.core.scope import name_without_wrappers
from ticketry.core.ticket.folder import iterate_file_bytes
from ticketry.errors import InterruptedTrainingError, StoreError
from ticketry.lab.process import Stopped, defer_signals, describe_machine, raise_if_stopped, received_stop_signal
from ticketry.lab.store.checkpoints import (
    create_shard_folder,
    digest_shards,
    find_newest_shard_folder,
    finish_shard_folder,
)
from ticketry.lab.store.store import Store, tensors_to_bytes
from ticketry.lab.training.loop import Loop, round_metric
from ticketry.lab.training.ranks.group import Group
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import (
    TrainingState,
    add_prefix,
    initial_state,
    load_optimizer,
    pack_state,
    select_prefix,
    unpack_state,
)
from ticketry.tasks.task import Course

STANDSTILL = 30.0
"""Seconds; if a step takes longer, the process may have been suspended during the step."""
_WORKING = 0.02
"""Least CPU time of a training process as a share of wall time; a lower share means that the process was suspended."""
_CURVE_POINTS = 100
_TICK_SECONDS = 0.2
_FILE_BYTES = 64 << 20
"""Approximate bytes of tensors that all ranks together write into files with the same number."""


@dataclass
class Watch:
    """Connects a training to its runner: receives reports of progress, and says whether to stop."""

    checkpoint_seconds: float = 60.0

    def report_progress(self, segment: Segment, step: int) -> None:
        """Receive a report that training has reached `step`; called a few times a second."""

    def report_waiting(self, segment: Segment) -> None:
        """Receive a report that this process waits, because another process carries out the same training."""

    def report_stored(self, segment: Segment, step: int) -> None:
        """Receive a report that the state at `step` was stored because of a request to stop."""

    def is_stop_requested(self) -> bool:
        """Return whether the training should store its state and stop; by default after a signal to this process."""
        return bool(received_stop_signal())


@dataclass(frozen=True)
class Work:
    """Holds the amount of work that was done for a segment; zero if the store already had the results."""

    steps: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    processor_seconds: float = 0.0
    """CPU time of all threads, for training and everything else; with several processes, that of the first."""


class Job:
    """Trains one segment (a range of steps of a training) whose lock this process holds, alone or in a `group`."""

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
        self.missing = [stop for stop in stops if store.load_valid_result(self.trajectory, stop) is None]
        """Steps whose results are not stored yet, in increasing order."""
        self.steps_trained = 0
        self.train_seconds = 0.0
        """Seconds that training `steps_trained` steps took."""
        self._earlier_seconds = 0.0

    def train(self, watch: Watch) -> None:
        """Train from the latest state and store the missing results; `InterruptedTrainingError` if asked to stop."""
        if self.missing:
            loop = self.build_loop()
            after_step = Checkpoints(self, loop, watch)
            for stop in list(self.missing):
                with after_step.time_training():
                    loop.train_until(stop, after_step)
                try:
                    self.store_result(loop)
                except Stopped as stopped:
                    raise after_step.report_interruption() from stopped
                watch.report_progress(self.segment, stop)
        if record := self._load_unmeasured_result():
            self.add_metrics(record)
        self.drop_checkpoints()

    def to_work(self, seconds: float, processor_seconds: float) -> Work:
        return Work(self.steps_trained, self.train_seconds, seconds - self.train_seconds, processor_seconds)

    @property
    def sharded(self) -> bool:
        """Whether several processes train together, and each has only a part of each parameter."""
        return self.group is not None and self.group.in_parts

    def _load_unmeasured_result(self) -> dict[str, Any] | None:
        """Return the stored result if metrics are needed and the result lacks them; else None."""
        record = self.store.load_valid_result(self.trajectory, self.segment.last)
        found = record if self.measure and record and not record["metrics"] else None
        if self.group is not None:
            found = self.group.value_of_first_rank(found)
        return found

    def build_loop(self) -> Loop:
        """Return a training loop for this segment that continues from the latest stored state."""
        state = self.load_resumable_state()
        if self.group is None:
            return Loop(self.store, self.course, self.segment, state)
        found = self.group.value_of_first_rank(
            find_newest_shard_folder(self.store.paths, self.trajectory, self.missing[0])
        )
        newer = found is not None and found[0] > state.step
        if newer:  # the checkpoint's weights replace these
            state = TrainingState(found[0], state.model, {}, torch.zeros(0))
        self.group.require_same("a stored state", state.step)
        loop = Loop(self.store, self.course, self.segment, state, self.group)
        if newer:
            self._earlier_seconds = load_sharded_state(found[1], loop)
        return loop

    def load_resumable_state(self) -> TrainingState:
        """Return the latest stored state at or before the first missing result, or the segment's initial state."""
        bound = self.missing[0]
        partial = self.store.newest_checkpoint(self.trajectory, bound)
        record = find_last_resumable_result(self.store, self.trajectory, bound)
        if record and not (partial and partial[0] >= record["step"]):
            self._earlier_seconds = record["cost"]["train_seconds"]
            return self._load_stored_state(record)
        if partial:
            step, tensors = partial
            self._earlier_seconds = float(tensors.pop("seconds"))
            return unpack_state(step, select_prefix(tensors, "model/"), tensors)
        state = load_start_state(self.store, self.segment)
        around = self.segment.surroundings(self.store, self.course)
        state.variants = {one.name: one.first_state(around, state.model) for one in self.segment.variants}
        return state

    def _load_stored_state(self, record: Mapping[str, Any]) -> TrainingState:
        """Return the training state of a stored result; a result at the end of a schedule has only the weights."""
        training: dict[str, Tensor] = {"losses": torch.zeros(0)}
        if record["training"]:
            training = self.store.get_tensors(record["training"])
        for name, digest in record["variants"].items():
            training |= add_prefix(f"variants/{name}/", self.store.get_tensors(digest))
        return unpack_state(record["step"], self.store.get_tensors(record["model"]), training)

    def store_partial(self, state: TrainingState) -> None:
        """Store `state` as a checkpoint of the unfinished segment."""
        tensors = add_prefix("model/", state.model) | pack_state(state, state.variants)
        tensors["seconds"] = torch.tensor(self._earlier_seconds + self.train_seconds, dtype=torch.float64)
        if self.group is None or not self.group.in_parts:
            self.store.put_checkpoint(self.trajectory, state.step, tensors)
            return
        save_sharded_state(self.group, self.store, self.trajectory, state.step, tensors)

    def store_result(self, loop: Loop) -> None:
        """Store the loop's state as the first missing result; if a signal asks to stop, store a checkpoint instead."""
        state = loop.state()
        assert state.step == self.missing[0]
        try:
            raise_if_stopped()
            self._store_result(loop, state)  # with metrics, which may take long
        except Stopped:
            self.store_partial(state)
            raise
        del self.missing[0]

    def _store_result(self, loop: Loop, state: TrainingState) -> None:
        stop = state.step
        segment = self.segment.shortened_to(stop)
        record = {
            "segment": {**segment.describe(), "blobs": segment.start_digests()},
            "step": stop,
            **self.store_tensors(loop, state),
            **(loop.measured() if self.measure and stop == self.segment.last else {"metrics": None}),
            "loss": _compute_loss_curve(state.losses, segment.first),
            "cost": {
                "steps": stop - segment.first,
                "train_seconds": round(self._earlier_seconds + self.train_seconds, 3),
            },
            "environment": describe_machine(),
            **loop.facts(),
        }
        self.store.put_result(self.trajectory, stop, record)

    def store_tensors(self, loop: Loop, state: TrainingState) -> dict[str, Any]:
        """Store the tensors of a state, and return their digests as entries of the result's record."""
        lasting: dict[str, dict[str, Tensor]] = {}
        transient: dict[str, dict[str, Tensor]] = {}
        for name, own in state.variants.items():
            for entry, value in own.items():
                part = lasting if loop.effects[name].lasting(entry) else transient
                part.setdefault(name, {})[entry] = value
        return {
            "model": self._put_tensors(state.model),
            # At the end of the schedule the weights are enough: nothing resumes from there.
            "training": self._put_tensors(pack_state(state, transient)) if state.step < self.segment.total else None,
            "variants": {name: self._put_tensors(own) for name, own in lasting.items()},
        }

    def _put_tensors(self, tensors: Mapping[str, Tensor]) -> str:
        return self.put_gathered(tensors) if self.sharded else self.store.put_tensors(tensors)

    def put_gathered(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors of which each process has a part; gather one at a time. All processes call this together."""
        return self.store.put_pieces(iterate_file_bytes(tensors, tensors_to_bytes))

    def drop_checkpoints(self) -> None:
        self.store.drop_checkpoints(self.trajectory, self.segment.last)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Compute the metrics for a stored result, and store the result again with them."""
        self.store.put_result(self.trajectory, self.segment.last, {**record, **self.measure_again(record)})

    def measure_again(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the metrics of a stored result, and return them as entries of the result's record."""
        loop = Loop(self.store, self.course, self.segment, self._load_stored_state(record), self.group)
        loop.notify_pause()
        return dict(loop.measured())


class Checkpoints:
    """Reports progress, stores checkpoints at intervals, and stops on request; called after each training step."""

    def __init__(self, job: Job, loop: Loop, watch: Watch) -> None:
        self._job, self._loop, self._watch = job, loop, watch
        self._next_tick = self._next_checkpoint = 0.0
        self._stopwatch = Stopwatch()
        self._stop = self._due = False

    @contextlib.contextmanager
    def time_training(self) -> Iterator[None]:
        """Within a ``with`` block, measure time and count steps of the training; signals do not interrupt the block."""
        before = self._loop.step
        self._next_tick = now = time.monotonic()
        self._stopwatch.start(now)
        self._next_checkpoint = now + self._watch.checkpoint_seconds
        self._stop = self._due = False
        try:
            with defer_signals():
                yield
        finally:
            self._job.train_seconds += self._stopwatch.lap(time.monotonic())
            self._job.steps_trained += self._loop.step - before

    def report_interruption(self) -> InterruptedTrainingError:
        """Report to the `Watch` that the state is stored, and return the error with which the training then ends."""
        self._watch.report_stored(self._job.segment, self._loop.step)
        return InterruptedTrainingError(
            f"stopped at step {self._loop.step}; its state is stored", received_stop_signal() or signal.SIGINT
        )

    def __call__(self) -> None:
        now = time.monotonic()
        job, group = self._job, self._job.group
        # At the end of the next step, the checkpoint would be late.
        late = now + (now - self._stopwatch.then) >= self._next_checkpoint
        job.train_seconds += self._stopwatch.lap(now)
        if late or now >= self._next_tick:
            self._next_tick = now + min(_TICK_SECONDS, self._watch.checkpoint_seconds)
            self._watch.report_progress(job.segment, self._loop.step)
            self._stop = self._watch.is_stop_requested()
            self._due = self._stop or late
        elif group is None:
            return
        if not (self._due if group is None else group.agree_to_store(self._due)):
            return
        job.store_partial(self._loop.state())
        stored = time.monotonic()
        self._stopwatch.start(stored)
        # So that a killed process loses at most `interval` seconds, if storing takes at most 1.5 times as long the next
        # time. If storing takes most of the interval, train for as long as storing took, but at most half the interval.
        interval, storing = self._watch.checkpoint_seconds, stored - now
        self._next_checkpoint = max(now + interval - 1.5 * storing, stored + min(storing, interval / 2))
        self._due = False
        if self._stop:
            raise self.report_interruption()


class Stopwatch:
    """Measures the wall time of training steps; if the process was suspended, its CPU time is used instead."""

    def __init__(self) -> None:
        self.then = self._worked = 0.0

    def start(self, now: float) -> None:
        """Start the measurement; `now` is the value of ``time.monotonic()``."""
        self.then, self._worked = now, time.process_time()

    def lap(self, now: float) -> float:
        """Return the seconds since the last call of `lap` or `start`; `now` is the value of ``time.monotonic()``."""
        passed, worked = now - self.then, time.process_time() - self._worked
        self.start(now)
        return worked if passed > STANDSTILL and worked < _WORKING * passed else passed


def find_last_resumable_result(store: Store, trajectory: str, bound: int) -> dict[str, Any] | None:
    """Return the latest stored result up to step `bound` from which training can resume, or None."""
    for step in reversed(store.stored_steps(trajectory)):
        record = store.load_valid_result(trajectory, step)
        if step > bound or not (record and record["training"]):
            continue
        if not any(map(store.is_left_out, (record["model"], record["training"]))):
            return record
    return None


def load_start_state(store: Store, segment: Segment) -> TrainingState:
    """Return the training state (weights, optimiser) at a segment's first step, without states of variants."""
    start = segment.start
    if start.state is not None:
        model = store.get_tensors(start.state)
    else:
        assert start.seed is not None
        model = initial_state(segment.task, start.seed)
    state = TrainingState(segment.first, model, {}, torch.zeros(0))
    if start.optimizer is not None:
        before = unpack_state(0, {}, store.get_tensors(start.optimizer))
        state.optimizer, state.session = before.optimizer, before.session
    return state


def _compute_loss_curve(losses: Tensor, first: int) -> list[tuple[int, float]]:
    """Return at most 100 points of the loss curve: a step, and the mean loss since the previous point."""
    if not len(losses):
        return []
    size = -(-len(losses) // _CURVE_POINTS)
    means = torch.split(losses.double(), size)
    return [
        (first + min((i + 1) * size, len(losses)), round_metric(float(part.mean()))) for i, part in enumerate(means)
    ]


# -- sharded checkpoints -----------------------------------------------------------------------------------------------
#
# They are written by `torch.distributed.checkpoint` as safetensors files, at least one for each rank.


def save_sharded_state(group: Group, store: Store, trajectory: str, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Store a checkpoint; all ranks call this together, and all raise `StoreError` if one of them fails."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    folder = Path(
        group.value_of_first_rank(str(create_shard_folder(store.paths, trajectory, step)) if group.rank == 0 else None)
    )
    flat = {name: value.reshape(1) if value.dim() == 0 else value for name, value in tensors.items()}
    # A file is held in memory while it is written, so the state is split into several files.
    files = dict(zip(flat, itertools.accumulate(value.nbytes for value in flat.values()), strict=True))
    numbered = {name: 1 + so_far // _FILE_BYTES for name, so_far in files.items()}
    numbers = {number: place for place, number in enumerate(sorted(set(numbered.values())), 1)}
    by = HuggingFaceStorageWriter(
        path=str(folder),
        fqn_to_index_mapping={name: numbers[number] for name, number in numbered.items()},
        save_distributed=True,
    )
    _save_or_load_shards(folder, "save", flat, by)
    found: dict[str, str] = {}
    for each in group.gather(digest_shards(folder, group.rank, group.world)):
        found |= each
    if group.rank == 0:
        finish_shard_folder(folder, store.paths, trajectory, step, found)
        store.upload_checkpoint(trajectory, step, store.paths.partial_folder(trajectory, step))


def load_sharded_state(folder: Path, loop: Loop) -> float:
    """Load this rank's part of a checkpoint into a loop; return the seconds of training up to the checkpoint."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    model = {f"model/{name_without_wrappers(name)}": value for name, value in loop.model.state_dict().items()}
    parameters = {f"optimizer/{name}": parameter for name, parameter in loop.model.named_parameters()}
    target: dict[str, Tensor] = {}
    for name, about in HuggingFaceStorageReader(path=str(folder)).read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        dtype = about.properties.dtype
        like = model.get(name, parameters.get(name.rpartition("/")[0]))
        if like is not None and like.shape == about.size:
            target[name] = torch.empty_like(like, dtype=dtype, requires_grad=False)
        else:
            target[name] = torch.empty(about.size, dtype=dtype)
    _save_or_load_shards(folder, "load", target, HuggingFaceStorageReader(path=str(folder)))
    with torch.no_grad():
        for name, value in model.items():
            value.copy_(target[name].reshape(value.shape) if value.dim() == 0 else target[name])
    state = {name.partition("/")[2]: value for name, value in target.items() if name.startswith("optimizer/")}
    # A step count has no dimension, but `save_sharded_state` has added one.
    state = {name: value.reshape(()) if name.endswith("/step") else value for name, value in state.items()}
    load_optimizer(loop.optimizer, loop.model, state)
    loop.resume(select_prefix(target, "session/"), target["losses"])
    return float(target["seconds"])


def _save_or_load_shards(folder: Path, what: str, tensors: dict[str, Tensor], by: Any) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        if what == "save":
            save(tensors, storage_writer=by)
        else:
            load(tensors, storage_reader=by)
    except CheckpointException as error:  # a BaseException, which no other handler catches
        rank, (why, _) = next(iter(error.failures.items()))
        raise StoreError(
            f"rank {rank} cannot {what} its part of a state in {folder}: {why}. The same command goes on from the state"
            " before"
        ) from error
