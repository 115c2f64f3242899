"""The course of a task whose examples are given: drawn in batches, each seen on its own. What most tasks are.

>>> course = course_of(task, data)                                     # doctest: +SKIP
>>> session = course.session(task.recipe, 0, arithmetic)               # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.seeds import mix
from ticketry.lab.training import data_loading
from ticketry.lab.training.data_loading import order_of, steps_per_epoch
from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Session, Split, Splits, Task

_FEW = 2
"""Examples that a network is followed on."""


def course_of(task: Task, data: Path | None = None) -> Course:
    """A task's own course, or the one of its examples."""
    found = task.course(data)
    return Supervised(task, task.load(data)) if found is None else found


class Supervised(Course):
    """The course of a task with `Splits`."""

    def __init__(self, task: Task, splits: Splits) -> None:
        self.task, self.splits = task, splits

    def sizes(self) -> dict[str, int]:
        return {name: len(split) for name, split in vars(self.splits).items()}

    def session(self, recipe: Recipe, seed: int, arithmetic: Any) -> SupervisedSession:
        return SupervisedSession(self.task, self.splits.train, recipe, seed, arithmetic)

    def evaluate(self, model: nn.Module, split: str, arithmetic: Any) -> dict[str, float]:
        """The sums of `Task.measure` over all batches, summed up."""
        examples: Split = getattr(self.splits, split)
        sums: dict[str, Tensor] = {}
        with contextlib.closing(data_loading.in_order(examples, arithmetic.device)) as batches:
            for inputs, targets in batches:
                for name, value in self.task.measure(forward(self.task, model, inputs, arithmetic), targets).items():
                    zero = torch.zeros((), dtype=torch.float64, device=value.device)
                    sums[name] = sums.get(name, zero) + value.double()
        return self.task.summary({name: float(value) for name, value in sums.items()}, len(examples))

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """The first batches of an order of their own, prepared, without augmentation."""
        split, device = self.splits.train, next(model.parameters()).device.type
        steps = range(min(count, steps_per_epoch(len(split), size)))
        drawn = data_loading.batches(split, order_of(split, seed, size).batch, steps, device)
        return [(self.task.prepare(inputs), targets) for inputs, targets in drawn]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return self.task.loss(model(inputs), targets)

    def count(self, batch: Any) -> int:
        return len(batch[1])

    def inputs(self, count: int = _FEW) -> Tensor:
        """The first training examples, prepared."""
        train = self.splits.train
        rows = torch.arange(min(count, len(train)))
        with contextlib.closing(data_loading.batches(train, lambda step: rows, range(1), "cpu")) as batches:
            inputs, _ = next(batches)
        return self.task.prepare(inputs)

    def few(self, count: int) -> Supervised:
        train = self.splits.train
        first = replace(train, inputs=train.inputs[:count], targets=train.targets[:count])
        return Supervised(self.task, replace(self.splits, train=first))


class SupervisedSession(Session):
    """Batches in the order of (seed, epoch), augmented by (seed, step); nothing is carried from one to the next."""

    def __init__(self, task: Task, train: Split, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> None:
        self.task, self.recipe, self.seed, self.arithmetic = task, recipe, seed, arithmetic
        self._examples = data_loading.placed(train, arithmetic.device)
        self._read_with, self._augment = data_loading.while_reading(train, recipe.augment)
        self._order = order_of(train, seed, recipe.batch).batch
        self._generator = torch.Generator()

    def batches(self, steps: range) -> data_loading.Batches:
        """Stored inputs and targets, on the device."""
        device = self.arithmetic.device
        found = data_loading.batches(
            self._examples, self._order, steps, device, augment=self._read_with, seed=self.seed
        )
        return self._changed(found, steps) if self._augment else found

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        outputs = forward(self.task, model, inputs, self.arithmetic)
        return self.task.loss(outputs, targets, label_smoothing=self.recipe.label_smoothing)

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        return forward(self.task, model, inputs, self.arithmetic), targets

    def _changed(self, batches: data_loading.Batches, steps: range) -> data_loading.Batches:
        with contextlib.closing(batches):
            for step, (inputs, targets) in zip(steps, batches, strict=True):
                yield self._augmented(inputs, step), targets

    def _augmented(self, inputs: Tensor, step: int) -> Tensor:
        self._generator.manual_seed(mix(self.seed, "augment", step))
        return self.task.augment(inputs, self._augment, self._generator)


@torch.no_grad()
def evaluate(course: Course, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
    """The course's metrics on a whole split, in evaluation mode; the model's mode is put back after."""
    training = model.training
    model.eval()
    found = course.evaluate(model, split, arithmetic)
    model.train(training)
    return found


def forward(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The model's outputs for stored inputs on the device; fp32, so that losses and metrics are."""
    prepared = task.prepare(inputs)
    if arithmetic.channels_last and prepared.dim() == 4:
        prepared = prepared.contiguous(memory_format=torch.channels_last)
    with arithmetic.autocast():
        outputs = model(prepared)
    return outputs.float()
