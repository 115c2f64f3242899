"""The task protocol: data, loss, metric and recipe of networks; readers from disk; batches split over processes."""

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
    """The request for a task; `catalogue.create_task(spec)` creates the same task in any process."""

    name: str
    """Name of a built-in task, or module:object."""
    model: str | None = None
    """Name of the network; None is the default of the task."""
    options: tuple[tuple[str, str], ...] = ()
    """Pairs of name and value, as text."""


@dataclass(frozen=True)
class Split:
    """Examples as they are stored: images are uint8 [n, channels, height, width], which `task.prepare` scales.

    Examples:
        >>> digits = tk.task("digits").load()
        >>> len(digits.test), digits.test.inputs.shape, digits.test.inputs.dtype
        (400, torch.Size([400, 1, 8, 8]), torch.uint8)
    """

    inputs: Tensor
    """[n, ...] stored inputs; with a `reader`, the row numbers to request from it."""
    targets: Tensor
    """[n, ...]"""
    reader: Reader | None = None
    """Reads the inputs of a split that is streamed from disk."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of examples: for training, for choices during a search, and for results.

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

    Every task overrides `build`. Tasks with independent examples also override `load`, `loss`, `measure` and `summary`
    (`Classification` defines the last three). Other tasks, such as language modelling, override `course` instead.
    A task holds settings only; its data is loaded once a process, when it is used. Data, and models under the same
    seed of torch, must be the same every time, because results are stored under the `key` of the task.

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
    """Set by `catalogue.get`; a task without it cannot be created in another process."""
    replayable: ClassVar[bool] = False
    """Whether training steps can be captured in CUDA graphs: `prepare`, the model and `loss` run the same operations at
    every step, without branches on values of tensors or state in Python. Not inherited: each subclass sets it."""

    def key(self) -> Mapping[str, object]:
        """Return JSON values that identify the results of this task: name, version, options, model.

        Tasks that are named module:object, and objects for `tk.run` or a search, need no key: `catalogue.get` and
        `resolve_task` add one from source code and options.

        Raises:
            TaskError: if the class does not override it.
        """
        kind = type(self)
        raise TaskError(
            f"the task {kind.__name__} has no key(), which tells its numbers from another's: name it"
            f' tk.task("{kind.__module__}:{kind.__qualname__}", options={{…}}), which has one, or write key()'
        )

    def of_replicate(self, number: int) -> Mapping[str, str]:
        """Return options of the task for replicate `number` (from 0), if replicates differ, as in their data split.

        See `catalogue.of_replicate`.
        """
        return {}

    def untrained(self) -> Mapping[str, str]:
        """Return options of the task with random instead of pre-trained weights; empty if weights are random anyway.

        The control `random_reinit` needs a network without the pre-trained weights, see `catalogue.untrained`.
        """
        return {}

    def build(self) -> nn.Module:
        """Return a new model, pre-trained or with weights from torch's global random state, which the lab seeds."""
        raise NotImplementedError

    def narrower(self, parameters: int) -> str | None:
        """Return the name of the widest network of this kind with at most `parameters` parameters, or None.

        `evidence.verify` trains it as a control: a dense network of the size of the ticket.
        """
        return None

    def course(self, data: Path | None = None) -> Course | None:
        """Return the course of a task whose examples are not independent; None if `load` gives independent examples.

        Args:
            data: folder of data sets from the command line.
        """
        return None

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Return the number of training steps in an epoch of `examples` examples; the last batch may be smaller."""
        return -(-examples // recipe.batch)

    def unfit(self, key: Mapping[str, object]) -> str:
        """Return why networks trained on the task with this key cannot be used for this task; empty if they can.

        For example, a language model with another vocabulary of the same size.
        """
        return ""

    def scored(self, size: int) -> int:
        """Return the batch size for scores, at most `size`; smaller if such batches do not fit into memory."""
        return size

    def load(self, data: Path | None = None) -> Splits:
        """Return the examples; `data` is the folder of data sets from the command line."""
        raise NotImplementedError

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return the inputs of the model for stored inputs [n, ...], on the same device and without randomness."""
        return inputs

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return `count` inputs of the model, for compiling, exporting and timing.

        By default the first of the validation split. Tasks that know the shape of inputs need not read data.
        """
        split = self.load(data).validation
        first = split.inputs[:count]
        return self.prepare(first if split.reader is None else split.reader.request(first)())

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Return stored inputs [n, ...] after the random augmentations `names`, drawn from `generator` (on the CPU).

        Raises:
            TaskError: for an unknown augmentation.
        """
        if names:
            raise TaskError(f"the task {self.name} has no augmentation {names[0]!r}: choose a recipe without it")
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch, a scalar; `label_smoothing` is that of the recipe."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return sums over a batch, which are added up over batches for `summary`."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Return the metrics of a split with `count` examples from the sums of `measure`; one is `metric.name`."""
        raise NotImplementedError


def json_key(task: Task) -> dict[str, Any]:
    """Return the key of a task as records store it: converted to JSON, with lists instead of tuples."""
    key: dict[str, Any] = json.loads(json.dumps(dict(task.key())))
    return key


Inputs = Tensor | tuple[Any, ...]
"""Inputs of a model: a tensor, or a tuple of arguments."""


class Arithmetic(Protocol):
    """Device and number format of networks; the part of `lab.training.precision.Arithmetic` that a course needs."""

    @property
    def device(self) -> str:
        """Device type, cpu or cuda."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a context for a forward pass; convert outputs to float32 before computing a loss."""


