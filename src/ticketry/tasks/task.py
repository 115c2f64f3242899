"""The task protocol: a network's data, loss, metric and recipe; readers from disk; parts of batches."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.records.metric import Metric
from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True)
class Spec:
    """The request that made a task; `catalogue.create_task(spec)` makes the same task again, in any process."""

    name: str
    """A built-in task's name, or module:object."""
    model: str | None = None
    """The network asked for; None is the task's own choice."""
    options: tuple[tuple[str, str], ...] = ()
    """Names and values as text, k=v."""


@dataclass(frozen=True)
class Split:
    """Examples, in stored form: images are uint8 [n, channels, height, width], `task.prepare` scales them.

    Examples:
        >>> digits = tk.task("digits").load()
        >>> len(digits.test), digits.test.inputs.shape, digits.test.inputs.dtype
        (400, torch.Size([400, 1, 8, 8]), torch.uint8)
    """

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
    """Three disjoint sets of examples: methods train on one, searches look at the second, results are on the third.

    Examples:
        >>> digits = tk.task("digits").load()
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1197, 200, 400)
    """

    train: Split
    validation: Split
    test: Split


class Task:
    """Base of all tasks. A subclass sets the attributes and overrides the methods.

    `build` is a must. A task whose examples are seen each on its own has `load`, `loss`, `measure` and `summary`
    besides; `Classification` has the last three. Any other kind has `course` instead, see
    `Course`. A task holds settings only; data is loaded where it is used, once a process. It must give the same
    data and, under the same seed of torch, the same model every time: results are stored under its `key`.

    Examples:
        >>> class Circles(tk.Task):
        ...     name, metric = "circles", tk.Metric("accuracy", "%")
        ...     recipe = tk.Recipe(length="5ep", batch=50, lr=0.5)
        ...     def key(self):
        ...         return {"name": self.name, "version": 1}
        ...     def build(self):
        ...         return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        ...     def load(self, data=None):
        ...         x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        ...         parts = [tk.Split(part, (part.norm(dim=1) > 1.2).long()) for part in x.split([300, 100, 100])]
        ...         return tk.Splits(*parts)
        ...     def loss(self, outputs, targets, *, label_smoothing=0.0):
        ...         return nn.functional.cross_entropy(outputs, targets)
        ...     def measure(self, outputs, targets):
        ...         return {"right": (outputs.argmax(1) == targets).sum()}
        ...     def summary(self, sums, count):
        ...         return {"accuracy": 100 * sums["right"] / count}
        >>> task = Circles()
        >>> task.steps_per_epoch(300, task.recipe), task.example(4).shape
        (6, torch.Size([4, 2]))
        >>> task.loss(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))  # log 2
        tensor(0.6931)
        >>> task.measure(task.build()(task.example(4)), torch.tensor([2, 2, 2, 2]))  # no such class
        {'right': tensor(0)}
        >>> task.summary({"right": 75}, 100)
        {'accuracy': 75.0}
        >>> with tk.Lab() as lab:
        ...     trained = lab.train(lab.segment(task, start=0))
        >>> trained.metrics["test"]["accuracy"] > 80
        True
        >>> task.of_replicate(1), task.untrained(), task.narrower(20), task.unfit({}), task.scored(64), task.course()
        ({}, {}, None, '', 64, None)
        >>> task.augment(task.prepare(torch.ones(1, 2)), ("flip",), torch.Generator())
        Traceback (most recent call last):
            ...
        ticketry.errors.TaskError: the task circles has no augmentation 'flip': choose a recipe without it
    """

    name: str
    metric: Metric
    recipe: Recipe
    spec: Spec | None = None
    """Set by `catalogue.get`; a task without one cannot be made again in another process."""
    replayable: ClassVar[bool] = False
    """Whether `prepare`, the model and `loss` do the same at every step: no branch on a tensor's value, no count that
    Python keeps, nothing read from elsewhere. On a GPU such steps are replayed from CUDA graphs, with the same result
    in less time. A class says it of itself; its subclasses say it again."""

    def key(self) -> Mapping[str, object]:
        """Return what identifies this task's numbers, as JSON values: name, version, options, model.

        A user's own task that is named module:object needs none: `catalogue.get` adds its source and its options; nor
        does an object that is given to `tk.run` or a search, see `resolve_task`. Else it is a `TaskError` not to
        have one.
        """
        kind = type(self)
        raise TaskError(
            f"the task {kind.__name__} has no key(), which tells its numbers from another's: name it"
            f' tk.task("{kind.__module__}:{kind.__qualname__}", options={{…}}), which has one, or write key()'
        )

    def of_replicate(self, number: int) -> Mapping[str, str]:
        """The options that make the task as replicate `number` (from 0) has it; none where all have the same.

        For data with several splits: each replicate may have another, see `catalogue.of_replicate`.
        """
        return {}

    def untrained(self) -> Mapping[str, str]:
        """The options that make the task whose `build` draws all weights; none where it does so anyway.

        For a task that begins with weights which were trained before: `random_reinit`, the control of a ticket's first
        weights, is to begin without them, see `catalogue.untrained`.
        """
        return {}

    def build(self) -> nn.Module:
        """A new model, its weights drawn from torch's global random state (the lab seeds it), or trained before."""
        raise NotImplementedError

    def narrower(self, parameters: int) -> str | None:
        """Name the largest network of this kind with at most so many parameters, as the task's model.

        A control of tickets (`evidence.verify`): at most as large, but dense. None, as here, if no such
        network is defined.
        """
        return None

    def course(self, data: Path | None = None) -> Course | None:
        """The task with its data at hand; None, as here, for one that is made of the examples of `load`.

        `data` is the folder asked for on the command line.
        """
        return None

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Training steps in an epoch of so many `examples` in batches of the `recipe`; the last may be smaller."""
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
        """Random changes, by `names`, of a batch of stored `inputs` [n, ...]; `TaskError` for a name not known here.

        Every draw is from `generator`, a CPU generator.
        """
        if names:
            raise TaskError(f"the task {self.name} has no augmentation {names[0]!r}: choose a recipe without it")
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar, by outputs and targets [n, ...]; label_smoothing is the recipe's."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch (outputs [n, ...], targets [n, ...]) of what `summary` needs; added up over batches."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """The metrics of a split of `count` examples from the added sums; has `metric.name` among its keys."""
        raise NotImplementedError


def written_key(task: Task) -> dict[str, Any]:
    """The task's key as records have it: after JSON, which makes lists of tuples."""
    key: dict[str, Any] = json.loads(json.dumps(dict(task.key())))
    return key


