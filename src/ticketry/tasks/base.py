"""What a task is: data, a model, a loss, a metric and a recipe. The lab, the searches and the report know no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.tasks.course import Course
from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True)
class Spec:
    """The request that made a task: `registry.make(spec)` makes the same one again, in this process or another."""

    name: str
    """A built-in task's name, or module:object."""
    model: str | None = None
    """The network asked for; None is the task's own choice."""
    options: tuple[tuple[str, str], ...] = ()
    """Names and values as they were written, k=v."""


@dataclass(frozen=True)
class Metric:
    """The number by which networks are compared."""

    name: str = "accuracy"
    unit: str = "%"
    """What follows the number in tables: %, or nothing."""
    higher_is_better: bool = True
    scale: str = "linear"
    """Of the axis in figures: linear, or log for what is compared by ratios."""
    summary: str = "mean"
    """Over replicates: mean, or iqm (interquartile mean with a bootstrap interval) for what differs widely between
    seeds."""


class Reader(Protocol):
    """Reads examples from disk when they are asked for, so that a split need not fit into memory."""

    @property
    def workers(self) -> int:
        """Processes that read ahead of training; 0 reads in the process that trains."""

    @property
    def batch(self) -> int:
        """Examples that fit into memory at once, for evaluation."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Those of a recipe's that are done while reading, before all others; the rest is left to `Task.augment`."""

    def request(self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0) -> Callable[[], Tensor]:
        """What returns the stored inputs [b, ...] of `rows` [b] when it is called, in this process or another.

        It goes to worker processes with every batch, so it must be small and can be pickled. What it returns is a
        function of the arguments alone: `augment` names some of `augmentations`, and all their draws come from `seed`
        and an example's position in `rows`. A `TicketryError` that it raises reaches the user.
        """


@dataclass(frozen=True)
class Split:
    """Examples, in stored form: images are uint8 [n, channels, height, width], `task.prepare` scales them."""

    inputs: Tensor
    """[n, ...] in memory; with a `reader` the rows that it is asked for."""
    targets: Tensor
    """[n, ...] in memory."""
    reader: Reader | None = None
    """Reads the inputs of a split that is streamed from disk."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of examples: methods train on one, searches look at the second, results are on the third."""

    train: Split
    validation: Split
    test: Split


class Task:
    """Base of all tasks. A subclass sets the attributes and overrides the methods.

    `build` is a must. A task whose examples are seen each on its own has `load`, `loss`, `measure` and `summary`
    besides; `classification.Classification` has the last three. Any other kind has `course` instead, see
    `tasks.course`. A task holds settings only; data is loaded where it is used, once a process. It must give the same
    data and, under the same seed of torch, the same model every time: results are stored under its `key`.
    """

    name: str
    metric: Metric
    recipe: Recipe
    spec: Spec | None = None
    """Set by `registry.get`; a task without one cannot be made again in another process."""

    def key(self) -> Mapping[str, object]:
        """All that tells this task's numbers from another's, as JSON values: name, version, options, model.

        A user's own task that is named module:object needs none: `registry.get` adds its source and its options.
        """
        raise TaskError(f"the task {type(self).__name__} has no key(): return what tells its numbers from another's")

    def of_replicate(self, number: int) -> Mapping[str, str]:
        """The options that make the task as a replicate of a search has it; none where all have the same.

        For data of which there are several splits: each replicate may have its own, see `registry.of_replicate`.
        """
        return {}

    def untrained(self) -> Mapping[str, str]:
        """The options that make the task whose `build` draws all weights; none where it does so anyway.

        For a task that begins with weights which were trained before: `random_reinit`, the control of a ticket's first
        weights, is to begin without them, see `registry.untrained`.
        """
        return {}

    def build(self) -> nn.Module:
        """A new model, its weights drawn from torch's global random state (the lab seeds it), or trained before."""
        raise NotImplementedError

    def narrower(self, parameters: int) -> str | None:
        """What to ask for as the task's model to get the largest network of this kind with so many parameters.

        A control of tickets (`evidence.verify`): at most as large as they are, but dense. None, as here, where no such
        network is defined.
        """
        return None

    def course(self, data: Path | None = None) -> Course | None:
        """The task with its data at hand; None, as here, for one that is made of the examples of `load`.

        `data` is the folder asked for on the command line.
        """
        return None

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Training steps in an epoch, with so many examples in the training split; the last may be a smaller batch."""
        return -(-examples // recipe.batch)

    def unfit(self, key: Mapping[str, object]) -> str:
        """Why networks trained on a task of this key cannot serve this one, although they may have its shapes.

        Such as tokens that stand for other words; empty, as here, if nothing speaks against it.
        """
        return ""

    def scored(self, size: int) -> int:
        """Examples in a batch for a score that would look at `size`: fewer where so many are too large for memory."""
        return size

    def load(self, data: Path | None = None) -> Splits:
        """The examples; `data` is the folder asked for on the command line."""
        raise NotImplementedError

    def prepare(self, inputs: Tensor) -> Tensor:
        """Stored inputs of a batch [n, ...] to what the model takes, on the device they are on; nothing random."""
        return inputs

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Inputs as the model takes them, `count` of them: what a model is compiled, exported and timed with.

        By default the first of the validation split; a task that knows their shape need not read any data.
        """
        split = self.load(data).validation
        first = split.inputs[:count]
        return self.prepare(first if split.reader is None else split.reader.request(first)())

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Random changes, by name, of a batch of stored inputs; every draw from `generator` (a CPU generator)."""
        if names:
            raise TaskError(f"the task {self.name} has no augmentation {names[0]!r}: choose a recipe without it")
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch of whatever `summary` needs; they are added up over batches."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """The metrics of a split of `count` examples from the added sums; has `metric.name` among its keys."""
        raise NotImplementedError
