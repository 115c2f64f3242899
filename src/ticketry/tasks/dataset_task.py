"""A task from data sets or loaders of PyTorch: map-style, with any transforms."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from ticketry.errors import TaskError
from ticketry.records.metric import Metric
from ticketry.tasks.recipe import Augmentation, Recipe
from ticketry.tasks.task import Split, Splits, Task
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import generator, mix

TRANSFORMS: Augmentation = "transforms"
"""Augmentation of a recipe: random transforms of the data set are drawn anew at every step."""
_ACCURACY = Metric("accuracy", "%", higher_is_better=True)
_READ_AT_ONCE = 250
_SAMPLED = 16
"""Examples of each split that are part of the task's key."""

Data = Dataset[Any] | DataLoader[Any]
Values = Callable[[Tensor, Tensor], Tensor]


def dataset_task(
    name: str,
    model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    validation: Data | None = None,
    *,
    recipe: Recipe | None = None,
    loss: Values = F.cross_entropy,
    metric: Metric = _ACCURACY,
    measure: Values | None = None,
    workers: int | None = None,
    version: int | str = 1,
) -> DatasetTask:
    """Make a task from data sets (or loaders) whose examples are pairs (inputs, target).

    Batches are read by index in an order that is a function of the seed alone. Random transforms of the training set
    draw anew at every step, from the seed, the step and the position in the batch: a run that is resumed, or read by
    another number of processes, has the same bits. For evaluation each example has one fixed draw.

    Args:
        name: what the task is called in lists and reports.
        model: returns a new network, its weights drawn from torch's global random state.
        train: map-style data set, or a loader over one. Of a loader its data set, ``collate_fn``, ``num_workers`` and,
            without a `recipe`, ``batch_size`` are used; custom samplers are refused.
        test: the same, of the final results.
        validation: the same, for choices on the way. By default a tenth of `train`, drawn once, with its transforms.
        recipe: how to train; by default `Recipe` with the loader's batch size.
        loss: mean loss of a batch from outputs and targets.
        metric: what networks are compared by. For accuracy targets are classes.
        measure: the metric's value of each example [n] from outputs and targets; their mean is the metric. Needed for
            any metric but accuracy.
        workers: processes that read ahead of training; by default the loader's, or 0. Data sets must be picklable then.
        version: part of the task's key: change it when the data or the network change.

    Raises:
        TaskError: for data sets without a length, loaders with a sampler, or a metric without `measure`.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> rows = TensorDataset(x, (x[:, 0] > x[:, 1]).long())
        >>> task = tk.dataset_task("sides", lambda: nn.Sequential(nn.Linear(2, 2)), rows, rows)
        >>> len(task.load().train), len(task.load().validation), task.recipe.augment
        (270, 30, ('transforms',))
    """
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    sources = {part: _source(data, part) for part, data in parts.items()}
    if "validation" not in sources:
        sources["train"], sources["validation"] = _divided(sources["train"])
    if metric != _ACCURACY and measure is None:
        raise TaskError(f"the task {name} has the metric {metric.name}: give measure=, its value of each example")
    batch = train.batch_size if isinstance(train, DataLoader) else None
    recipe = recipe or replace(Recipe(), batch=batch or Recipe.batch)
    if TRANSFORMS not in recipe.augment:
        recipe = replace(recipe, augment=(TRANSFORMS, *recipe.augment))
    loaders = [data.num_workers for data in parts.values() if isinstance(data, DataLoader)]
    count = max(loaders, default=0) if workers is None else workers
    return DatasetTask(name, model, sources, recipe, loss, metric, measure, count, version)


