"""Train segments (ranges of steps of a training) and store every result, so that nothing is computed twice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ticketry.choices import check_options
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import Scope
from ticketry.core.score import source_of
from ticketry.core.sparse_training.mask_dynamics import relative_distance
from ticketry.core.structure.channel_masks import channels
from ticketry.core.structure.coupling import Structure
from ticketry.errors import InterruptedTrainingError, TaskError, UsageError
from ticketry.lab.costs.ledger import Ledger, MaskCost, Sample, SeenExamples
from ticketry.lab.loggers import Dashboards, Logger
from ticketry.lab.process import handle_signals, received_stop_signal
from ticketry.lab.runners.choice import choose_runner
from ticketry.lab.runners.runner import Event, NoTraining, OnEvent, Order, Runner, raise_first_error
from ticketry.lab.store.store import NUMERICS, digest_of, open_store
from ticketry.lab.training.execute import WeightRetrainer, is_done
from ticketry.lab.training.job import Work
from ticketry.lab.training.kernels import Kernels
from ticketry.lab.training.precision import DDP, SYNCHRONISED, Arithmetic, choose_arithmetic, non_default_choices
from ticketry.lab.training.ranks.batch_parts import add_noise_to_constants, check_parts
from ticketry.lab.training.ranks.launch import check_machine
from ticketry.lab.training.segment import Result as Result
from ticketry.lab.training.segment import Segment, Start, replace_non_finite, require_spec
from ticketry.lab.training.state import initial_state, rebuild_model
from ticketry.lab.training.supervised import course_of
from ticketry.lab.training.variant import Variant
from ticketry.lab.training.variants import HeldMask, Shrunk, trace_task_structure
from ticketry.tasks import task_checks
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.process_state import ONE_AT_A_TIME

T = TypeVar("T")
_Request = tuple[str, tuple[int, ...], bool]
"""Key of a segment, the intermediate steps whose states are stored, and whether metrics are needed."""


class Lab:
    """Trains segments, which are ranges of steps of a training, and stores each result for later calls.

    Use a lab as a context manager, or call `close` at the end. Several threads may call its methods.

    Args:
        store: folder of the durable store; created if missing.
        data: folder in which data sets are looked for first.
        workers: number of local processes that train side by side, one segment each; 0 to train in this process.
        device: cpu, cuda or auto.
        precision: fp32, bf16 or auto (a fixed rule, see `lab.training.precision`).
        threads: number of CPU threads of each training process.
        devices: number of processes that train each segment together, each with its own threads or GPU, see
            `lab.training.ranks`.
        parallel: for several devices: ``ddp`` (each device has the whole network) or ``fsdp`` (each has a part).
        norms: for several devices: ``synchronised`` (a batch norm sees the whole batch) or ``own`` (a batch norm sees
            the device's part of the batch).
        kernels: dense, sparse or auto. Sparse kernels compute only with the weights that a mask retains, see
            `lab.training.kernels`.
        checkpoint_seconds: seconds between two checkpoints inside a segment.
        on_event: function that is called with every `Event`, from any thread.
        runner: where segments are trained: a name of `lab.runners`, with details after a colon
            (``ray:auto,cpus=1``), the runner of another package, or module:object; or a
            `concurrent.futures.Executor` whose workers find the store at the same path. By default segments train in
            this process, or in local processes if `workers` is above 0.
        executor: a `concurrent.futures.Executor`, with the same effect as `runner`.
        loggers: dashboards to which trainings are reported: names of `lab.loggers`, loggers of other packages,
            module:object, or logger objects. If a logger fails, a warning appears once and training continues.

    `threads`, `devices`, `parallel`, `norms` and `kernels` are part of the key under which a result is stored.

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
        if executor is not None and runner:
            raise UsageError("give runner= or executor=, not both")
        runner = executor or runner
        check_options(workers=workers, threads=threads, devices=devices, checkpoint_seconds=checkpoint_seconds)
        self._chosen = choose_runner(runner, workers)
        self.data = Path(data).resolve() if data is not None else None
        if devices > 1 and not self._chosen.elsewhere:
            check_machine(devices, threads, max(self._chosen.workers, 1), device)
        self.store = open_store(store)
        self._choices: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "threads": threads,
            "ranks": devices,
            "norms": norms,
            "parallel": parallel,
        }
        self.kernels = Kernels(kernels, self.store, self.course)
        self.ledger = Ledger()
        self.mask_costs: dict[str, MaskCost] = defaultdict(MaskCost)
        """Highest known cost of each mask that the lab has computed or loaded, by digest; 0 for other masks."""
        self.dashboards = Dashboards(loggers, self.store.paths.root)
        self.workers = self._chosen.workers
        """Number of trainings side by side; with workers on other machines, the number that may be requested at once.
        """
        self.on, self.asked = self._chosen.name, runner if isinstance(runner, str) else ""
        """Name of the runner, and the text given as ``runner=``; the text is empty if an executor was given."""
        self._order = Order(self.store.address, self.data, checkpoint_seconds)
        self._listeners = [on_event] if on_event else []
        self._labels: dict[str, str] = {}
        self._thread = threading.local()
        """Thread-local storage of `prefix`, with which the labels of the thread's trainings begin."""
        self._runner: Runner | None = None
        self._guard = threading.RLock()
        self._in_flight: dict[_Request, concurrent.futures.Future[Work]] = {}
        self._tasks: dict[str, Task] = {}
        self._arithmetic: dict[str, Arithmetic] = {}
        self._structures: dict[str, Structure] = {}
        self._tracing = threading.Lock()
        self._remaker = WeightRetrainer(self.store, self.data, self._tasks)
        self.store.retrain = self._retrain_by_worker if self.workers else self._remaker

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
        """Return the description of a training of `task` from step `first` to step `last`; nothing is trained yet.

        Args:
            task: what to train.
            recipe: how to train it; by default the task's own recipe.
            start: seed of the initial weights, or a stored state to start from.
            mask: mask that is enforced at every step, or its digest; None trains a dense network.
            first: step of the schedule at which training starts.
            last: step before which training ends; by default the length of the schedule.
            order_seed: seed of the order of the data, of augmentation and of dropout.
            shrunk: whether to take the channels that the mask removes out of the network, instead of enforcing the
                mask. The results agree within float error, and stored states have their full shapes in both cases.
            variants: further changes to the training, see `lab.training.variant`.

        Raises:
            UsageError: if the variants cannot be trained together, or for `shrunk` without a mask.
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

    def train(self, segment: Segment, *, keep: Sequence[int] = (), label: str = "", measure: bool = True) -> Result:
        """Return the result of a segment from the store; train the segment if the store lacks the result.

        If several threads ask for the same segment, it is trained once.

        Args:
            segment: what to train, see the method `segment`.
            keep: steps inside the segment whose states are also stored; `at` returns these states.
            label: name that progress events give this training.
            measure: whether metrics of the trained network are needed.

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
        """Return the results of `segments`, in order; with workers, missing segments are trained side by side.

        Args:
            segments: what to train.
            keep: steps whose states are also stored, for every segment.
            labels: for every segment, the name that progress events give its training.
            measure: whether metrics of the trained networks are needed.

        Raises:
            TicketryError: the errors that `train` raises.
        """
        names = labels or [""] * len(segments)
        with handle_signals():
            try:
                waiting: dict[concurrent.futures.Future[Work], list[Segment]] = {}
                for segment, name in zip(segments, names, strict=True):
                    if future := self._submit(segment, tuple(keep), name, measure):
                        waiting.setdefault(future, []).append(segment)
                for future in concurrent.futures.as_completed(waiting):
                    for segment in waiting[future]:
                        self._record_work(segment, (segment.key, tuple(keep), measure), future.result())
            except BaseException as error:
                if len(segments) > 1 or not isinstance(error, Exception):
                    self.stop()
                raise
        results = [self._load_result(segment) for segment in segments]
        if self.dashboards.group and measure:
            for result, name in zip(results, names, strict=True):
                label = f"{self._label_prefix}{name}"
                self.dashboards.report_training(result, name=label or result.segment.key[:8], kind=name or "training")
        return results

    def train_aside(self, segments: Sequence[Segment], address: str, *, measure: bool) -> list[Work]:
        """Train segments side by side in another store, to time them; the lab's ledger does not count this work.

        Args:
            segments: what to train.
            address: folder or URL of the other store, which all workers must be able to open.
            measure: whether metrics are measured at the end.

        Raises:
            TicketryError: the errors that `train` raises.
        """
        order = replace(self._order, store=address, measure=measure)
        self._labels |= dict.fromkeys([one.key for one in segments], "to measure a step")
        with handle_signals():
            futures = [self._get_runner().submit(order, one, ()) for one in segments]
            raise_first_error(concurrent.futures.wait(futures).done)
        for one in segments:
            self._report_event(Event("aside", one.key, one.first, one.last, one.last))
        return [future.result() for future in futures]

    def at(self, result: Result, step: int) -> Result:
        """Return the result for another `step` of the same training; raise `UsageError` if its state is not stored."""
        return self._load_result(result.segment.shortened_to(step))

    def gather(self, functions: Iterable[Callable[[], T]]) -> list[T]:
        """Call each of the `functions`, in threads if the lab has workers, and return their results in order."""
        pieces = list(functions)
        prefix = self._label_prefix
        if self.workers == 0 or len(pieces) < 2:
            return [piece() for piece in pieces]

        def run_labelled(piece: Callable[[], T]) -> T:
            with self.telling(prefix):
                return piece()

        threads = concurrent.futures.ThreadPoolExecutor(len(pieces), thread_name_prefix="search")
        with handle_signals(), threads as pool:
            futures = [pool.submit(run_labelled, piece) for piece in pieces]
            try:
                concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
            finally:  # after an error, stop all trainings
                if not all(future.done() and future.exception() is None for future in futures):
                    self.stop()
        raise_first_error(futures)
        return [future.result() for future in futures]

    @contextlib.contextmanager
    def listening(self, on_event: OnEvent) -> Iterator[None]:
        """Within a ``with`` block, also call `on_event` with every progress event, from the thread that reports it."""
        self._listeners.append(on_event)
        try:
            yield
        finally:
            self._listeners.remove(on_event)

    @contextlib.contextmanager
    def telling(self, prefix: str) -> Iterator[None]:
        """Within a ``with`` block, put `prefix` before the label of every training that this thread starts."""
        before = self._label_prefix
        self._thread.prefix = prefix
        try:
            yield
        finally:
            self._thread.prefix = before

    @contextlib.contextmanager
    def training_in(self, kernels: str, precision: str = "") -> Iterator[None]:
        """Within a ``with`` block, use other `kernels` and, if given, another `precision` for new segments.

        Args:
            kernels: auto, dense or sparse.
            precision: fp32, bf16 or auto; by default the precision does not change.
        """
        before = self.kernels, self._choices
        self.kernels = Kernels(kernels, self.store, self.course)
        self._choices = {**self._choices, "precision": precision or self._choices["precision"]}
        try:
            yield
        finally:
            self.kernels, self._choices = before

    @contextlib.contextmanager
    def training_nothing(self) -> Iterator[NoTraining]:
        """Within a ``with`` block, use only stored results: where a training is needed, raise `NotStoredError` instead.

        The error is also raised for weights that are missing because the store was filled from a bundle (archive)
        without weights. The ledger of the lab does not count requests in the block.
        """
        with self._guard:
            before, nothing = (self._runner, self.ledger, self.store.retrain), NoTraining()
            self._runner, self.ledger, self.store.retrain = nothing, self.ledger.copy(), nothing.retrain
        try:
            yield nothing
        finally:
            self._runner, self.ledger, self.store.retrain = before

    def stop(self) -> None:
        """Ask all running trainings to store their state and stop."""
        if self._runner:
            self._runner.stop()

    def close(self) -> None:
        """End the worker processes, and wait until all reports to dashboards are sent."""
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

    # -- facts about tasks -------------------------------------------------------------------------------------------

    def per_epoch(self, task: Task, recipe: Recipe | None = None) -> int:
        """Return the number of iterations of an epoch of the task."""
        return task.steps_per_epoch(self.sizes(task)["train"], recipe or task.recipe)

    def course(self, task: Task) -> Course:
        """Load the task's data, and return the object that trains on them and evaluates on them."""
        return course_of(task, self.data)

    def sizes(self, task: Task) -> dict[str, int]:
        """Return the number of examples of each split (train, validation, test); the numbers are stored."""
        known = self.store.load_or_compute(
            "sizes", digest_of(task.key()), lambda: task_checks.check_sizes(task, self.course(task).sizes())
        )
        return {name: int(known[name]) for name in ("train", "validation", "test")}

    def arithmetic(self, task: Task) -> Arithmetic:
        """Return the device, precision and memory layout in which this lab trains the task's network."""
        key = digest_of([task.key(), self._choices])
        if key not in self._arithmetic:
            self._arithmetic[key] = choose_arithmetic(self.model(task), **self._choices)
        return self._arithmetic[key]

    @property
    def device(self) -> str:
        """The requested device: cpu, cuda or auto."""
        return str(self._choices["device"])

    def non_default_settings(self, task: Task) -> dict[str, Any]:
        """Return the settings of precision, threads and devices that differ from the defaults."""
        precision, threads, ranks, norms, parallel = (
            self._choices[name] for name in ("precision", "threads", "ranks", "norms", "parallel")
        )
        if precision == "auto":
            precision = self.arithmetic(task).precision
        return non_default_choices(precision=precision, threads=threads, devices=ranks, norms=norms, parallel=parallel)

    def check_cut(self, task: Task, recipe: Recipe, ranks: int) -> None:
        """Raise `TaskError` if the task's batches cannot be divided among `ranks` processes."""
        require_spec(task)

        def explain_failure() -> dict[str, str]:
            course, model = self.course(task), add_noise_to_constants(self.model(task))
            last = self.per_epoch(task, recipe) - 1
            try:
                course.check_cut(model, recipe, ranks)
                check_parts(task.name, course, model, recipe, sorted({0, last}), ranks)
            except TaskError as error:
                return {"why": str(error)}
            return {"why": ""}

        deciding = {"task": dict(task.key()), "batch": recipe.batch, "smoothing": recipe.label_smoothing}
        deciding |= {"augment": list(recipe.augment), "ranks": ranks, "rules": 3}
        if why := self.store.load_or_compute("cut", digest_of(deciding), explain_failure)["why"]:
            raise TaskError(why)

    def structure(self, task: Task) -> Structure:
        """Return which channels of the task's network can only be removed together; the answer is cached."""
        key = digest_of(task.key())
        with self._tracing:
            if key not in self._structures:
                self._structures[key] = trace_task_structure(task, self.course(task))
        return self._structures[key]

    # -- states and masks --------------------------------------------------------------------------------------------

    def state(self, result: Result) -> dict[str, Tensor]:
        """Return the weights and buffers of the network that `result` stores, by name."""
        return self.store.get_tensors(result.model)

    def model(self, task: Task, result: Result | None = None) -> nn.Module:
        """Return the task's model with the weights of `result`, or by default with new weights from seed 0."""
        return rebuild_model(task, self.state(result) if result else initial_state(task, 0))

    def distance(self, result: Result, reference: Result, names: Iterable[str]) -> tuple[float, float]:
        """Return the relative distance ||w - w0|| / ||w0|| of weights, and the seconds that its first computation took.

        Args:
            result: the result with the weights w.
            reference: the result with the weights w0.
            names: names of the parameters that are compared.
        """
        names = list(names)
        key = digest_of({"numerics": NUMERICS, "of": result.model, "from": reference.model, "names": names})

        def measure_distance_and_seconds() -> dict[str, float]:
            began = time.perf_counter()
            distance = relative_distance(self.state(result), self.state(reference), names)
            return {"distance": distance, "seconds": round(time.perf_counter() - began, 3)}

        known = self.store.load_or_compute("distances", key, measure_distance_and_seconds)
        return float(known["distance"]), float(known.get("seconds", 0.0))  # older stores lack the seconds

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
        """Prune the weights of a result with `core.prune`, store the mask, and return its digest.

        A later call with the same arguments only looks the digest up.

        Args:
            task: task of the result.
            result: the result whose weights are pruned.
            scope: parameters to prune.
            within: digest of a mask; weights that it removes stay removed.
            sample: the batches on which the score is computed; None for scores without data.
            structured: whether to remove whole channels, with `structure.channels` in place of `core.prune`.
            settings: further arguments of `core.prune`, or of `structure.channels`.
        """

        def compute_mask() -> Mask:
            base = self.store.get_mask(within) if within else None
            model, seen = self.model(task, result), dict[str, Any]()
            if sample is not None:
                course, model = self.course(task), model.to(self.arithmetic(task).device)
                seen = {"batches": sample.limit_batch_size_to_task(task).draw(course, model), "loss": course.loss}
            arguments = {"scope": scope, "within": base, **seen, **settings}
            if structured:
                return channels(model, lambda: self.structure(task), **arguments)
            return prune(model, **arguments)

        def load_data_and_structure() -> None:
            self.course(task)
            if structured:
                self.structure(task)

        described = {"state": result.model, "within": within, "scope": list(scope), **settings}
        if source := source_of(str(settings.get("score", ""))):
            described |= {"source": source}
        if structured:
            described |= {"structured": True, "task": dict(task.key())}
        if sample is None:
            return self.load_or_compute_mask(described, compute_mask)
        described |= {"sample": asdict(sample), "task": dict(task.key())}
        seen = SeenExamples.from_settings(sample.limit_batch_size_to_task(task), self.sizes(task)["train"], settings)
        return self.load_or_compute_mask(described, compute_mask, seen=seen, ready=load_data_and_structure)

    def load_or_compute_mask(
        self,
        described: Mapping[str, Any],
        make: Callable[[], Mask],
        *,
        seen: SeenExamples | None = None,
        ready: Callable[[], object] | None = None,
    ) -> str:
        """Return the digest of the mask with this description; if the store lacks the mask, compute and store it.

        Args:
            described: everything that determines the mask, as JSON values. If a value is a function (such as a custom
                score), the description cannot be a key, and the mask is always computed.
            make: computes the mask.
            seen: training examples that `make` uses, for the record of costs in `mask_costs`.
            ready: function called before `make`, such as to load data. The recorded seconds include neither `ready` nor
                the time that `make` waits for other threads.
        """
        key = "" if any(map(callable, described.values())) else digest_of({"numerics": NUMERICS, **described})

        def store_mask() -> dict[str, Any]:
            if ready:
                ready()
            began, waited = time.perf_counter(), ONE_AT_A_TIME.waited
            mask = make()
            seconds = round(time.perf_counter() - began - (ONE_AT_A_TIME.waited - waited), 3)
            return {"mask": self.store.put_mask(mask), "seconds": seconds}

        known = self.store.load_or_compute("masks", key, store_mask) if key else store_mask()
        digest, cost = str(known["mask"]), MaskCost(float(known.get("seconds", 0.0)), seen)
        with self._guard:
            self.mask_costs[digest] = max(self.mask_costs[digest], cost, key=MaskCost.sort_key)
        return digest

    @property
    def _label_prefix(self) -> str:
        return getattr(self._thread, "prefix", "")

    def _submit(
        self, segment: Segment, keep: tuple[int, ...], label: str, measure: bool
    ) -> concurrent.futures.Future[Work] | None:
        """Submit a segment to the runner; return the future, or None if its results are stored already."""
        if number := received_stop_signal():
            raise InterruptedTrainingError("stopped before it began", number)
        key = segment.key
        for step in keep:
            if not segment.first <= step <= segment.last:
                raise UsageError(f"keep= names step {step} of a segment that is from {segment.first} to {segment.last}")
        with self._guard:
            self.ledger.segments_asked += 1
            self.ledger.keys.append(key)
            self.ledger.steps_asked += segment.steps
            self._labels[key] = f"{self._label_prefix}{label}"
            if is_done(self.store, segment, keep, measure=measure):
                self._report_event(Event("cached", key, segment.first, segment.last, segment.last))
                return None
            future = self._in_flight.get((key, keep, measure))
            if future is None or future.done():
                self._report_event(Event("started", key, segment.first, segment.first, segment.last))
                runner = self._get_runner()
                order = replace(self._order, measure=measure)
                future = self._in_flight[key, keep, measure] = runner.submit(order, segment, keep)
            return future

    def _retrain_by_worker(self, digest: str, trajectory: str, step: int) -> None:
        """Ask a worker to train weights again that are missing from the store (`Store.retrain`), and wait for it."""
        segment = self._remaker.segment(digest, trajectory, step)
        order = replace(self._order, measure=False, weights=True)
        with handle_signals(), self._guard:
            self._labels[segment.key] = f"{self._label_prefix}weights that a bundle left out"
            future = self._get_runner().submit(order, segment, ())
        concurrent.futures.wait([future])
        self._report_event(Event("aside", segment.key, segment.first, segment.last, segment.last))
        future.result()

    def _get_runner(self) -> Runner:
        with self._guard:
            if self._runner is None:
                self._runner = self._chosen.make(self._report_event)
            return self._runner

    def _record_work(self, segment: Segment, request: _Request, work: Work) -> None:
        with self._guard:
            if self._in_flight.pop(request, None) is not None:  # other threads that waited for it count no work
                self.ledger.segments_trained += work.steps > 0
                self.ledger.steps_trained += work.steps
                self.ledger.train_seconds += work.train_seconds
                self.ledger.other_seconds += work.other_seconds
                self.ledger.processor_seconds += work.processor_seconds
        self._report_event(Event("finished", segment.key, segment.first, segment.last, segment.last))

    def _load_result(self, segment: Segment) -> Result:
        record = self.store.load_valid_result(segment.trajectory, segment.last)
        if record is None:
            raise UsageError(f"step {segment.last} of this trajectory is not stored: name it in keep=")
        return Result(
            segment=segment,
            model=record["model"],
            training=record["training"],
            metrics=replace_non_finite(record["metrics"] or {}),
            train_seconds=record["cost"]["train_seconds"],
            variants=record["variants"],
            record=record,
        )

    def _report_event(self, event: Event) -> None:
        if self._listeners:
            labelled = Event(**{**vars(event), "label": self._labels.get(event.key, "")})
            for listener in tuple(self._listeners):
                listener(labelled)