class Session:
    """One training run: a batch for each step, its loss, and state between steps.

    A subclass overrides `loss`, and `batches` unless the data of a step depend on the network (as in reinforcement
    learning). Results must depend only on the arguments of the session, the step, the model and the state. Before each
    `loss` the lab seeds torch's global generators by (seed, step), also for dropout.
    """

    copies: str = ""
    """Prefix of state entries that are copies of parameters; the rest of the name is that of the parameter. Masks and
    removed units apply to the copies too."""

    gathers: bool = False
    """Whether each process has only a part of the state, so that all processes must call `state` together."""

    def batches(self, steps: range) -> Generator[Any, None, None]:
        """Yield the batch of each step, by default the number of the step; the caller closes the generator."""
        yield from steps

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch, a scalar to differentiate; state for the next step is detached."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        """Return the logits [n, classes, ...] of a model for a batch, and the targets [n, ...].

        Args:
            of: name of the network, if several networks see the same batches; each has a separate state.

        Raises:
            TaskError: if the task has no classes.
        """
        raise TaskError("this task has no classes, whose scores could be compared: train gates for its own loss")

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state for the next step, on the CPU; empty if there is none."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of `state`, so that the next step gives the same bits as without interruption."""

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        """Return state entry -> (its dimension, parameter, dimension of the parameter) that hold the same units.

        If units of the network are removed, the entry is reduced like the parameter; in a masked network it is 0 at
        the removed units.
        """
        return {}


_NOT_SPLITTABLE = (
    "this task's steps are not cut among several devices: what one learns from depends on the step before, or its"
    " batches are no examples that are seen each on its own; train it on one (--devices 1)"
)


