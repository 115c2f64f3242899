"""Tasks: data, network, loss, metric and recipe; readers from disk; batches split over processes."""

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
    """A request for a task, from which `catalogue.create_task` creates the same task in any process."""

    name: str
    """Name of a built-in task, or module:object."""
    model: str | None = None
    """Name of the network; None means the task's default network."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of the task, as pairs of name and value, both text."""


@dataclass(frozen=True)
class Split:
    """A set of examples in stored form, such as images in uint8; `Task.prepare` converts them to model inputs.

    Examples:
        >>> digits = tk.task("digits").load()
        >>> len(digits.test), digits.test.inputs.shape, digits.test.inputs.dtype
        (400, torch.Size([400, 1, 8, 8]), torch.uint8)
    """

    inputs: Tensor
    """[n, ...] stored inputs; if the split has a `reader`, the row numbers to request from the reader."""
    targets: Tensor
    """[n, ...] targets of the examples."""
    reader: Reader | None = None
    """Reads the inputs from disk; None if they are in memory."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of examples: for training, for choices during a search, and for final results.

    Examples:
        >>> digits = tk.task("digits").load()
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1197, 200, 400)
    """

    train: Split
    validation: Split
    test: Split


class Task:
    """Base class of all tasks. A subclass sets the attributes and overrides the methods.

    Every task overrides `build`. Tasks with independent examples also override `load`, `loss`, `measure` and `summary`
    (`Classification` defines the last three). Other tasks, such as language modelling, override `course` instead.
    A task contains settings only; each process loads the data when it is first used. Results are stored under the `key`
    of the task, so `load` must always return the same data, and `build` the same model for the same seed of torch.

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
    """The request for this task, set by `catalogue.get`; without a request, other processes cannot create the task."""
    replayable: ClassVar[bool] = False
    """Whether training steps can be captured in CUDA graphs. If True, `prepare`, the model and `loss` must run the same
    operations at every step, without branches on values of tensors and without state in Python. Subclasses do not
    inherit the value."""

    def key(self) -> Mapping[str, object]:
        """Return JSON values (name, version, options, model) that identify the task in stored results.

        Tasks that are named module:object, and task objects for `tk.run`, need not override this method, since
        `catalogue.get` and `resolve_task` compute a key from source code and options. By default, raise `TaskError`.
        """
        kind = type(self)
        raise TaskError(
            f"the task {kind.__name__} has no key(), which identifies its results: name it"
            f' tk.task("{kind.__module__}:{kind.__qualname__}", options={{…}}), which has one, or write key()'
        )

    def of_replicate(self, number: int) -> Mapping[str, str]:
        """Return options of the task for replicate `number` (from 0); empty if all replicates use the same task.

        For example, each replicate may have another split of the data. See `catalogue.of_replicate`.
        """
        return {}

    def untrained(self) -> Mapping[str, str]:
        """Return options that give the task random instead of pre-trained weights; empty if weights are random anyway.

        The control `random_reinit` trains a ticket's mask from random weights, see `catalogue.with_random_weights`.
        """
        return {}

    def build(self) -> nn.Module:
        """Return a new model, pre-trained or with weights from torch's global random state, which the caller seeds."""
        raise NotImplementedError

    def narrower(self, parameters: int) -> str | None:
        """Return the name of the widest variant of the task's network with at most `parameters` parameters, or None.

        `evidence.verify` trains this network as a control: a dense network with as many parameters as the ticket.
        """
        return None

    def course(self, data: Path | None = None) -> Course | None:
        """Return how to train and evaluate if examples are not independent; None if `load` gives independent examples.

        `data` is the folder of data sets from the command line.
        """
        return None

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Return the number of training steps in an epoch of `examples` examples; the last batch may be smaller."""
        return -(-examples // recipe.batch)

    def unfit(self, key: Mapping[str, object]) -> str:
        """Return why networks trained on the task with `key` cannot be used for this task; empty if they can.

        For example, a language model cannot be used with another vocabulary, even if it has the same size.
        """
        return ""

    def scored(self, size: int) -> int:
        """Return the batch size for importance scores: `size`, or less if `size` examples need too much memory."""
        return size

    def load(self, data: Path | None = None) -> Splits:
        """Return the examples; `data` is the folder of data sets from the command line."""
        raise NotImplementedError

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return the model's inputs for stored inputs [n, ...], on the same device and without random numbers."""
        return inputs

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return `count` inputs of the model, for compiling, exporting and timing.

        By default, these are the first inputs of the validation split. Override this method if the shape of inputs is
        known without reading data.
        """
        split = self.load(data).validation
        first = split.inputs[:count]
        return self.prepare(first if split.reader is None else split.reader.request(first)())

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Return stored inputs [n, ...] after the augmentations `names`, which draw from `generator` (on the CPU).

        Raise `TaskError` for an unknown augmentation.
        """
        if names:
            raise TaskError(f"the task {self.name} has no augmentation {names[0]!r}: choose a recipe without it")
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch, a scalar; `label_smoothing` comes from the training recipe."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return sums over the examples of a batch, by name; `summary` gets the same sums over all batches."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Return the metrics of `count` examples, which include `metric.name`, from the added `sums` of `measure`."""
        raise NotImplementedError


def json_key(task: Task) -> dict[str, Any]:
    """Return the key of a task in the form in which records store it: JSON values, with lists instead of tuples."""
    key: dict[str, Any] = json.loads(json.dumps(dict(task.key())))
    return key


Inputs = Tensor | tuple[Any, ...]
"""The inputs of a model: a tensor, or a tuple of arguments."""


class Arithmetic(Protocol):
    """The device and number format with which a `Course` trains and evaluates networks."""

    @property
    def device(self) -> str:
        """The type of the device: ``cpu`` or ``cuda``."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context for a forward pass; convert outputs to float32 before computing a loss."""