Inputs = Tensor | tuple[Any, ...]
"""A tensor, or a tuple of a model's arguments."""


class Arithmetic(Protocol):
    """Device and number format of networks: what a course needs of `lab.training.precision.Arithmetic`."""

    @property
    def device(self) -> str:
        """cpu or cuda."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around one forward pass; outputs are to be taken to float32 before a loss is computed of them."""


class Session:
    """One training: a batch for each step, its loss, and what is carried from step to step.

    A subclass overrides `loss`, and `batches` unless what a step learns from depends on the network. Every number is a
    function of the arguments that the session was made with, the step, the model, and the state: before each `loss`
    torch's global generators are seeded by (seed, step), so that dropout and the like are too.
    """

    copies: str = ""
    """Prefix of the names of state entries that are copies of parameters; the rest of such a name is the parameter's.
    Copies lack the weights that a mask removes, and are cut with the parameter where units are."""

    gathers: bool = False
    """Whether this process has but a part of what is carried, so that all call `state` together."""

    def batches(self, steps: range) -> Generator[Any, None, None]:
        """Yield the batch of each step; closed when no more are needed. By default the step itself."""
        yield from steps

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, a scalar whose gradient trains the model. What it carries on is detached from it."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        """Scores of classes [n, classes, ...] that a model gives for a batch, and the targets [n, ...].

        Args:
            of: which of several networks it is that see the same batches; each carries on what is its own.

        Raises:
            TaskError: as here, for a task without classes.
        """
        raise TaskError("this task has no classes, whose scores could be compared: train gates for its own loss")

    def state(self) -> dict[str, Tensor]:
        """A copy of what is carried to the next step, on the CPU; empty where nothing is."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave: the next step is then bit for bit what it would have been."""

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        """Entry of the state -> (its dimension, a parameter of the model, that one's dimension): of the same units.

        Where a network is trained without some of its units, the entry is cut as the parameter is; in a whole one
        there is 0 in their place.
        """
        return {}


_UNCUT = (
    "this task's steps are not cut among several devices: what one learns from depends on the step before, or its"
    " batches are no examples that are seen each on its own; train it on one (--devices 1)"
)