class Course:
    """Data, training and evaluation of a task without independent examples. `few` need not be overridden."""

    def sizes(self) -> dict[str, int]:
        """Return the number of examples of ``train``, ``validation`` and ``test``, all positive."""
        raise NotImplementedError

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """Return a new training run; `load_state` resumes an earlier one at any step.

        Args:
            seed: seed of the order of the data and of everything else that is random.
        """
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """Return the metrics on ``train``, ``validation`` or ``test``, including that of the task.

        A pure function of its arguments. The caller sets evaluation mode and disables gradients.
        """
        raise NotImplementedError

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Return training batches for a score, on the device of the model.

        Args:
            model: the network to score; in reinforcement learning its actions decide the data.
            count: number of batches; fewer if there are not enough examples.
            size: examples of a batch.
            seed: seed of the random choice.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch of `sample`, in the number format of the model and without state."""
        raise NotImplementedError

    def count(self, batch: Any) -> int:
        """Return the number of examples in a batch of `sample`."""
        raise NotImplementedError

    def inputs(self, count: int) -> Inputs:
        """Return inputs of the model for at most `count` examples, on the CPU, for tracing the model."""
        raise NotImplementedError

    def cut(self, ranks: Ranks) -> Course:
        """Return the course for one of several processes that train one network together.

        Each batch is split over the processes. The mean of their losses is the loss of the whole batch, and random
        draws depend on the step and on the position of an example in the whole batch. `evaluate` returns the metrics of
        the whole split in every process.

        Raises:
            TaskError: if the task can only be trained in one process.
        """
        raise TaskError(_NOT_SPLITTABLE)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        """Check that training by `world` processes equals training by one.

        Args:
            model: a new model on the CPU.

        Raises:
            TaskError: if the loss is not a mean over examples, or a batch has fewer examples than processes.
        """
        raise TaskError(_NOT_SPLITTABLE)

    def few(self, count: int) -> Course:
        """Return the course with few training examples, to measure the cost of a step; by default unchanged."""
        return self


class Classification(Task):
    """A task whose targets are classes int64 [n] and whose outputs are logits [n, classes].

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("accuracy", "%", higher_is_better=True)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross entropy in nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the number of correct examples and the summed cross entropy, in float32 or higher precision."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return {
            "correct": (outputs.argmax(1) == targets).sum(),
            "loss": F.cross_entropy(precise, targets, reduction="sum"),
        }

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Return accuracy in per cent and mean cross entropy in nats."""
        return {"accuracy": 100.0 * sums["correct"] / count, "loss": sums["loss"] / count}


class Reader(Protocol):
    """Reads examples from disk on request, so that a split need not fit into memory."""

    @property
    def workers(self) -> int:
        """Number of reading processes; 0 reads in the training process."""

    @property
    def batch(self) -> int:
        """Batch size of evaluation."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Augmentations that the reader applies; `Task.augment` applies the others."""

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the stored inputs [b, ...] of `rows` [b], in this process or another.

        The function is sent to reading processes with every batch, so it must be small and picklable. Its result must
        depend only on these arguments; a `TicketryError` reaches the user.

        Args:
            augment: augmentations to apply, of `augmentations`. Their draws depend on `seed` and on the position of an
                example in the batch.
            first: position of the first of `rows` in the batch; passed only if several devices split a batch.
        """


@runtime_checkable
class Sharded(Protocol):
    """Further members of a `Reader` whose examples are stored in shards, which are read fastest one after the other."""

    @property
    def window(self) -> int:
        """Number of shards that are mixed; an epoch reads from no more shards at a time."""

    def shards(self, rows: Tensor) -> Tensor:
        """Return the shard number of each of `rows` [b], from 0: int64 [b]."""


@dataclass(frozen=True)
class PartOfBatch:
    """The examples of a batch in one process: `own` examples from position `first` on, of `whole` examples in all."""

    first: int
    own: int
    whole: int


def place_of_part(examples: int, rank: int, world: int) -> PartOfBatch:
    """Return the consecutive examples of a batch for process `rank` of `world`.

    All processes get the same number; if `examples` is not a multiple of `world`, the first ones get one more.
    """
    each, more = divmod(examples, world)
    return PartOfBatch(rank * each + min(rank, more), each + (rank < more), examples)


class Ranks(Protocol):
    """One of several processes that train one network together, and its connection to the others."""

    rank: int
    """Number of this process, from 0."""
    world: int
    """Number of processes."""
    in_parts: bool
    """Whether parameters are sharded, so that all processes must call the network equally often."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in their order; all processes must call it."""

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        """Return a context in which random draws for the examples of a part are those of the whole batch."""