@dataclass(frozen=True)
class Source:
    """A data set and how its examples become a batch."""

    data: Any
    collate: Callable[[list[Any]], Any] = default_collate

    def read(self, rows: list[int], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Return the batch of these rows, each read under its own seed."""
        examples = []
        for row, seed in zip(rows, seeds, strict=True):
            with _seeded(seed):
                examples.append(self.data[row])
        try:
            inputs, targets = self.collate(examples)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskError(
                f"the examples {rows[:3]} of a data set do not make a batch of (inputs, targets): {error}. Each example"
                " is a pair whose parts have equal shapes, or the loader has a collate_fn"
            ) from None
        return torch.as_tensor(inputs), torch.as_tensor(targets)


class DatasetTask(Task):
    """A task on PyTorch data sets, created by `dataset_task`."""

    def __init__(
        self,
        name: str,
        model: Callable[[], nn.Module],
        sources: Mapping[str, Source],
        recipe: Recipe,
        loss: Values,
        metric: Metric,
        measure: Values | None,
        workers: int,
        version: int | str,
    ) -> None:
        self.name, self.metric, self.recipe = name, metric, recipe
        self._model, self._sources, self._loss = model, sources, loss
        self._measure, self._workers, self._version = measure, workers, version

    def key(self) -> Mapping[str, object]:
        """Name, version, sizes, the first examples and all targets of each split, and the network's shapes."""
        return self._key

    @functools.cached_property
    def _key(self) -> Mapping[str, object]:
        found = {part: self._digest(part) for part in sorted(self._sources)}
        with private_random_state([]):
            shapes = {name: list(value.shape) for name, value in self._model().state_dict().items()}
        network = hashlib.sha256(repr(shapes).encode()).hexdigest()
        return {"name": self.name, "version": self._version, "data": found, "network": network}

    def _digest(self, part: str) -> str:
        source = self._sources[part]
        rows = list(range(min(_SAMPLED, len(source.data))))
        inputs, _ = source.read(rows, [mix(0, "dataset", row) for row in rows])
        digest = hashlib.sha256(str((inputs.dtype, tuple(inputs.shape), len(source.data))).encode())
        for tensor in (inputs, self._targets[part]):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()

    @functools.cached_property
    def _targets(self) -> dict[str, Tensor]:
        return {part: _targets_of(source) for part, source in self._sources.items()}

    @functools.cached_property
    def _splits(self) -> Splits:
        def split(part: str) -> Split:
            source, targets = self._sources[part], self._targets[part]
            return Split(torch.arange(len(targets)), targets, DatasetReader(source, self._workers))

        return Splits(*(split(part) for part in ("train", "validation", "test")))

    def build(self) -> nn.Module:
        return self._model()

    def load(self, data: Path | None = None) -> Splits:
        return self._splits

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        more = {"label_smoothing": label_smoothing} if label_smoothing else {}
        return self._loss(outputs, targets, **more)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self._measure is None:
            return {"value": 100.0 * (outputs.argmax(1) == targets).sum()}
        values = self._measure(outputs, targets)
        if values.shape != (len(targets),):
            raise TaskError(
                f"measure of the task {self.name} gave the shape {tuple(values.shape)} for {len(targets)} examples:"
                " return one number for each"
            )
        return {"value": values.to(torch.promote_types(values.dtype, torch.float32)).sum()}

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        return {self.metric.name: sums["value"] / count}


class DatasetReader:
    """Reads the examples of a data set, see `tasks.reading.Reader`."""

    augmentations: ClassVar[tuple[str, ...]] = (TRANSFORMS,)
    batch: ClassVar[int] = _READ_AT_ONCE

    def __init__(self, source: Source, workers: int) -> None:
        self.workers = workers
        self._source = source
        self._file: str | None = None

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the inputs of `rows`; other processes load the data set from a file."""
        numbers = rows.tolist()
        drawn = [mix(seed, "transform", first + place) for place in range(len(numbers))]
        seeds = drawn if augment else [mix(0, "dataset", row) for row in numbers]
        if not self.workers:
            return functools.partial(_inputs, self._source, numbers, seeds)
        return functools.partial(_inputs_of_file, self._written(), numbers, seeds)

    def _written(self) -> str:
        """The file with the data set for the reading processes, written once and removed with this reader."""
        if self._file is None or not os.path.exists(self._file):
            try:
                data = pickle.dumps(self._source)
            except Exception as error:
                raise TaskError(
                    f"the data set cannot be sent to {self.workers} reading processes ({error}): define it and its"
                    " transforms in a module, without lambdas, or give workers=0"
                ) from None
            folder = tempfile.mkdtemp(prefix="ticketry-data-")  # for this user alone
            self._file = os.path.join(folder, "dataset.pickle")
            Path(self._file).write_bytes(data)
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._file


def _inputs(source: Source, rows: list[int], seeds: list[int]) -> Tensor:
    return source.read(rows, seeds)[0]


def _inputs_of_file(file: str, rows: list[int], seeds: list[int]) -> Tensor:
    return _inputs(_source_in(file), rows, seeds)


@functools.lru_cache(maxsize=6)
def _source_in(file: str) -> Source:
    """The data set that the process which started this one has written."""
    source = pickle.loads(Path(file).read_bytes())
    assert isinstance(source, Source)
    return source


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's, Python's and NumPy's global generators in a block, and restore them afterwards."""
    import numpy as np

    with private_random_state([]):
        # Transforms of users draw from NumPy's global generator.
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _source(data: Data, part: str) -> Source:
    """The data set of a split.

    Raises:
        TaskError: for one that cannot be read by index, or a loader that chooses its examples.
    """
    collate: Callable[[list[Any]], Any] = default_collate
    if isinstance(data, DataLoader):
        if not isinstance(data.sampler, (RandomSampler, SequentialSampler)):
            raise TaskError(
                f"the {part} loader has a {type(data.sampler).__name__}, and the order of examples is ticketry's: give"
                " the data set itself, with the examples that it is to have"
            )
        loader = data
        data, collate = loader.dataset, loader.collate_fn
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and isinstance(data, Sized)):
        raise TaskError(
            f"the {part} data is a {type(data).__name__}, which cannot be read by index: give a map-style data set"
            " (with __getitem__ and __len__) or a loader over one"
        )
    if not len(data):
        raise TaskError(f"the {part} data set has no examples")
    return Source(data, collate)