class Course:
    """A task with its data at hand. A subclass overrides the methods; `few` is optional."""

    def sizes(self) -> dict[str, int]:
        """Examples in ``train``, ``validation`` and ``test``: all above 0."""
        raise NotImplementedError

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """Return a new training at the start of any step; `load_state` resumes an earlier one.

        Args:
            seed: of the order of the data and of all else that is drawn.
        """
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """The metrics on ``train``, ``validation`` or ``test``; the task's own metric is among them.

        A pure function of its arguments. The model is in evaluation mode, and no gradients are recorded.
        """
        raise NotImplementedError

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Training batches for a score, on the model's device; fewer where there are not as many examples.

        Args:
            model: what is scored, where its deeds decide what it sees.
            count, size: of batches, and of examples in each.
            seed: what is drawn is a function of it (and of the model) alone.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch of `sample`, in the model's own number format; carries nothing on."""
        raise NotImplementedError

    def count(self, batch: Any) -> int:
        """Examples in a batch of `sample`."""
        raise NotImplementedError

    def inputs(self, count: int) -> Inputs:
        """Return model inputs for so many examples (or fewer), on the CPU, for tracing the model."""
        raise NotImplementedError

    def cut(self, ranks: Ranks) -> Course:
        """The course as one of several processes has it that train one network together.

        A batch is cut among them; the mean over all ranks of the losses of its parts is the loss of the whole batch,
        and what is drawn at random is a function of the step and of an example's place in the whole batch. `evaluate`
        gives every rank the metrics of the whole split.

        Raises:
            TaskError: as here, for a task that is trained in one process only.
        """
        raise TaskError(_UNCUT)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        """Make sure that training by `world` processes equals training by one.

        Args:
            model: a new one, on the CPU.

        Raises:
            TaskError: if it does not: the loss is no mean over examples, or there are fewer of these than processes.
        """
        raise TaskError(_UNCUT)

    def few(self, count: int) -> Course:
        """Return the course with so few training examples, to measure the cost of a step; by default itself."""
        return self


class Classification(Task):
    """A task whose targets are classes int64 [n] and whose outputs are logits [n, classes].

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("accuracy", "%", higher_is_better=True)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross entropy, in nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The number of correct examples and the summed cross entropy, the latter in float32 at least."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return {
            "correct": (outputs.argmax(1) == targets).sum(),
            "loss": F.cross_entropy(precise, targets, reduction="sum"),
        }

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Accuracy in per cent and mean cross entropy in nats."""
        return {"accuracy": 100.0 * sums["correct"] / count, "loss": sums["loss"] / count}


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
        """Augmentations of a recipe that are done while reading; the rest is left to `Task.augment`."""

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the stored inputs [b, ...] of `rows` [b], in this process or another.

        It goes to worker processes with every batch, so it must be small and can be pickled. What it returns is a
        function of the arguments alone: `augment` names some of `augmentations`, and all their draws come from `seed`
        and an example's position in the batch, which is `first` for the first of `rows`. `first` is given only where
        several devices train one network, and each reads its part of the batch: a reader without it reads for one.
        A `TicketryError` that it raises reaches the user.
        """


@runtime_checkable
class Sharded(Protocol):
    """Further members of a `Reader` whose examples are stored in shards that are best read one after the other."""

    @property
    def window(self) -> int:
        """Shards that are mixed: an epoch reads from no more of them at a time."""

    def shards(self, rows: Tensor) -> Tensor:
        """int64 [b]: the number of the shard of each of `rows` [b], from 0 on."""


@dataclass(frozen=True)
class PartOfBatch:
    """Which examples of a batch one of several processes has: `own` of them, from place `first` on, of `whole`."""

    first: int
    own: int
    whole: int


def place_of_part(examples: int, rank: int, world: int) -> PartOfBatch:
    """The examples of a batch that one of `world` processes has: a pure function, and together they are the batch.

    Consecutive ones, as many for each; where `examples` is no multiple of `world`, one more for each of the first.
    """
    each, more = divmod(examples, world)
    return PartOfBatch(rank * each + min(rank, more), each + (rank < more), examples)


class Ranks(Protocol):
    """The processes that train one network together, as one of them sees them."""

    rank: int
    """Its number, from 0 on."""
    world: int
    """How many there are."""
    in_parts: bool
    """Whether each has a part of every parameter, so that all have to call the network equally often."""

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's value, in their order; all of them call it."""

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        """Around what draws random numbers for the examples of a part: they are those of the whole batch."""
