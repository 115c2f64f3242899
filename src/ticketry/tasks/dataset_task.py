"""Create tasks from map-style data sets or data loaders of PyTorch, with any transforms."""

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
from ticketry_engine.support.seeds import generator, mix_seeds

TRANSFORMS: Augmentation = "transforms"
"""Name of the augmentation with which random transforms of the data set draw new values at every step."""
_ACCURACY = Metric("accuracy", "%", higher_is_better=True)
_READ_AT_ONCE = 250
_SAMPLED = 16
"""Number of examples of each split that the task's key identifies by a digest."""

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
    """Create a task from data sets (or loaders) whose examples are pairs (inputs, target).

    Examples are read by index, in an order that depends only on the seed. Random transforms of the training set draw
    new values at every step, which depend on the seed, the step and the position in the batch. So a resumed run, or a
    run with another number of reading processes, has bit for bit the same results. In evaluation, the random values of
    an example are always the same.

    Args:
        name: name of the task in lists and reports.
        model: function that returns a new network, with weights drawn from torch's global random state.
        train: training data: a map-style data set, or a loader of such a data set. Of a loader, the data set,
            ``collate_fn``, ``num_workers`` and, without a `recipe`, ``batch_size`` are used; custom samplers are
            refused.
        test: data for the final results, a data set or loader as for `train`.
        validation: data for choices during a search, a data set or loader as for `train`; by default a random tenth of
            `train`.
        recipe: training settings; by default `Recipe()` with the batch size of the loader.
        loss: function of outputs and targets that returns the mean loss of a batch.
        metric: metric by which networks are compared. Accuracy needs classes as targets.
        measure: function of outputs and targets that returns a value for each example, [n]; the metric is the mean of
            these values. It is required for any metric except accuracy.
        workers: number of reading processes, by default that of the loader, or 0. Reading processes need picklable data
            sets.
        version: part of the key of the task; change this number when the data or the network change.

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
    sources = {part: _check_data_set(data, part) for part, data in parts.items()}
    if "validation" not in sources:
        sources["train"], sources["validation"] = _split_off_validation(sources["train"])
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
    """A data set, with the function that collates its examples to batches."""

    data: Any
    collate: Callable[[list[Any]], Any] = default_collate

    def read(self, rows: list[int], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the examples `rows`; `seeds` has a seed for the random transforms of each."""
        examples = []
        for row, seed in zip(rows, seeds, strict=True):
            with _seed_generators_temporarily(seed):
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
        """Return values that identify the task: name, version, and digests of first examples, targets and network."""
        return self._key

    @functools.cached_property
    def _key(self) -> Mapping[str, object]:
        found = {}
        for part, source in sorted(self._sources.items()):
            rows = list(range(min(_SAMPLED, len(source.data))))
            inputs, _ = source.read(rows, [mix_seeds(0, "dataset", row) for row in rows])
            digest = hashlib.sha256(str((inputs.dtype, tuple(inputs.shape), len(source.data))).encode())
            for tensor in (inputs, self._targets[part]):
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
            found[part] = digest.hexdigest()
        with private_random_state([]):
            shapes = {name: list(value.shape) for name, value in self._model().state_dict().items()}
        network = hashlib.sha256(repr(shapes).encode()).hexdigest()
        return {"name": self.name, "version": self._version, "data": found, "network": network}

    @functools.cached_property
    def _targets(self) -> dict[str, Tensor]:
        return {part: _read_targets(source) for part, source in self._sources.items()}

    @functools.cached_property
    def _splits(self) -> Splits:
        splits = {}
        for part, source in self._sources.items():
            targets = self._targets[part]
            splits[part] = Split(torch.arange(len(targets)), targets, DatasetReader(source, self._workers))
        return Splits(**splits)

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
    """Reads examples of a PyTorch data set by index; implements `tasks.task.Reader`."""

    augmentations: ClassVar[tuple[str, ...]] = (TRANSFORMS,)
    batch: ClassVar[int] = _READ_AT_ONCE

    def __init__(self, source: Source, workers: int) -> None:
        self.workers = workers
        self._source = source
        self._file: str | None = None

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the inputs of `rows`; reading processes load the data set from a file."""
        numbers = rows.tolist()
        drawn = [mix_seeds(seed, "transform", first + place) for place in range(len(numbers))]
        seeds = drawn if augment else [mix_seeds(0, "dataset", row) for row in numbers]
        if not self.workers:
            return functools.partial(_read_inputs, self._source, numbers, seeds)
        return functools.partial(_read_inputs_of_file, self._pickle_source(), numbers, seeds)

    def _pickle_source(self) -> str:
        """Write the pickled data set to a file for the reading processes, and return its path; do this only once.

        The file is deleted together with this reader.
        """
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


def _read_inputs(source: Source, rows: list[int], seeds: list[int]) -> Tensor:
    return source.read(rows, seeds)[0]


def _read_inputs_of_file(file: str, rows: list[int], seeds: list[int]) -> Tensor:
    return _read_inputs(_load_source(file), rows, seeds)


@functools.lru_cache(maxsize=6)
def _load_source(file: str) -> Source:
    source = pickle.loads(Path(file).read_bytes())
    assert isinstance(source, Source)
    return source


@contextmanager
def _seed_generators_temporarily(seed: int) -> Iterator[None]:
    """Within the `with` block, seed the global generators of torch, Python and NumPy; restore them at its end."""
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


def _check_data_set(data: Data, part: str) -> Source:
    """Return the data set and collate function of `data`; raise `TaskError`, which names the split `part`, if unfit."""
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


def _split_off_validation(source: Source) -> tuple[Source, Source]:
    """Split a random tenth of a data set off for validation; return the rest and the tenth."""
    count = len(source.data)
    order = torch.randperm(count, generator=generator(0, "validation")).tolist()
    held = max(1, round(count / 10))
    if held >= count:
        raise TaskError(f"{count} training example is too few to hold some back: give validation=")
    parts = sorted(order[held:]), sorted(order[:held])
    train, validation = (Source(Subset(source.data, rows), source.collate) for rows in parts)
    return train, validation


def _read_targets(source: Source) -> Tensor:
    """Return all targets: the data set's attribute `targets` if it agrees with a few examples, else read them."""
    named = _targets_attribute(source.data)
    rows = sorted({row * len(source.data) // _SAMPLED for row in range(_SAMPLED)})
    if named is not None and torch.equal(source.read(rows, rows)[1], named[rows]):
        return named  # reading an example may take milliseconds
    found = []
    for first in range(0, len(source.data), _READ_AT_ONCE):
        rows = list(range(first, min(first + _READ_AT_ONCE, len(source.data))))
        found.append(source.read(rows, [mix_seeds(0, "dataset", row) for row in rows])[1])
    return torch.cat(found)


def _targets_attribute(data: Any) -> Tensor | None:
    """Return the attribute `targets` of a data set, or of a subset's data set; None if it has no classes (int64)."""
    if isinstance(data, Subset):
        whole = _targets_attribute(data.dataset)
        return None if whole is None else whole[torch.tensor(list(data.indices), dtype=torch.int64)]
    targets = getattr(data, "targets", None)
    if not isinstance(targets, (list, Tensor)) or len(targets) != len(data):
        return None
    found = torch.as_tensor(targets)
    return found if found.dtype == torch.int64 and found.dim() == 1 else None
