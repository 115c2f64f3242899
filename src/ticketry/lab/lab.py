"""The lab: give it segments, get results; whatever it has done before, it remembers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ticketry.choices import check_each
from ticketry.core.mask import Mask
from ticketry.errors import InterruptedTrainingError, UsageError
from ticketry.lab.answers import Answers
from ticketry.lab.costs.ledger import Ledger
from ticketry.lab.loggers.dashboards import Dashboards
from ticketry.lab.loggers.logger import Logger
from ticketry.lab.runners.chosen import chosen
from ticketry.lab.runners.runner import Event, Nothing, OnEvent, Order, Runner, raise_cause
from ticketry.lab.runners.stopping import asked, heeded
from ticketry.lab.store.opening import open_store
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.execute import is_done
from ticketry.lab.training.job import Work
from ticketry.lab.training.kernels import Kernels
from ticketry.lab.training.precision import DDP, SYNCHRONISED
from ticketry.lab.training.ranks.machine import check_machine
from ticketry.lab.training.remake import Remaker
from ticketry.lab.training.segment import Result as Result
from ticketry.lab.training.segment import Segment, Start, finite
from ticketry.lab.training.variant import Variant
from ticketry.lab.training.variants.held_mask import HeldMask
from ticketry.lab.training.variants.shrunk import Shrunk
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

T = TypeVar("T")


class Lab(Answers):
    """Trains segments and remembers them. Use it as a context manager, or call `close`.

    Args:
        store: folder of the durable store; made if absent.
        data: folder in which data sets are looked for first.
        workers: 0 trains in this process; n trains in n local processes, one segment each.
        device: cpu, cuda or auto.
        precision: fp32, bf16 or auto (a fixed rule, see `lab.training.precision`).
        threads: CPU threads of a segment, or of each of its ranks; part of its key.
        devices: ranks that train each segment together, each with so many threads or a GPU of its own, see
            `lab.training.ranks`; part of its key.
        parallel: of several devices: ``ddp`` (each has the whole network) or ``fsdp`` (a part); part of the key.
        norms: of several devices: ``synchronised`` (batch norms see the whole batch) or ``own``; part of the key.
        kernels: dense, sparse or auto: whether networks train in kernels that compute only what a mask keeps, see
            `lab.training.kernels`; part of their key.
        checkpoint_seconds: time between checkpoints inside a segment.
        on_event: called with every `Event`, from any thread.
        runner: where segments are trained, as ``--on`` says it: a name of `lab.runners`, with details behind a colon
            (``ray:auto,cpus=1``), another package's, or module:object; or a `concurrent.futures.Executor`, whose
            workers see the store by the same name. By default in-process, or processes where there are workers.
        executor: another word for an executor as the runner.
        loggers: what is trained is told to these too: names of `lab.loggers`, another package's, module:object, or
            loggers. What one raises is told once, and stops no training.

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> with tk.Lab() as lab:
        ...     dense = lab.train(lab.segment(task, start=0, recipe=recipe), keep=[10])
        >>> dense.metrics["test"]["accuracy"] > 50, lab.at(dense, 10).segment.last
        (True, 10)
        >>> lab, told = tk.Lab(), []
        >>> with lab.listening(told.append), lab.telling("seed "), lab.training_in("dense"):
        ...     results = lab.train_many([lab.segment(task, start=0, recipe=recipe)], labels=["0"])
        >>> {event.label for event in told}, lab.gather([lambda: 1, lambda: 2])
        ({'seed 0'}, [1, 2])
        >>> lab.stop(); lab.close()
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
        devices: int = 1,
        parallel: str = DDP,
        norms: str = SYNCHRONISED,
        kernels: str = "dense",
        checkpoint_seconds: float = 60.0,
        on_event: OnEvent | None = None,
        runner: str | concurrent.futures.Executor = "",
        executor: concurrent.futures.Executor | None = None,
        loggers: Sequence[str | Logger] = (),
    ) -> None:
        check_each(workers=workers, threads=threads, devices=devices, checkpoint_seconds=checkpoint_seconds)
        if executor is not None and runner:
            raise UsageError("give either a runner or an executor")
        self._chosen = chosen(executor or runner, workers)
        folder = Path(data).resolve() if data is not None else None
        several = {"ranks": devices, "norms": norms, "parallel": parallel}
        if devices > 1 and not self._chosen.elsewhere:
            check_machine(devices, threads, max(self._chosen.workers, 1), device)
        one = {"device": device, "precision": precision, "threads": threads}
        super().__init__(open_store(store), data=folder, choices={**one, **several})
        self.kernels = Kernels(kernels, self.store, self.course)
        self.ledger = Ledger()
        self.dashboards = Dashboards(loggers, self.store.paths.root)
        self.workers = self._chosen.workers
        """Trainings side by side; where workers are elsewhere, how many may be asked for at once."""
        self.on, self.asked = self._chosen.name, runner if isinstance(runner, str) else ""
        """The runner's name; and all that was said of it, where something was."""
        self._order = Order(self.store.address, self.data, checkpoint_seconds)
        self._listeners = [on_event] if on_event else []
        self._labels: dict[str, str] = {}
        self._told = threading.local()
        self._runner: Runner | None = None
        self._guard = threading.RLock()
        self._in_flight: dict[tuple[str, tuple[int, ...], bool], concurrent.futures.Future[Work]] = {}
        self._tasks: dict[str, Task] = {}
        self._remaker = Remaker(self.store, folder, self._tasks)
        self.store.remake = self._made_again if self.workers else self._remaker

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
        shrunk: bool = False,
        variants: Sequence[Variant] = (),
    ) -> Segment:
        """A segment of the task; by default the whole schedule, dense, from an initialisation seed (an int start).

        Args:
            task, recipe: what to train, and how; by default the task's own recipe.
            start: an initialisation seed, or a stored state.
            mask: held all the while, or its digest.
            first, last: steps to begin and end at; by default the whole schedule.
            order_seed: of the order of the data, with augmentation and dropout.
            shrunk: whether the network is trained without the channels that the mask removes, instead: it is equal to
                holding the mask within float error. Stored states have their full shapes all the same.
            variants: what else acts on the network, see `lab.training.variant`.

        Raises:
            UsageError: for variants that cannot be trained together.
        """
        if shrunk and mask is None:
            raise UsageError("a network is trained shrunk by a mask of whole channels, and this segment has no mask")
        if mask is not None:
            digest = self.store.put_mask(mask) if isinstance(mask, Mask) else mask
            variants = (*variants, Shrunk(mask=digest) if shrunk else HeldMask(mask=digest))
        recipe = recipe or task.recipe
        arithmetic = self.arithmetic(task)
        if arithmetic.ranks > 1:
            self.check_cut(task, recipe, arithmetic.ranks)
        self._tasks.setdefault(digest_of(dict(task.key())), task)
        per_epoch = self.per_epoch(task, recipe)
        total = recipe.steps(per_epoch)
        return Segment(
            task=task,
            recipe=recipe,
            start=Start(seed=start) if isinstance(start, int) else start,
            variants=tuple(variants),
            first=first,
            last=total if last is None else last,
            total=total,
            per_epoch=per_epoch,
            order_seed=order_seed,
            arithmetic=self.kernels.arithmetic(task, arithmetic, variants, recipe.batch),
        )

    def train(
        self, segment: Segment, *, keep: Sequence[int] = (), label: str = "", measure: bool = True, ahead: int = 0
    ) -> Result:
        """The result of a segment: from the store if it is there, else trained now, once, whoever asks.

        Args:
            segment: what to train, see `segment`.
            keep: further steps on the way whose states are kept, see `at`.
            label: what to call it in progress events.
            measure: whether its metrics are needed; a state on the way may do without.
            ahead: steps that will wait for this segment: where there are fewer workers than segments, most go first.

        Raises:
            TrainingError: if the loss is no longer a number.
            HoldError: if a pruned weight did not stay at 0.
        """
        return self.train_many([segment], keep=keep, labels=[label], measure=measure, ahead=ahead)[0]

    def train_many(
        self,
        segments: Sequence[Segment],
        *,
        keep: Sequence[int] = (),
        labels: Sequence[str] = (),
        measure: bool = True,
        ahead: int = 0,
    ) -> list[Result]:
        """The results of `segments`, in order, trained side by side where the lab has workers; errors as of `train`.

        As there ``keep``, ``measure`` and ``ahead``, for all of them; `labels` has one for each.
        """
        names = labels or [""] * len(segments)
        with heeded():
            try:
                waiting: dict[concurrent.futures.Future[Work], list[Segment]] = {}
                for segment, name in zip(segments, names, strict=True):
                    if future := self._submit(segment, tuple(keep), name, measure, ahead):
                        waiting.setdefault(future, []).append(segment)
                for future in concurrent.futures.as_completed(waiting):
                    for segment in waiting[future]:
                        self._account(segment, (segment.key, tuple(keep), measure), future.result())
            except BaseException as error:
                if len(segments) > 1 or not isinstance(error, Exception):
                    self.stop()
                raise
        results = [self._result(segment) for segment in segments]
        if self.dashboards.group and measure:
            for result, name in zip(results, names, strict=True):
                label = f"{getattr(self._told, 'prefix', '')}{name}"
                self.dashboards.training(result, name=label or result.segment.key[:8], kind=name or "training")
        return results

    def at(self, result: Result, step: int) -> Result:
        """The result of the trajectory of `result` at another `step`, one that was kept (else `UsageError`)."""
        return self._result(result.segment.until(step))

    def gather(self, functions: Iterable[Callable[[], T]]) -> list[T]:
        """Call independent `functions`, side by side where the lab has workers; their results in order."""
        pieces = list(functions)
        prefix = getattr(self._told, "prefix", "")
        if self.workers == 0 or len(pieces) < 2:
            return [piece() for piece in pieces]

        def labelled(piece: Callable[[], T]) -> T:
            with self.telling(prefix):
                return piece()

        with heeded():
            futures = self._side_by_side([functools.partial(labelled, piece) for piece in pieces])
        raise_cause(futures)
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
    def listening(self, on_event: OnEvent) -> Iterator[None]:
        """Let one more listener hear of the progress of segments in a block, from whatever thread tells it."""
        self._listeners.append(on_event)
        try:
            yield
        finally:
            self._listeners.remove(on_event)

    @contextlib.contextmanager
    def telling(self, prefix: str) -> Iterator[None]:
        """Begin the labels of whatever this thread trains in a block with `prefix`."""
        before = getattr(self._told, "prefix", "")
        self._told.prefix = prefix
        try:
            yield
        finally:
            self._told.prefix = before

    @contextlib.contextmanager
    def training_in(self, kernels: str, precision: str = "") -> Iterator[None]:
        """Let what is described in a block train in other kernels (auto, dense, sparse) and, if said, precision."""
        before = self.kernels, self._choices
        self.kernels = Kernels(kernels, self.store, self.course)
        self._choices = {**self._choices, "precision": precision or self._choices["precision"]}
        try:
            yield
        finally:
            self.kernels, self._choices = before

    @contextlib.contextmanager
    def training_nothing(self) -> Iterator[Nothing]:
        """In a block, what is not in the store, or a bundle left out, is a `NotStoredError`; nothing is counted."""
        with self._guard:
            before, nothing = (self._runner, self.ledger, self.store.remake), Nothing()
            self._runner, self.ledger, self.store.remake = nothing, self.ledger.copy(), nothing.remake
        try:
            yield nothing
        finally:
            self._runner, self.ledger, self.store.remake = before

    def stop(self) -> None:
        """Ask all training to store its state and stop."""
        if self._runner:
            self._runner.stop()

    def close(self) -> None:
        """Release worker processes, and wait until loggers have been told all."""
        if self._runner:
            self._runner.close()
            self._runner = None
        self.dashboards.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _submit(
        self, segment: Segment, keep: tuple[int, ...], label: str, measure: bool, ahead: int = 0
    ) -> concurrent.futures.Future[Work] | None:
        """A future of the work, or None if its results are there already."""
        if number := asked():
            raise InterruptedTrainingError("stopped before it began", number)
        key = segment.key
        for step in keep:
            if not segment.first <= step <= segment.last:
                raise UsageError(f"keep= names step {step} of a segment that is from {segment.first} to {segment.last}")
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
                order = replace(self._order, measure=measure, ahead=ahead)
                future = self._in_flight[key, keep, measure] = runner.submit(order, segment, keep)
            return future

    def _made_again(self, digest: str, trajectory: str, step: int) -> None:
        """Let a worker train weights that a bundle left out, as all else is trained."""
        segment = self._remaker.segment(digest, trajectory, step)
        order = replace(self._order, measure=False, weights=True)
        with heeded(), self._guard:
            self._labels[segment.key] = f"{getattr(self._told, 'prefix', '')}weights that a bundle left out"
            future = self._running().submit(order, segment, ())
        concurrent.futures.wait([future])
        self._emit(Event("aside", segment.key, segment.first, segment.last, segment.last))
        future.result()

    def _running(self) -> Runner:
        with self._guard:
            if self._runner is None:
                self._runner = self._chosen.make(self._emit)
            return self._runner

    def _account(self, segment: Segment, asked: tuple[str, tuple[int, ...], bool], work: Work) -> None:
        with self._guard:
            if self._in_flight.pop(asked, None) is not None:  # others who waited for it count nothing
                self.ledger.segments_trained += work.steps > 0
                self.ledger.steps_trained += work.steps
                self.ledger.train_seconds += work.train_seconds
                self.ledger.other_seconds += work.other_seconds
                self.ledger.processor_seconds += work.processor_seconds
        self._emit(Event("finished", segment.key, segment.first, segment.last, segment.last))

    def _result(self, segment: Segment) -> Result:
        record = self.store.trained(segment.trajectory, segment.last)
        if record is None:
            raise UsageError(f"step {segment.last} of this trajectory is not stored: name it in keep=")
        return Result(
            segment=segment,
            model=record["model"],
            training=record["training"],
            metrics=finite(record["metrics"] or {}),
            train_seconds=record["cost"]["train_seconds"],
            variants=record["variants"],
            record=record,
        )

    def _emit(self, event: Event) -> None:
        if self._listeners:
            told = Event(**{**vars(event), "label": self._labels.get(event.key, "")})
            for listener in tuple(self._listeners):
                listener(told)