class Session:
    """A training run, which gives the batch and the loss of each step, and may have state between steps.

    A subclass overrides `loss`; it also overrides `batches`, unless the data of a step depend on the network (as in
    reinforcement learning). Results must depend only on the arguments of `Course.session`, the step, the model and the
    state. Before each call of `loss`, torch's global generators are seeded by (seed, step), also for dropout.
    """

    copies: str = ""
    """Prefix of the names of state entries that are copies of parameters; the parameter's name follows the prefix.
    Masks and removed units apply to these copies too."""

    gathers: bool = False
    """Whether each process has only a part of the state. All processes must then call `state` together."""

    def batches(self, steps: range) -> Generator[Any, None, None]:
        """Yield the batch of each step, by default the step's number; the caller closes the generator."""
        yield from steps

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch, a scalar to differentiate; detach the state that is kept for the next step."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        """Return the logits [n, classes, ...] of a model for a batch, and the targets [n, ...].

        If several networks see the same batches, `of` names the network, which has a separate state. Raise `TaskError`
        if the task has no classes.
        """
        raise TaskError("this task has no classes, whose scores could be compared: train gates for its own loss")

    def state(self) -> dict[str, Tensor]:
        """Return a copy, on the CPU, of the state that the next step needs; empty if steps have no state."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of the method `state`; the next step then gives the same bits as without interruption."""

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        """Return which state entries have a dimension with one element per network unit, such as an LSTM's state.

        The result maps the name of an entry to (dimension of the entry, name of a parameter, dimension of the parameter
        with the same units). If units of the network are removed, the entry loses the same units. In a masked network,
        the entry is 0 at removed units.
        """
        return {}


_NOT_SPLITTABLE = (
    "this task's steps are not cut among several devices: what one learns from depends on the step before, or its"
    " batches are no examples that are seen each on its own; train it on one (--devices 1)"
)


