"""Define the course (training, evaluation and scoring) of supervised tasks, which train on batches of examples.

>>> course = course_of(task, data)                                     # doctest: +SKIP
>>> session = course.session(task.recipe, 0, arithmetic)               # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.lab.training import data_loading
from ticketry.lab.training.data_loading import build_data_order, part_of_batch, steps_per_epoch
from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks import task_checks
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, PartOfBatch, Ranks, Session, Split, Splits, Task, place_of_part
from ticketry_engine.support.seeds import mix_seeds

_FEW = 2
"""Number of examples on which a network is traced."""
_MEAN_OF, _EQUAL = 16, 1e-4
"""Number of examples and relative tolerance of the check that a batch's loss is the mean over its examples."""


def course_of(task: Task, data: Path | None = None) -> Course:
    """Return the object (course) that trains on and evaluates a task's data; by default a `Supervised`."""
    found = task.course(data)
    return Supervised(task, task_checks.load_splits(task, data)) if found is None else found


class Supervised(Course):
    """Trains on, evaluates and scores a task whose data are splits with examples."""

    def __init__(self, task: Task, splits: Splits) -> None:
        self.task, self.splits = task, splits

    def sizes(self) -> dict[str, int]:
        return {name: len(split) for name, split in vars(self.splits).items()}

    def session(self, recipe: Recipe, seed: int, arithmetic: Any) -> SupervisedSession:
        return SupervisedSession(self.task, self.splits.train, recipe, seed, arithmetic)

    def evaluate(self, model: nn.Module, split: str, arithmetic: Any) -> dict[str, float]:
        """Return the metrics of a split: `Task.summary` computes them from sums of `Task.measure` over the batches."""
        examples: Split = getattr(self.splits, split)
        return self.task.summary(self._sum_measures(model, examples, arithmetic), len(examples))

    def _sum_measures(self, model: nn.Module, examples: Split, arithmetic: Any) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        with contextlib.closing(data_loading.batches_in_order(examples, arithmetic.device)) as batches:
            for inputs, targets in batches:
                outputs = forward(self.task, model, inputs, arithmetic)
                for name, value in task_checks.measure_sums(self.task, outputs, targets).items():
                    zero = torch.zeros((), dtype=torch.float64, device=value.device)
                    sums[name] = sums.get(name, zero) + value.double()
        return {name: float(value) for name, value in sums.items()}

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Return batches for scoring: `count` random batches of `size` training examples, without augmentation."""
        split, device = self.splits.train, next(model.parameters()).device.type
        steps = range(min(count, steps_per_epoch(len(split), size)))
        drawn = data_loading.batches(split, build_data_order(split, seed, size).batch, steps, device)
        return [(task_checks.prepare_inputs(self.task, inputs), targets) for inputs, targets in drawn]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return task_checks.compute_loss(self.task, model(inputs), targets)

    def count(self, batch: Any) -> int:
        return len(batch[1])

    def inputs(self, count: int = _FEW) -> Tensor:
        """Return the inputs of the first `count` training examples, as the network gets them."""
        train = self.splits.train
        rows = torch.arange(min(count, len(train)))
        with contextlib.closing(data_loading.batches(train, lambda step: rows, range(1), "cpu")) as batches:
            inputs, _ = next(batches)
        return task_checks.prepare_inputs(self.task, inputs)

    def few(self, count: int) -> Supervised:
        train = self.splits.train
        first = replace(train, inputs=train.inputs[:count], targets=train.targets[:count])
        return Supervised(self.task, replace(self.splits, train=first))

    def cut(self, ranks: Ranks) -> SupervisedPart:
        return SupervisedPart(self.task, self.splits, ranks)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        count = len(self.splits.train)
        last = count % recipe.batch or recipe.batch
        for batch, which in ((recipe.batch, "a batch"), (min(last, count), "the last batch of an epoch")):
            if batch < world:
                raise TaskError(
                    f"{which} of {self.task.name} has {batch} example{'s' if batch > 1 else ''}, fewer than the {world}"
                    " devices that would train on it: choose fewer devices or another --recipe.batch"
                )
        reader = self.splits.train.reader
        if reader is not None and "first" not in inspect.signature(reader.request).parameters:
            raise TaskError(
                f"the reader of {self.task.name} ({type(reader).__name__}) reads whole batches only: several devices,"
                " each with a part of the batch, need its request(rows, augment, seed, first), where first is the place"
                " of the first of these rows in the batch; train it on one (--devices 1), or give it that argument"
            )
        self._check_loss_is_mean(model, recipe)

    @torch.no_grad()
    def _check_loss_is_mean(self, model: nn.Module, recipe: Recipe) -> None:
        """Raise `TaskError` unless the loss of examples is the mean of the losses of two parts, weighted by size."""
        rows = _pick_different_targets(self.splits.train.targets, _MEAN_OF)
        with contextlib.closing(data_loading.batches(self.splits.train, lambda step: rows, range(1), "cpu")) as read:
            inputs, targets = next(read)
        outputs = forward(self.task, model.eval(), inputs, Arithmetic())

        def loss_of_examples(rows: slice) -> float:
            return float(
                task_checks.compute_loss(
                    self.task, outputs[rows], targets[rows], label_smoothing=recipe.label_smoothing
                )
            )

        count, whole = len(rows), loss_of_examples(slice(None))
        for cut in sorted({1, count // 4, count // 2, count - 1} & set(range(1, count))):
            first, others = loss_of_examples(slice(cut)), loss_of_examples(slice(cut, None))
            parts = (cut * first + (count - cut) * others) / count
            if abs(whole - parts) > _EQUAL * max(abs(whole), abs(first), abs(others)):  # False for NaN
                raise TaskError(
                    f"the loss of {self.task.name} is no mean over the examples of a batch ({whole:g} for {count}"
                    f" examples, {parts:g} from its parts), so that several devices, each with a part of the batch,"
                    " would train something else: train it on one (--devices 1), or divide by the number of examples in"
                    " its loss"
                )


def _pick_different_targets(targets: Tensor, count: int) -> Tensor:
    """Return the indices of `count` examples, sorted by target, among which as many targets as possible occur."""
    values = targets.flatten(1).sum(1, dtype=torch.float64) if targets.dim() > 1 else targets
    order = values.argsort(stable=True)
    alike = torch.unique_consecutive(values[order], return_counts=True)[1]
    nth = torch.arange(len(order)) - (alike.cumsum(0) - alike).repeat_interleave(alike)  # position within its target
    places = nth.argsort(stable=True)[: max(count, len(alike))]
    count = min(count, len(places))
    places = places[torch.arange(count) * len(places) // count]
    return order[places.sort().values]


class SupervisedSession(Session):
    """Yields training batches and computes their losses; seed, epoch and step determine order and augmentation."""

    def __init__(self, task: Task, train: Split, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> None:
        self.task, self.recipe, self.seed, self.arithmetic = task, recipe, seed, arithmetic
        device = arithmetic.device
        self._examples = train if train.reader else Split(train.inputs.to(device), train.targets.to(device))
        own = train.reader.augmentations if train.reader else ()
        self._read_with = tuple(name for name in recipe.augment if name in own)
        self._augment = tuple(name for name in recipe.augment if name not in own)
        self._order = build_data_order(train, seed, recipe.batch).batch
        self._generator = torch.Generator()

    def batches(self, steps: range) -> Generator[Any, None, None]:
        """Yield the batches of `steps` on the device, augmented, with inputs in the format of the data set."""
        device = self.arithmetic.device
        found = data_loading.batches(
            self._examples, self._order, steps, device, augment=self._read_with, seed=self.seed
        )
        with contextlib.closing(found):
            for step, (inputs, targets) in zip(steps, found, strict=True):
                yield (self._augment_inputs(inputs, step) if self._augment else inputs), targets

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        outputs = forward(self.task, model, inputs, self.arithmetic)
        return task_checks.compute_loss(self.task, outputs, targets, label_smoothing=self.recipe.label_smoothing)

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        return forward(self.task, model, inputs, self.arithmetic), targets

    def _augment_inputs(self, inputs: Tensor, step: int) -> Tensor:
        self._generator.manual_seed(mix_seeds(self.seed, "augment", step))
        return self.task.augment(inputs, self._augment, self._generator)


class SupervisedPart(Supervised):
    """Does the work of `Supervised` in one of several processes (ranks), each with a part of every batch."""

    def __init__(self, task: Task, splits: Splits, ranks: Ranks) -> None:
        super().__init__(task, splits)
        self._ranks = ranks

    def session(self, recipe: Recipe, seed: int, arithmetic: Any) -> SupervisedSession:
        return PartSession(self.task, self.splits.train, recipe, seed, arithmetic, self._ranks)

    def evaluate(self, model: nn.Module, split: str, arithmetic: Any) -> dict[str, float]:
        """Return the metrics of a split; each rank measures a part, and the sums are added in the order of ranks."""
        examples: Split = getattr(self.splits, split)
        place = place_of_part(len(examples), self._ranks.rank, self._ranks.world)
        rows = slice(place.first, place.first + place.own)
        own = replace(examples, inputs=examples.inputs[rows], targets=examples.targets[rows])
        found = self._sum_measures(model, own, arithmetic) if place.own else {}
        if self._ranks.in_parts:
            self._repeat_model_calls(model, examples, place.own, arithmetic)
        sums: dict[str, float] = {}
        for each in self._ranks.gather(found):
            for name, value in each.items():
                sums[name] = sums.get(name, 0.0) + value
        return self.task.summary(sums, len(examples))

    def _repeat_model_calls(self, model: nn.Module, examples: Split, own: int, arithmetic: Any) -> None:
        """Call the network until this rank has called it as often as the first rank; `own` counts its examples.

        With sharded parameters all ranks must call the network together.
        """
        size = examples.reader.batch if examples.reader else data_loading.EVALUATED
        most = place_of_part(len(examples), 0, self._ranks.world).own
        one = replace(examples, inputs=examples.inputs[:1], targets=examples.targets[:1])
        for _ in range(-(-most // size) + (-own // size)):
            self._sum_measures(model, one, arithmetic)


class PartSession(SupervisedSession):
    """Yields one rank's parts of the batches of a `SupervisedSession`: inputs, targets and place in the batch."""

    def __init__(
        self, task: Task, train: Split, recipe: Recipe, seed: int, arithmetic: Arithmetic, ranks: Ranks
    ) -> None:
        super().__init__(task, train, recipe, seed, arithmetic)
        self._ranks, self._whole = ranks, len(train)

    def batches(self, steps: range) -> Generator[Any, None, None]:
        found = data_loading.batches(
            self._examples,
            lambda step: part_of_batch(self._order(step), self._ranks.rank, self._ranks.world),
            steps,
            self.arithmetic.device,
            augment=self._read_with,
            seed=self.seed,
            first=lambda step: self._part_of_step(step).first,
        )
        with contextlib.closing(found):
            for step, (inputs, targets) in zip(steps, found, strict=True):
                place = self._part_of_step(step)
                if self._augment:
                    with self._ranks.drawing(place):
                        inputs = self._augment_inputs(inputs, step)
                yield inputs, targets, place

    def _part_of_step(self, step: int) -> PartOfBatch:
        done = step % steps_per_epoch(self._whole, self.recipe.batch) * self.recipe.batch
        return place_of_part(min(self.recipe.batch, self._whole - done), self._ranks.rank, self._ranks.world)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of the part, weighted so that the mean over all ranks is the loss of the batch."""
        inputs, targets, place = batch
        with self._ranks.drawing(place):
            found = super().loss(model, (inputs, targets))
        weighted: Tensor = found * (place.own * self._ranks.world / place.whole)
        return weighted

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        with self._ranks.drawing(batch[2]):
            return super().outputs(model, batch[:2], of)


@torch.no_grad()
def evaluate(task: Task, course: Course, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
    """Return the metrics of the model on a split, in evaluation mode; afterwards restore the model's mode."""
    training = model.training
    model.eval()
    found = task_checks.check_metrics(task, course.evaluate(model, split, arithmetic))
    model.train(training)
    return found


def forward(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Return the model's outputs as float32 or float64, for inputs in the format of the data set."""
    prepared = task_checks.prepare_inputs(task, inputs)
    if arithmetic.channels_last and prepared.dim() == 4:
        prepared = prepared.contiguous(memory_format=torch.channels_last)
    with arithmetic.autocast():
        outputs = task_checks.compute_outputs(task, model, prepared)
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