def _divided(source: Source) -> tuple[Source, Source]:
    """Nine tenths of a data set, and a tenth of it drawn once."""
    count = len(source.data)
    order = torch.randperm(count, generator=generator(0, "validation")).tolist()
    held = max(1, round(count / 10))
    if held >= count:
        raise TaskError(f"{count} training example is too few to hold some back: give validation=")
    parts = sorted(order[held:]), sorted(order[:held])
    train, validation = (Source(Subset(source.data, rows), source.collate) for rows in parts)
    return train, validation


def _targets_of(source: Source) -> Tensor:
    """All targets in order: those that the data set names, or else of every example."""
    named = _named_targets(source.data)
    rows = sorted({row * len(source.data) // _SAMPLED for row in range(_SAMPLED)})
    if named is not None and torch.equal(source.read(rows, rows)[1], named[rows]):
        return named  # reading an example may take milliseconds
    found = []
    for first in range(0, len(source.data), _READ_AT_ONCE):
        rows = list(range(first, min(first + _READ_AT_ONCE, len(source.data))))
        found.append(source.read(rows, [mix(0, "dataset", row) for row in rows])[1])
    return torch.cat(found)


def _named_targets(data: Any) -> Tensor | None:
    """Classes that the data set has as its attribute `targets`, as those of torchvision; of a subset its rows'."""
    if isinstance(data, Subset):
        whole = _named_targets(data.dataset)
        return None if whole is None else whole[torch.tensor(list(data.indices), dtype=torch.int64)]
    targets = getattr(data, "targets", None)
    if not isinstance(targets, (list, Tensor)) or len(targets) != len(data):
        return None
    found = torch.as_tensor(targets)
    return found if found.dtype == torch.int64 and found.dim() == 1 else None