class Course:
    """Trains and evaluates on a task whose examples are not independent, such as a text."""

    def sizes(self) -> dict[str, int]:
        """Return the numbers of examples, all positive, of the splits ``train``, ``validation`` and ``test``."""
        raise NotImplementedError

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """Return a new training run; to resume an earlier run at any step, call `load_state` of the result.

        `seed` decides the order of the data and everything else that is random.
        """
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """Return the metrics on a split (``train``, ``validation`` or ``test``), including the metric of the task.

        The result must depend only on the arguments. The caller sets evaluation mode and disables gradients.
        """
        raise NotImplementedError

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Return `count` random training batches of `size` examples for a score, on the device of the model.

        The result has fewer batches if there are not enough examples. In reinforcement learning, the data depend on the
        actions of the model.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch from `sample`, in the number format of the model, without state."""
        raise NotImplementedError

    def count(self, batch: Any) -> int:
        """Return the number of examples in a batch from `sample`."""
        raise NotImplementedError

    def inputs(self, count: int) -> Inputs:
        """Return model inputs for at most `count` examples, on the CPU, with which the model can be traced."""
        raise NotImplementedError

    def cut(self, ranks: Ranks) -> Course:
        """Return the course for the process `ranks`, one of several that train a network together.

        Each batch is split over the processes. The mean of the processes' losses must be the loss of the whole batch,
        and random numbers must depend on the step and on the position of an example in the whole batch. In every
        process, `evaluate` returns the metrics of the whole split. Raise `TaskError` if the task can only be trained in
        one process.
        """
        raise TaskError(_NOT_SPLITTABLE)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        """Raise `TaskError` if training by `world` processes would give other results than training by one.

        This is so if the loss is not a mean over examples, or a batch has fewer examples than processes. `model` is a
        new model on the CPU.
        """
        raise TaskError(_NOT_SPLITTABLE)

    def few(self, count: int) -> Course:
        """Return a course with about `count` training examples, to measure a step's cost; by default, return `self`."""
        return self


class Classification(Task):
    """Base class of tasks whose targets are classes int64 [n] and whose outputs are logits [n, classes].

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("accuracy", "%", higher_is_better=True)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross entropy in nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the number of correct examples and the summed cross entropy, in float32 or more precise."""
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
        """Number of reading processes; if 0, the training process reads."""

    @property
    def batch(self) -> int:
        """Batch size of evaluation."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations that the reader applies; `Task.augment` applies all others."""

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the stored inputs [b, ...] of `rows` [b], in this process or another.

        A function is sent to reading processes for every batch, so it must be small and picklable. The inputs that it
        returns must depend only on the arguments of this method. If it raises a `TicketryError`, the user sees it.

        Args:
            rows: numbers of the examples to read.
            augment: names of the augmentations to apply, from `augmentations`.
            seed: seed of the augmentations; they depend on `seed` and on the position of an example in the batch.
            first: position in the batch of the first example in `rows`; passed only if several devices split a batch.
        """


@runtime_checkable
class Sharded(Protocol):
    """The further members of a `Reader` of shards (large files of examples, which are read one after another)."""

    @property
    def window(self) -> int:
        """Number of shards whose examples are mixed; an epoch reads from at most this many shards at a time."""

    def shards(self, rows: Tensor) -> Tensor:
        """Return, for each example in `rows` [b], the number of its shard, counted from 0: int64 [b]."""


@dataclass(frozen=True)
class PartOfBatch:
    """Says which part of a batch a process gets: of `whole` examples, the `own` examples from position `first` on."""

    first: int
    own: int
    whole: int


def place_of_part(examples: int, rank: int, world: int) -> PartOfBatch:
    """Return the part of a batch of `examples` examples that process `rank` of `world` processes gets.

    If `examples` is not a multiple of `world`, the first processes get one example more than the others.
    """
    each, more = divmod(examples, world)
    return PartOfBatch(rank * each + min(rank, more), each + (rank < more), examples)


class Ranks(Protocol):
    """One of several processes that train a network together, and its connection to the other processes."""

    rank: int
    """Number of this process, from 0."""
    world: int
    """Number of processes."""
    in_parts: bool
    """Whether parameters are sharded, so that all processes must call the network equally often."""

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in order of rank; all processes must call this method together."""

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        """Return a context in which the examples in `place` get the same random numbers as in the whole batch."""
