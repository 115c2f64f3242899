"""The lab: give it segments, get results; whatever it has done before, it remembers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn

from ticketry.core.detect import relative_distance
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import Scope
from ticketry.core.structure.channels import choose_channels
from ticketry.core.structure.group import Structure
from ticketry.core.structure.trial import tried_structure
from ticketry.errors import InterruptedTrainingError, TaskError, UsageError
from ticketry.lab.execute import Work, is_done
from ticketry.lab.gating import Gating
from ticketry.lab.ledger import Ledger
from ticketry.lab.loop import initial_state, rebuilt
from ticketry.lab.making import Making, Makings, Seen
from ticketry.lab.order import steps_per_epoch
from ticketry.lab.partners import Partners
from ticketry.lab.penalty import Penalty
from ticketry.lab.precision import Arithmetic, choose_arithmetic
from ticketry.lab.runner import Event, InProcess, OnEvent, Order, Processes, Runner
from ticketry.lab.sample import Sample, loss_of
from ticketry.lab.segment import NUMERICS, Segment, Start, digest_of
from ticketry.lab.shrunk import example_inputs
from ticketry.lab.store import Store
from ticketry.lab.ticking import Ticking
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a segment gave: a stored state and its metrics."""

    segment: Segment
    model: str
    """Digest of the weights and buffers."""
    training: str | None
    """Digest of the optimiser's state, where it is kept."""
    metrics: dict[str, dict[str, float]]
    """validation and test -> metric -> value; searches look at validation only."""
    train_seconds: float
    gates: str | None
    """Digest of the gates, where the segment has them."""
    record: dict[str, Any] = field(repr=False, compare=False)


