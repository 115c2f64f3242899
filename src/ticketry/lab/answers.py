"""What a lab can tell without training: of a task, of stored states, and of the masks made of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import Scope
from ticketry.core.score import source_of
from ticketry.core.sparse_training.pruning_time import relative_distance
from ticketry.core.structure.channel_wise.choose import channels
from ticketry.core.structure.dependencies.channel_groups import Structure
from ticketry.errors import TaskError
from ticketry.lab.costs.mask_cost import Making, Makings, Seen
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic, unusual
from ticketry.lab.training.ranks.check import check_parts, stirred
from ticketry.lab.training.segment import Result, check_task
from ticketry.lab.training.state import initial_state, rebuilt
from ticketry.lab.training.supervised import course_of
from ticketry.lab.training.variants.shrunk import task_structure
from ticketry.tasks import given
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Task
from ticketry_engine.support.process_state import ONE_AT_A_TIME


class Answers:
    """The half of a `Lab` that trains nothing; what takes long is remembered in its store. Safe for several threads.

    Args:
        store: the durable store.
        data: folder in which data sets are looked for first.
        choices: device, precision and threads, see `Lab`.
    """

    def __init__(self, store: Store, *, data: Path | None, choices: Mapping[str, Any]) -> None:
        self.store, self.data = store, data
        self.makings = Makings()
        self._choices = dict(choices)
        self._arithmetic: dict[str, Arithmetic] = {}
        self._structures: dict[str, Structure] = {}
        self._following = threading.Lock()

    # -- tasks -------------------------------------------------------------------------------------------------------

    def per_epoch(self, task: Task, recipe: Recipe | None = None) -> int:
        """Iterations of an epoch of the task."""
        return task.steps_per_epoch(self.sizes(task)["train"], recipe or task.recipe)

    def course(self, task: Task) -> Course:
        """The task with its data at hand."""
        return course_of(task, self.data)

    def sizes(self, task: Task) -> dict[str, int]:
        """Examples of each split; remembered, so that a finished run does not load data to be told again."""
        known = self.store.remembered(
            "sizes", digest_of(task.key()), lambda: given.sized(task, self.course(task).sizes())
        )
        return {name: int(known[name]) for name in ("train", "validation", "test")}

    def arithmetic(self, task: Task) -> Arithmetic:
        """Device, precision and layout in which the task's network is trained here."""
        key = digest_of([task.key(), self._choices])
        if key not in self._arithmetic:
            self._arithmetic[key] = choose_arithmetic(self.model(task), **self._choices)
        return self._arithmetic[key]

    @property
    def device(self) -> str:
        """The one that was asked for: cpu, cuda or auto."""
        return str(self._choices["device"])

    def unusual(self, task: Task) -> dict[str, Any]:
        """What of the arithmetic is part of a run's name, see `precision.unusual`."""
        precision, threads, ranks, norms, parallel = (
            self._choices[name] for name in ("precision", "threads", "ranks", "norms", "parallel")
        )
        if precision == "auto":
            precision = self.arithmetic(task).precision
        return unusual(precision=precision, threads=threads, devices=ranks, norms=norms, parallel=parallel)

    def check_cut(self, task: Task, recipe: Recipe, ranks: int) -> None:
        """Raise `TaskError` for a task whose batches cannot be cut among so many ranks. Remembered."""
        check_task(task.name, task.spec)

        def found() -> dict[str, str]:
            course, model, last = self.course(task), stirred(self.model(task)), self.per_epoch(task, recipe) - 1
            try:
                course.check_cut(model, recipe, ranks)
                check_parts(task.name, course, model, recipe, sorted({0, last}), ranks)
            except TaskError as error:
                return {"why": str(error)}
            return {"why": ""}

        deciding = {"task": dict(task.key()), "batch": recipe.batch, "smoothing": recipe.label_smoothing}
        deciding |= {"augment": list(recipe.augment), "ranks": ranks, "rules": 3}
        if why := self.store.remembered("cut", digest_of(deciding), found)["why"]:
            raise TaskError(why)

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
                course, model = self.course(task), model.to(self.arithmetic(task).device)
                seen = {"batches": sample.of(task).drawn(course, model), "loss": course.loss}
            chosen = {"scope": scope, "within": base, **seen, **settings}
            if structured:
                return channels(model, lambda: self.structure(task), **chosen)
            return prune(model, **chosen)

        described = {"state": result.model, "within": within, "scope": list(scope), **settings}
        if source := source_of(str(settings.get("score", ""))):
            described |= {"source": source}
        if structured:
            described |= {"structured": True, "task": dict(task.key())}
        if sample is None:
            return self.remembered_mask(described, made)
        described |= {"sample": asdict(sample), "task": dict(task.key())}
        seen = Seen.of(sample.of(task), self.sizes(task)["train"], settings)
        return self.remembered_mask(described, made, seen=seen, ready=lambda: self._ready(task, structured))

    def _ready(self, task: Task, structured: bool) -> None:
        self.course(task)
        if structured:
            self.structure(task)

    def structure(self, task: Task) -> Structure:
        """The coupled channels of the task's network; found once by each lab, as it takes seconds."""
        key = digest_of(task.key())
        with self._following:
            if key not in self._structures:
                self._structures[key] = task_structure(task, self.course(task))
        return self._structures[key]

    def distance(self, result: Result, reference: Result, names: Iterable[str]) -> tuple[float, float]:
        """||w - w0|| / ||w0|| of two results over the named weights, and the seconds that took; remembered."""
        chosen = list(names)
        key = digest_of({"numerics": NUMERICS, "of": result.model, "from": reference.model, "names": chosen})

        def measured() -> dict[str, float]:
            began = time.perf_counter()
            distance = relative_distance(self.state(result), self.state(reference), chosen)
            return {"distance": distance, "seconds": round(time.perf_counter() - began, 3)}

        known = self.store.remembered("distances", key, measured)
        return float(known["distance"]), float(known.get("seconds", 0.0))  # not told by older stores

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
            ready: called before it is made; its time does not count, nor that in which others of this process compute.
        """
        key = "" if any(map(callable, described.values())) else digest_of({"numerics": NUMERICS, **described})

        def made() -> dict[str, Any]:
            if ready:
                ready()
            began, waited = time.perf_counter(), ONE_AT_A_TIME.waited
            mask = make()
            seconds = round(time.perf_counter() - began - (ONE_AT_A_TIME.waited - waited), 3)
            return {"mask": self.store.put_mask(mask), "seconds": seconds}

        known = self.store.remembered("masks", key, made) if key else made()
        self.makings.add(str(known["mask"]), Making(float(known.get("seconds", 0.0)), seen))
        return str(known["mask"])
