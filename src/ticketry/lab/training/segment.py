"""Define segments (ranges of steps of a training), the keys that identify them, and their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ticketry.errors import TaskError, UsageError
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry.lab.training.precision import DENSE, FSDP, Arithmetic
from ticketry.lab.training.supervised import course_of
from ticketry.lab.training.variant import Surroundings, Variant, order_variants, variant_from_description
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe, recipe_from_dict
from ticketry.tasks.task import Course, Spec, Task, json_key

Kind = TypeVar("Kind", bound=Variant)


@dataclass(frozen=True)
class Start:
    """Says where the weights at the start of a segment come from: a new initialisation or a stored state."""

    seed: int | None = None
    """Seed of a new initialisation; None with a stored state."""
    state: str | None = None
    """Digest of stored weights and buffers; None with a new initialisation."""
    optimizer: str | None = None
    """Digest of a stored optimiser state; None for a new optimiser."""

    def __post_init__(self) -> None:
        if (self.seed is None) == (self.state is None):
            raise UsageError("a segment starts either from an initialisation seed or from a stored state")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Describes a training of a task from step `first` to step `last`, with changes (variants) such as a mask.

    Segments that differ only in `last` belong to the same trajectory: the longer segment continues the shorter.
    """

    task: Task
    """The task; its `key` is part of the segment's key."""
    recipe: Recipe
    start: Start
    variants: tuple[Variant, ...] = ()
    """Changes to the training, such as an enforced mask, soft masks or a penalty; empty for a dense network."""
    first: int
    """Step of the schedule, and of the order of the data, at which the segment starts."""
    last: int
    """Step before which the segment ends; so `last` - `first` steps are trained."""
    total: int
    """Number of steps of the whole schedule."""
    per_epoch: int
    """Number of steps in an epoch."""
    order_seed: int
    """Seed of data order, augmentation and dropout."""
    arithmetic: Arithmetic

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise UsageError(f"a segment goes from a step to a later one, not from {self.first} to {self.last}")
        object.__setattr__(self, "variants", order_variants(self.variants))
        alone = next((one.name for one in self.variants if not one.several_ranks), None)
        if self.arithmetic.ranks > 1 and alone:
            raise UsageError(
                f"training with {alone} is done by one process, not by {self.arithmetic.ranks} that train one network"
                " together: leave --devices away"
            )
        whole = next((one.name for one in self.variants if not one.in_parts), None)
        if self.arithmetic.parallel == FSDP and whole:
            raise UsageError(
                f"training with {whole} looks at whole parameters, and with --parallel fsdp each device has a part of"
                " them: choose --parallel ddp"
            )
        other = next((one.name for one in self.variants if not one.sparse_kernels), None)
        if self.arithmetic.kernels != DENSE and other:
            raise UsageError(
                f"training with {other} computes in torch, and this arithmetic is of sparse kernels: variants are for"
                " Lab.segment to know, which chooses the arithmetic, and are not put into a segment that it made"
            )

    @property
    def mask(self) -> str | None:
        """Digest of the stored mask that removes weights; None for a dense network."""
        return next((mask for one in self.variants if (mask := one.masked_by()) is not None), None)

    @property
    def whole_channels(self) -> bool:
        """Whether the removed channels are taken out of the network for training."""
        return any(one.whole_channels for one in self.variants)

    def variant(self, kind: type[Kind]) -> Kind | None:
        """Return the segment's variant (change to the training) that has this class, or None."""
        return next((one for one in self.variants if isinstance(one, kind)), None)

    @property
    def steps(self) -> int:
        return self.last - self.first

    def at(self, step: str, of: str = "") -> int:
        """Return the step for a text such as 2ep (epochs), 500it (iterations) or 3% (of the schedule).

        `of` names the setting in an error message.
        """
        return Step.parse(step).at(total=self.total, per_epoch=self.per_epoch, of=of)

    @cached_property
    def trajectory(self) -> str:
        """Key of the training without its length: the SHA-256 (hex) of all fields except `last`."""
        described = self.describe()
        del described["last"]
        return digest_of({"numerics": NUMERICS, **described})

    @property
    def key(self) -> str:
        """Key under which the result is stored; segments with equal keys have equal results."""
        return f"{self.trajectory}@{self.last}"

    def shortened_to(self, last: int) -> Segment:
        """Return a copy of this segment that ends at step `last`."""
        return replace(self, last=last)

    def start_digests(self) -> list[str]:
        """Return the digests of all stored tensors that are needed to train the segment."""
        needed = [self.start.state, self.start.optimizer, *(blob for one in self.variants for blob in one.blobs())]
        return [blob for blob in needed if blob is not None]

    def describe(self) -> dict[str, Any]:
        values = {
            "task": dict(self.task.key()),
            "recipe": asdict(self.recipe),
            "start": asdict(self.start),
            "variants": [{**one.identity(), **one.describe()} for one in self.variants],
            "first": self.first,
            "last": self.last,
            "total": self.total,
            "per_epoch": self.per_epoch,
            "order_seed": self.order_seed,
            "arithmetic": self.arithmetic.describe(),
        }
        described: dict[str, Any] = json.loads(json.dumps(values))
        return described

    @classmethod
    def from_description(cls, described: Mapping[str, Any], task: Task) -> Segment:
        """Build a segment from the result of `describe`; the classes of its variants must have been imported."""
        values = dict(described)
        if json_key(task) != values.pop("task"):
            raise TaskError(f"the task {task.name!r} is no longer the one that this segment is of: run it anew")
        values["recipe"] = recipe_from_dict(values["recipe"])
        values["start"] = Start(**values["start"])
        values["arithmetic"] = Arithmetic(**values["arithmetic"])
        values["variants"] = tuple(variant_from_description(each) for each in values["variants"])
        return cls(task=task, **values)

    def surroundings(self, store: Store, course: Course) -> Surroundings:
        """Return what the variants (changes to the training) may know about it: task, data, steps and stored masks."""
        return Surroundings(
            store, course, self.task, self.recipe, self.first, self.last, self.total, self.per_epoch, self.mask
        )

    def imported_modules(self) -> list[str]:
        """Return the names of the modules that define the segment's variants; another process must import them."""
        return [type(variant).__module__ for variant in self.variants]

    def course(self, folder: Path | None) -> Course:
        """Return the task with its data from `folder`; `TaskError` if the number of training examples has changed."""
        course = course_of(self.task, folder)
        count = course.sizes()["train"]
        if self.task.steps_per_epoch(count, self.recipe) != self.per_epoch:
            raise TaskError(
                f"the task {self.task.name!r} has {count} training examples now, which is not what this store knows of"
                " it: give changed data another key (an option, a version) or use another store"
            )
        return course


def require_spec(task: Task) -> Spec:
    """Return the task's spec, from which other processes build the task; raise `TaskError` if the task has none."""
    if task.spec is None:
        raise TaskError(
            f"the task {task.name!r} was made in this process and another cannot make it: name it as"
            " package.module:object, or train in this process (workers=0) on one device"
        )
    return task.spec


@dataclass(frozen=True)
class Result:
    """Holds the result of a segment: the digest of the trained weights, and their metrics."""

    segment: Segment
    model: str
    """Digest of the weights and buffers."""
    training: str | None
    """Digest of the optimiser's state, if it is stored."""
    metrics: dict[str, dict[str, Any]]
    """Metrics by split (validation or test) and name; searches use validation only. A value that is not finite is
    replaced by None."""
    train_seconds: float
    variants: Mapping[str, str]
    """Digest of the state of each variant that is part of the result, by the variant's name; see `Effect.lasting`."""
    record: dict[str, Any] = field(repr=False, compare=False)


def replace_non_finite(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return the metrics with None in place of values that are not finite, which JSON does not have."""
    return {
        split: {name: None if value is None or not math.isfinite(value) else value for name, value in found.items()}
        for split, found in metrics.items()
    }
