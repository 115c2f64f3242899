"""Regression on tables: predict a column from the other columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import sqrt
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.choices import list_choices
from ticketry.errors import TaskError
from ticketry.records.metric import Metric
from ticketry.tasks import models
from ticketry.tasks.data import tables as uci
from ticketry.tasks.data.locate import places
from ticketry.tasks.data.splits import hold_out
from ticketry.tasks.data.tables import Missing, Table, find_column_index, read_table
from ticketry.tasks.facts import EACH, MODEL, OPTIONS, RECIPE, TABLE, UCI
from ticketry.tasks.file_requests import Options
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec, Split, Splits, Task


class Regression(Task):
    """Base class of tasks whose network predicts a number with mean 0 and variance 1; outputs are [n, 1].

    Targets are float32 [n, 2]. The first column has the standardised numbers. The second has the standard deviation of
    the original targets in every row, to report errors in the original unit. `standardised` creates such splits.

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("rmse", "", higher_is_better=False)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean squared error in units of the variance of the training targets."""
        if label_smoothing:
            raise TaskError(f"the task {self.name} has no classes to smooth over: set recipe.label_smoothing to 0")
        return F.mse_loss(outputs, targets[:, :1])

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums over a batch, in float64, from which `summary` computes the metrics."""
        wanted, unit = targets.double().unbind(1)
        squares = (outputs.double().squeeze(1) - wanted).square()
        return {
            "squares": squares.sum(),
            "squares_in_units": (squares * unit.square()).sum(),
            "targets": wanted.sum(),
            "targets_squared": wanted.square().sum(),
        }

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Return RMSE in the unit of the target, R2 (coefficient of determination) and the mean loss.

        If all targets are equal, R2 is 1 for exact predictions and 0 for others, as in scikit-learn.
        """
        spread = sums["targets_squared"] - sums["targets"] ** 2 / count
        if spread > 1e-12 * sums["targets_squared"]:  # equal targets give less, by rounding
            r2 = 1 - sums["squares"] / spread
        else:
            r2 = 1.0 if sums["squares"] == 0 else 0.0
        return {"rmse": sqrt(sums["squares_in_units"] / count), "r2": r2, "loss": sums["squares"] / count}


def standardise_splits(
    inputs: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
    what: str,
) -> Splits:
    """Split a table, and standardise each column by its mean and standard deviation over the training rows.

    Columns that are constant over the training rows are not divided by their standard deviation.

    Args:
        inputs: columns to predict from, [rows, features].
        target: column to predict, [rows].
        train, validation, test: row numbers of the splits.
        what: description of the table for error messages.
    """
    first = inputs[train[0]]
    # Compared exactly: by rounding, the standard deviation of equal numbers need not be 0.
    constant = (inputs[train] == first).all(0)
    mean = np.where(constant, first, inputs[train].mean(0))
    std = np.where(constant, 1.0, inputs[train].std(0))
    centre, unit = target[train].mean(), target[train].std()
    if (target[train] == target[train][0]).all():
        raise TaskError(
            f"{what}: the target is {target[train][0]:g} in all {len(train)} training rows, so there is nothing to"
            " learn: name another column or split"
        )

    def standardise_rows(rows: NDArray[np.int64]) -> Split:
        wanted = np.stack([(target[rows] - centre) / unit, np.full(len(rows), unit)], axis=1)
        return Split(_to_float32((inputs[rows] - mean) / std), _to_float32(wanted))

    return Splits(train=standardise_rows(train), validation=standardise_rows(validation), test=standardise_rows(test))


def _to_float32(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


VERSION = 1
"""Version of how tables are read, split and standardised, as part of keys; increased when results change."""

_TEST = Fraction(1, 10)
_FEWEST = 10
"""Smallest number of rows that a table must have."""


@dataclass(frozen=True, kw_only=True)
class TableRegression(Regression):
    """Base class of regression tasks on published and custom tables."""

    name: str
    model: str
    """Name of the network, see `ticketry.tasks.models.build`."""
    split: int | None
    """Number of the split. None gives each replicate another split, and the first split without replicates."""
    validation: Fraction
    """Share of the training rows that is for validation."""
    recipe: Recipe = RECIPE
    spec: Spec | None = None

    @property
    def features(self) -> int:
        """Number of input columns."""
        raise NotImplementedError

    def of_replicate(self, number: int) -> Mapping[str, str]:
        return {} if self.split is not None else {"split": str(number)}

    def key(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "data_version": VERSION,
            "split": EACH if self.split is None else self.split,
            "validation": float(self.validation),
            "features": self.features,
            **models.network_key(self.model),
        }

    @property
    def _network_input_shape(self) -> tuple[int, int, int]:
        """Shape of a row as input of a network, (features, 1, 1): an image of 1x1 pixels."""
        return self.features, 1, 1

    def build(self) -> nn.Module:
        return models.build(self.model, shape=self._network_input_shape, classes=1)

    def narrower(self, parameters: int) -> str | None:
        return models.narrower(self.model, shape=self._network_input_shape, classes=1, parameters=parameters)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return standard normal noise [count, features]; this reads no data."""
        return torch.randn(count, self.features, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class PublishedTableRegression(TableRegression):
    """A regression task on a published table of `facts.UCI`."""

    replayable = True

    @property
    def features(self) -> int:
        return UCI[self.name].features

    def load(self, data: Path | None = None) -> Splits:
        return _load_published(self.name, self.split or 0, self.validation, data and data.absolute())


@lru_cache(maxsize=64)
def _load_published(name: str, split: int, validation: Fraction, data: Path | None) -> Splits:
    found = uci.read(uci.PUBLISHED[name.removeprefix("uci-")], split, places(data))
    train, held = _split_off_validation(found.train, validation, name)
    return standardise_splits(found.inputs, found.target, train=train, validation=held, test=found.test, what=name)


@dataclass(frozen=True, kw_only=True)
class CustomTableRegression(TableRegression):
    """A regression task on a custom table; the file is read once, when it is needed."""

    replayable = True

    path: Path
    target: str
    test: Fraction = _TEST
    """Share of the rows that is for testing."""
    drop: tuple[str, ...] = ()
    """Names of columns that are left out."""
    categories: tuple[str, ...] = ()
    """Names of columns to treat as words, although the words look like numbers or are many; see `read_table`."""
    missing: Missing = "median"
    """Treatment of missing values, see `read_table`."""

    @property
    def features(self) -> int:
        return len(self._table.columns) - 1

    def key(self) -> Mapping[str, object]:
        """Return values that identify the content of the file and how it is split, but not its location."""
        table = self._table
        found = {
            **super().key(),
            "file": table.digest,
            "target": self.target,
            "test": float(self.test),
            "drop": list(self.drop),
        }
        if table.categories:
            found["categories"] = {name: len(words) for name, words in table.categories.items()}
        if table.left_out or table.incomplete:
            filled = int(np.isnan(table.values).sum())
            found["missing"] = {"rule": self.missing, "rows_left_out": table.left_out, "filled": filled}
        return found

    def load(self, data: Path | None = None) -> Splits:
        """Return splits of the table, drawn at random with the task's split number as seed."""
        return self._splits

    @cached_property
    def _table(self) -> Table:
        table = read_table(self.path, self.drop, categories=self.categories, missing=self.missing, target=self.target)
        find_column_index(table.columns, self.target, self.path)
        rows, columns = table.values.shape
        if columns < 2:
            raise TaskError(f"{self.path} has no column but the target: there is nothing to predict it from")
        if rows < _FEWEST:
            count = f"{rows} row{'s' * (rows > 1)}"
            raise TaskError(f"{self.path} has {count}: at least {_FEWEST} are needed for three parts")
        return table

    @cached_property
    def _splits(self) -> Splits:
        table = self._table
        at = find_column_index(table.columns, self.target, self.path)
        rows, held = len(table.values), _share_to_count(self.test, len(table.values))
        if held >= rows - 1:
            raise TaskError(f"{self.path}: {rows} rows are too few for a test part of {float(self.test):g} of them")
        rest, test = hold_out(np.zeros(rows, np.int64), held, seed=self.split or 0)
        train, validation = _split_off_validation(rest, self.validation, str(self.path))
        target, inputs = table.values[:, at], np.delete(table.values, at, axis=1)
        if table.incomplete:
            without = np.isnan(inputs[train]).all(0)
            if without.any():
                name = np.delete(np.array(table.columns), at)[without][0]
                raise TaskError(
                    f"{self.path}: column {name!r} has no value in the {len(train)} training rows: leave it out"
                    f" (--option 'drop={name}')"
                )
            inputs = np.where(np.isnan(inputs), np.nanmedian(inputs[train], axis=0), inputs)
        what = f"{self.path}, column {self.target!r}"
        return standardise_splits(inputs, target, train=train, validation=validation, test=test, what=what)


def create_task(spec: Spec) -> TableRegression:
    """Create the task for the request `spec`, a name of `facts.UCI` or table:FILE; this reads no table."""
    own = spec.name.startswith(TABLE)
    options = Options(spec, (*OPTIONS, "target", "test", "drop", "categories", "missing") if own else OPTIONS)
    network = spec.model or MODEL
    if NetworkName.parse(network).library:
        raise TaskError(f"{network} takes images, and {spec.name} has rows of numbers: choose a perceptron, as {MODEL}")
    models.check(network, shape=(1, 1, 1))
    split = _parse_split(options, spec.name, None if own else uci.SPLITS)
    validation = options.share("validation")
    if not own:
        return PublishedTableRegression(name=spec.name, model=network, split=split, validation=validation, spec=spec)
    if not options.text("target"):
        raise TaskError(f"the task {spec.name} needs to know what to predict: --target COLUMN (--option target=COLUMN)")
    path = Path(spec.name.removeprefix(TABLE)).expanduser().absolute()
    return CustomTableRegression(
        name=f"{TABLE}{path.name}",
        model=network,
        split=split,
        validation=validation,
        spec=replace(spec, name=f"{TABLE}{path}"),  # an absolute path is found from any folder
        path=path,
        target=options.text("target"),
        test=options.share("test"),
        drop=options.names("drop"),
        categories=options.names("categories"),
        missing=_parse_missing(options),
    )


def _split_off_validation(
    train: NDArray[np.int64], validation: Fraction, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the share `validation` of the training rows off at random; return the other rows, then these rows."""
    held = _share_to_count(validation, len(train))
    if held >= len(train):
        raise TaskError(f"{what}: {len(train)} training rows are too few to hold out {float(validation):g} of them")
    kept, validated = hold_out(np.zeros(len(train), np.int64), held)
    return train[kept], train[validated]


def _share_to_count(share: Fraction, of: int) -> int:
    """Return `share` * `of` as a whole number, rounded half up, and at least 1."""
    return max(1, int(share * of + Fraction(1, 2)))


def _parse_missing(options: Options) -> Missing:
    word = options.text("missing", "median")
    for known in get_args(Missing):
        if word == known:
            return cast(Missing, known)
    raise options.value_error("missing", f"one of {list_choices(word, get_args(Missing))}")


def _parse_split(options: Options, name: str, splits: int | None) -> int | None:
    text = options.text("split", EACH)
    if text == EACH:
        return None
    if not text.isdecimal() or (splits is not None and int(text) >= splits):
        last = f"up to {splits - 1}" if splits else "from 0 on"
        raise TaskError(
            f"the option split of {name} is a number {last}, or {EACH} (one for each replicate), not {text!r}"
            + (f": there are {splits}, so at most {splits} replicates" if splits else "")
        )
    return int(text)