class Lab:
    """Trains segments and remembers them. Use it as a context manager, or call `close`.

    Args:
        store: folder of the durable store; made if absent.
        data: folder in which data sets are looked for first.
        workers: 0 trains in this process; n trains in n local processes, one segment each.
        device: cpu, cuda or auto.
        precision: fp32, bf16 or auto (a fixed rule, see `lab.precision`).
        threads: CPU threads of a segment; part of its key.
        stack: train up to so many segments that agree in all but start, mask and order seed as one, see
            `lab.stacked`; part of their keys, as yes or no. 0 trains each alone.
        checkpoint_seconds: time between checkpoints inside a segment.
        on_event: called with every `Event`, from any thread.
    """

    def __init__(
        self,
        store: str | Path = ".ticketry",
        *,
        data: str | Path | None = None,
        workers: int = 0,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 1,
        stack: int = 0,
        checkpoint_seconds: float = 60.0,
        on_event: OnEvent | None = None,
    ) -> None:
        if workers < 0 or stack < 0 or threads < 1 or checkpoint_seconds <= 0:
            raise UsageError("workers and stack must be at least 0, threads at least 1 and checkpoint_seconds above 0")
        self.store = Store(store)
        self.data = Path(data).resolve() if data is not None else None
        self.ledger = Ledger()
        self.makings = Makings()
        self._choices: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        self.workers, self.stack = workers, stack
        self._order = Order(Path(store).resolve(), self.data, checkpoint_seconds)
        self._listener = on_event
        self._labels: dict[str, str] = {}
        self._told = threading.local()
        self._runner: Runner | None = None
        self._partners: Partners | None = None
        self._guard = threading.RLock()
        self._in_flight: dict[tuple[str, tuple[int, ...], bool], concurrent.futures.Future[Work]] = {}
        self._arithmetic: dict[str, Arithmetic] = {}
        self._structures: dict[str, Structure] = {}
        self._following = threading.Lock()

    # -- describing work ---------------------------------------------------------------------------------------------

    def per_epoch(self, task: Task, recipe: Recipe | None = None) -> int:
        """Iterations of an epoch of the task."""
        return steps_per_epoch(self.sizes(task)["train"], (recipe or task.recipe).batch)

    def sizes(self, task: Task) -> dict[str, int]:
        """Examples of each split; remembered, so that a finished run does not load data to be told again."""
        key = digest_of(task.key())
        known = self.store.memo("sizes", key)
        if known is None:
            splits = task.load(self.data)
            known = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
            for name, count in known.items():
                if not count:
                    raise TaskError(f"the task {task.name!r} has no examples in its {name} split")
            self.store.put_memo("sizes", key, known)
        return {name: int(known[name]) for name in ("train", "validation", "test")}

    def segment(
        self,
        task: Task,
        *,
        start: Start | int,
        mask: Mask | str | None = None,
        first: int = 0,
        last: int | None = None,
        order_seed: int = 0,
        recipe: Recipe | None = None,
        gates: Gating | None = None,
        shrunk: bool = False,
        penalty: Penalty | None = None,
        tick: Ticking | None = None,
    ) -> Segment:
        """A segment of the task; by default the whole schedule, dense, from an initialisation seed (an int start).

        Shrunk ones, and those with a penalty or a tick, are trained alone, also in a lab that stacks.
        """
        recipe = recipe or task.recipe
        per_epoch = self.per_epoch(task, recipe)
        total = recipe.steps(per_epoch)
        return Segment(
            task=task,
            recipe=recipe,
            start=Start(seed=start) if isinstance(start, int) else start,
            mask=self.store.put_mask(mask) if isinstance(mask, Mask) else mask,
            first=first,
            last=total if last is None else last,
            total=total,
            per_epoch=per_epoch,
            order_seed=order_seed,
            arithmetic=self.arithmetic(task, alone=shrunk or penalty is not None or tick is not None),
            gates=gates,
            shrunk=shrunk,
            penalty=penalty,
            tick=tick,
        )

    def arithmetic(self, task: Task, *, alone: bool = False) -> Arithmetic:
        """Device, precision and layout in which the task's network is trained here; `alone`: in no stack."""
        choices = {**self._choices, "stacked": self.stack > 0 and not alone}
        key = digest_of([task.key(), choices])
        if key not in self._arithmetic:
            self._arithmetic[key] = choose_arithmetic(self.model(task), **choices)
        return self._arithmetic[key]

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, segment: Segment, *, keep: Sequence[int] = (), label: str = "", measure: bool = True) -> Result:
        """The result of a segment: from the store if it is there, else trained now, once, whoever asks.

        Args:
            segment: what to train, see `segment`.
            keep: further steps on the way whose states are kept, see `at`.
            label: what to call it in progress events.
            measure: whether its metrics are needed; a state on the way may do without.

        Raises:
            TrainingError: if the loss is no longer a number.
            HoldError: if a pruned weight did not stay at 0.
        """
        return self.train_many([segment], keep=keep, labels=[label], measure=measure)[0]

    def train_many(
        self,
        segments: Sequence[Segment],
        *,
        keep: Sequence[int] = (),
        labels: Sequence[str] = (),
        measure: bool = True,
    ) -> list[Result]:
        """The results of several segments, trained side by side where the lab has workers."""
        names = labels or [""] * len(segments)
        futures = [self._submit(seg, tuple(keep), name, measure) for seg, name in zip(segments, names, strict=True)]
        try:
            for segment, future in zip(segments, futures, strict=True):
                if future is not None:
                    if self._partners:
                        self._partners.wait_for(future)
                    self._account(segment, (segment.key, tuple(keep), measure), future.result())
        except BaseException as error:
            if len(segments) > 1 or not isinstance(error, Exception):
                self.stop()
            raise
        return [self._result(segment) for segment in segments]

    def at(self, result: Result, step: int) -> Result:
        """The result of the same trajectory at a step that was kept."""
        return self._result(result.segment.until(step))

    def gather(self, functions: Iterable[Callable[[], T]]) -> list[T]:
        """Run independent pieces of a search, side by side where the lab has workers; their results in order."""
        pieces = list(functions)
        prefix = getattr(self._told, "prefix", "")

        if self.workers == 0 or len(pieces) < 2:
            return [piece() for piece in pieces]
        with self._gathering(len(pieces)) as counted:

            def labelled(piece: Callable[[], T]) -> T:
                with counted(), self.telling(prefix):
                    return piece()

            futures = self._side_by_side([functools.partial(labelled, piece) for piece in pieces])
        self._raise_cause(futures)
        return [future.result() for future in futures]

    def _side_by_side(self, pieces: Sequence[Callable[[], T]]) -> list[concurrent.futures.Future[T]]:
        """Run each piece in a thread; the futures are done. The first that fails stops the training of all."""
        with concurrent.futures.ThreadPoolExecutor(len(pieces), thread_name_prefix="search") as pool:
            futures = [pool.submit(piece) for piece in pieces]
            try:
                concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
            finally:
                if not all(future.done() and future.exception() is None for future in futures):
                    self.stop()
        return futures

    @contextlib.contextmanager
    def telling(self, prefix: str) -> Iterator[None]:
        """Begin the labels of whatever this thread trains in a block with `prefix`."""
        before = getattr(self._told, "prefix", "")
        self._told.prefix = prefix
        try:
            yield
        finally:
            self._told.prefix = before

    # -- states and masks --------------------------------------------------------------------------------------------

    def state(self, result: Result) -> dict[str, Tensor]:
        """Weights and buffers of a result, by normalised name."""
        return self.store.get_tensors(result.model)

    def model(self, task: Task, result: Result | None = None) -> nn.Module:
        """The task's model with a result's weights, or freshly initialised (seed 0)."""
        return rebuilt(task, self.state(result) if result else initial_state(task, 0))

    def prune(
        self,
        task: Task,
        result: Result,
        scope: Scope,
        *,
        within: str | None = None,
        sample: Sample | None = None,
        structured: bool = False,
        **settings: Any,
    ) -> str:
        """The stored mask made by `core.prune` on a result's weights; its digest. Remembered by its settings.

        Args:
            sample: the batches that the score sees, if it needs any.
            structured: whether whole channels are chosen, by `structure.channels`, whose settings hold then.
        """

        def made() -> Mask:
            base = self.store.get_mask(within) if within else None
            model, seen = self.model(task, result), dict[str, Any]()
            if sample is not None:
                device = self.arithmetic(task).device
                model = model.to(device)
                seen = {"batches": sample.drawn(task, self.data, device), "loss": loss_of(task)}
            chosen = {"scope": scope, "within": base, **seen, **settings}
            if structured:
                return choose_channels(model, lambda: self.structure(task), **chosen)
            return prune(model, **chosen)

        described = {"state": result.model, "within": within, "scope": list(scope), **settings}
        if structured:
            described |= {"structured": True, "task": dict(task.key())}
        if sample is None:
            return self.remembered_mask(described, made)
        described |= {"sample": asdict(sample), "task": dict(task.key())}
        seen = Seen.of(sample, self.sizes(task)["train"], settings)
        return self.remembered_mask(described, made, seen=seen, ready=lambda: task.load(self.data))

    def structure(self, task: Task) -> Structure:
        """The coupled channels of the task's network; found once by each lab, as it takes seconds."""
        key = digest_of(task.key())
        with self._following:
            if key not in self._structures:
                inputs = example_inputs(task, task.load(self.data).train)
                self._structures[key] = tried_structure(self.model(task), inputs)
        return self._structures[key]

    def distance(self, result: Result, reference: Result, names: Iterable[str]) -> float:
        """||w - w0|| / ||w0|| of two results over the named weights; remembered."""
        chosen = list(names)
        key = digest_of({"numerics": NUMERICS, "of": result.model, "from": reference.model, "names": chosen})
        known = self.store.memo("distances", key)
        if known is None:
            known = {"distance": relative_distance(self.state(result), self.state(reference), chosen)}
            self.store.put_memo("distances", key, known)
        return float(known["distance"])

    def remembered_mask(
        self,
        described: Mapping[str, Any],
        make: Callable[[], Mask],
        *,
        seen: Seen | None = None,
        ready: Callable[[], object] | None = None,
    ) -> str:
        """The digest of the stored mask that is a pure function, `make`, of what is `described`.

        What is not a JSON value (a score that is a function) cannot be recognised again: then it is made anew.

        Args:
            seen: examples that are looked at for it, for `makings`.
            ready: called before it is made; its time does not count.
        """
        key = "" if any(map(callable, described.values())) else digest_of({"numerics": NUMERICS, **described})
        known = self.store.memo("masks", key) if key else None
        if known is None:
            if ready:
                ready()
            began = time.perf_counter()
            mask = make()
            seconds = round(time.perf_counter() - began, 3)
            known = {"mask": self.store.put_mask(mask), "seconds": seconds}
            if key:
                self.store.put_memo("masks", key, known)
        self.makings.add(str(known["mask"]), Making(float(known.get("seconds", 0.0)), seen))
        return str(known["mask"])

    # -- ending ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask all training to store its state and stop."""
        if running := self._partners or self._runner:
            running.stop()

    def close(self) -> None:
        """Release worker processes."""
        if self._runner:
            self._runner.close()
            self._runner = self._partners = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.stop()
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _submit(
        self, segment: Segment, keep: tuple[int, ...], label: str, measure: bool
    ) -> concurrent.futures.Future[Work] | None:
        """A future of the work, or None if its results are there already."""
        key = segment.key
        for step in keep:
            if not segment.first <= step <= segment.last:
                raise UsageError(
                    f"keep= names step {step}, but the segment goes from {segment.first} to {segment.last}"
                )
        with self._guard:
            self.ledger.segments_asked += 1
            self.ledger.keys.append(key)
            self.ledger.steps_asked += segment.steps
            self._labels[key] = f"{getattr(self._told, 'prefix', '')}{label}"
            if is_done(self.store, segment, keep, measure=measure):
                self._emit(Event("cached", key, segment.first, segment.last, segment.last))
                return None
            future = self._in_flight.get((key, keep, measure))
            if future is None or future.done():
                self._emit(Event("started", key, segment.first, segment.first, segment.last))
                runner = self._running()
                asked = self._partners if self._partners and segment.arithmetic.stacked else runner
                order = replace(self._order, measure=measure)
                future = self._in_flight[key, keep, measure] = asked.submit(order, segment, keep)
            return future

    def _running(self) -> Runner:
        with self._guard:
            if self._runner is None:
                self._runner = Processes(self.workers, self._emit) if self.workers else InProcess(self._emit)
                if self.stack:
                    self._partners = Partners(self._runner, self.stack, self.workers)
            return self._runner

    def _gathering(self, pieces: int) -> contextlib.AbstractContextManager[Callable[[], Any]]:
        self._running()
        return self._partners.gathering(pieces) if self._partners else contextlib.nullcontext(contextlib.nullcontext)

    def _account(self, segment: Segment, asked: tuple[str, tuple[int, ...], bool], work: Work) -> None:
        with self._guard:
            if self._in_flight.pop(asked, None) is not None:  # others who waited for it count nothing
                self.ledger.segments_trained += work.steps > 0
                self.ledger.steps_trained += work.steps
                self.ledger.train_seconds += work.train_seconds
                self.ledger.other_seconds += work.other_seconds
        self._emit(Event("finished", segment.key, segment.first, segment.last, segment.last))

    def _result(self, segment: Segment) -> Result:
        record = self.store.result(segment.trajectory, segment.last)
        if record is None:
            raise UsageError(f"step {segment.last} of this trajectory is not stored: name it in keep=")
        return Result(
            segment=segment,
            model=record["model"],
            training=record["training"],
            metrics=record["metrics"] or {},
            train_seconds=record["cost"]["train_seconds"],
            gates=record.get("gates"),
            record=record,
        )

    def _emit(self, event: Event) -> None:
        if self._listener:
            self._listener(Event(**{**vars(event), "label": self._labels.get(event.key, "")}))

    def _raise_cause(self, futures: Iterable[concurrent.futures.Future[Any]]) -> None:
        """Raise what went wrong first; that others were then stopped is a consequence."""
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, InterruptedTrainingError)):
            raise error


def default_workers() -> int:
    """One process for each core this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
