"""Regression: predict numbers from rows of numbers."""

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
from ticketry.tasks.data.tables import Missing, Table, index_of, read_table
from ticketry.tasks.facts import EACH, MODEL, OPTIONS, RECIPE, TABLE, UCI
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.options import Options
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec, Split, Splits, Task


class Regression(Task):
    """A task whose network predicts one number, standardised: outputs are [n, 1].

    Targets are float32 [n, 2]: the standardised number, and what one standard deviation is on the target's own scale,
    the same in every row, so that errors can be reported on that scale. `standardised` makes such splits.

    A subclass adds `name`, `recipe`, `build` and `load`.
    """

    metric = Metric("rmse", "", higher_is_better=False)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean squared error, in variances of the training examples.

        Raises:
            TaskError: for label smoothing: there are no classes.
        """
        if label_smoothing:
            raise TaskError(f"the task {self.name} has no classes to smooth over: set recipe.label_smoothing to 0")
        return F.mse_loss(outputs, targets[:, :1])

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch of what RMSE and R2 are made of, in float64."""
        wanted, unit = targets.double().unbind(1)
        squares = (outputs.double().squeeze(1) - wanted).square()
        return {
            "squares": squares.sum(),
            "squares_in_units": (squares * unit.square()).sum(),
            "targets": wanted.sum(),
            "targets_squared": wanted.square().sum(),
        }

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """RMSE in the target's unit, R2 (coefficient of determination), and the mean loss in variances.

        R2 of targets that are all equal is 1 if they are predicted exactly, else 0, as in scikit-learn.
        """
        spread = sums["targets_squared"] - sums["targets"] ** 2 / count
        if spread > 1e-12 * sums["targets_squared"]:  # what rounding leaves of equal targets is less
            r2 = 1 - sums["squares"] / spread
        else:
            r2 = 1.0 if sums["squares"] == 0 else 0.0
        return {
            "rmse": sqrt(sums["squares_in_units"] / count),
            "r2": r2,
            "loss": sums["squares"] / count,
        }


def standardised(
    inputs: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
    what: str,
) -> Splits:
    """Splits of a table, in units of the training rows' standard deviations around their means.

    A column that is constant over the training rows is only centred.

    Args:
        inputs: [rows, features]
        target: [rows]
        train, validation, test: rows of each.
        what: the table is called in messages.

    Raises:
        TaskError: if the target is constant over the training rows.
    """
    first = inputs[train[0]]
    # Asked of the numbers themselves: the computed deviation of equal ones need not be 0, nor their mean be exact.
    constant = (inputs[train] == first).all(0)
    mean = np.where(constant, first, inputs[train].mean(0))
    std = np.where(constant, 1.0, inputs[train].std(0))
    centre, unit = target[train].mean(), target[train].std()
    if (target[train] == target[train][0]).all():
        raise TaskError(
            f"{what}: the target is {target[train][0]:g} in all {len(train)} training rows, so there is nothing to"
            " learn: name another column or split"
        )

    def split(rows: NDArray[np.int64]) -> Split:
        wanted = np.stack([(target[rows] - centre) / unit, np.full(len(rows), unit)], axis=1)
        return Split(_float32((inputs[rows] - mean) / std), _float32(wanted))

    return Splits(train=split(train), validation=split(validation), test=split(test))


def _float32(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


VERSION = 1
"""Version of how tables are read, split and standardised; raised by a change that moves a number."""

_TEST = Fraction(1, 10)
_FEWEST = 10
"""Rows."""


@dataclass(frozen=True, kw_only=True)
class TableRegression(Regression):
    """Base of both kinds: rows of numbers, a named network, one of several splits."""

    name: str
    model: str
    """Name of the network, see `ticketry.tasks.models.build`."""
    split: int | None
    """Which split; None is one for each replicate, and the first where one alone is asked for."""
    validation: Fraction
    """Share of a split's training rows that is held out."""
    recipe: Recipe = RECIPE
    spec: Spec | None = None

    @property
    def features(self) -> int:
        """Numbers of a row that the target is predicted from."""
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
            **models.identity(self.model),
        }

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Shape of a row as networks for images take it."""
        return self.features, 1, 1

    def build(self) -> nn.Module:
        return models.build(self.model, shape=self._shape, classes=1)

    def narrower(self, parameters: int) -> str | None:
        return models.rival(self.model, shape=self._shape, classes=1, parameters=parameters)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Noise [count, features], spread as standardised rows are; no data are read."""
        return torch.randn(count, self.features, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class Published(TableRegression):
    """A table of `facts.UCI`."""

    replayable = True

    @property
    def features(self) -> int:
        return UCI[self.name].features

    def load(self, data: Path | None = None) -> Splits:
        return _published(self.name, self.split or 0, self.validation, data and data.absolute())


@lru_cache(maxsize=64)
def _published(name: str, split: int, validation: Fraction, data: Path | None) -> Splits:
    found = uci.read(uci.PUBLISHED[name.removeprefix("uci-")], split, places(data))
    train, held = _cut(found.train, validation, name)
    return standardised(found.inputs, found.target, train=train, validation=held, test=found.test, what=name)


@dataclass(frozen=True, kw_only=True)
class Own(TableRegression):
    """A column of a file from the others. The file is read when it is needed, once."""

    replayable = True

    path: Path
    target: str
    test: Fraction = _TEST
    """Share of the rows that are the test part."""
    drop: tuple[str, ...] = ()
    """Columns that are left out."""
    categories: tuple[str, ...] = ()
    """Columns of words that look like numbers, or are many."""
    missing: Missing = "median"
    """Treatment of missing values."""

    @property
    def features(self) -> int:
        return len(self._table.columns) - 1

    def key(self) -> Mapping[str, object]:
        """Identify the content of the file, independent of its location."""
        return {
            **super().key(),
            "file": self._table.digest,
            "target": self.target,
            "test": float(self.test),
            "drop": list(self.drop),
            **self._encoding,
        }

    @property
    def _encoding(self) -> Mapping[str, object]:
        """Describe how words and missing values were encoded; empty for a table with neither."""
        table = self._table
        found: dict[str, object] = {}
        if table.categories:
            found["categories"] = {name: len(words) for name, words in table.categories.items()}
        if table.left_out or table.incomplete:
            filled = int(np.isnan(table.values).sum())
            found["missing"] = {"rule": self.missing, "rows_left_out": table.left_out, "filled": filled}
        return found

    def load(self, data: Path | None = None) -> Splits:
        """Parts at random, by the rule of `splits.hold_out` with the split's number as its seed."""
        return self._splits

    @cached_property
    def _table(self) -> Table:
        table = read_table(self.path, self.drop, categories=self.categories, missing=self.missing, target=self.target)
        index_of(table.columns, self.target, self.path)
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
        at = index_of(table.columns, self.target, self.path)
        rows, held = len(table.values), _part(self.test, len(table.values))
        if held >= rows - 1:
            raise TaskError(f"{self.path}: {rows} rows are too few for a test part of {float(self.test):g} of them")
        rest, test = hold_out(np.zeros(rows, np.int64), held, seed=self.split or 0)
        train, validation = _cut(rest, self.validation, str(self.path))
        target, inputs = table.values[:, at], np.delete(table.values, at, axis=1)
        what = f"{self.path}, column {self.target!r}"
        if table.incomplete:
            inputs = _filled(inputs, train, np.delete(np.array(table.columns), at), str(self.path))
        return standardised(inputs, target, train=train, validation=validation, test=test, what=what)


def _filled(
    inputs: NDArray[np.float64], train: NDArray[np.int64], columns: NDArray[np.str_], what: str
) -> NDArray[np.float64]:
    """Replace missing numbers by the median of the training rows, without using any other row."""
    without = np.isnan(inputs[train]).all(0)
    if without.any():
        name = columns[without][0]
        raise TaskError(
            f"{what}: column {name!r} has no value in the {len(train)} training rows: leave it out (--option"
            f" 'drop={name}')"
        )
    return np.where(np.isnan(inputs), np.nanmedian(inputs[train], axis=0), inputs)


def make(spec: Spec) -> TableRegression:
    """The task that a request names: one of `facts.UCI`, or table:FILE. No table is read.

    Raises:
        TaskError: for an unknown option, a value that cannot be, an unknown network, or a table without a target.
    """
    own = spec.name.startswith(TABLE)
    options = Options(spec, (*OPTIONS, "target", "test", "drop", "categories", "missing") if own else OPTIONS)
    network = spec.model or MODEL
    if NetworkName.parse(network).library:
        raise TaskError(f"{network} takes images, and {spec.name} has rows of numbers: choose a perceptron, as {MODEL}")
    models.check(network, shape=(1, 1, 1))
    split = _split(options, spec.name, None if own else uci.SPLITS)
    validation = options.share("validation")
    if not own:
        return Published(name=spec.name, model=network, split=split, validation=validation, spec=spec)
    if not options.text("target"):
        raise TaskError(f"the task {spec.name} needs to know what to predict: --target COLUMN (--option target=COLUMN)")
    path = Path(spec.name.removeprefix(TABLE)).expanduser().absolute()
    return Own(
        name=f"{TABLE}{path.name}",
        model=network,
        split=split,
        validation=validation,
        spec=replace(spec, name=f"{TABLE}{path}"),  # a ticket's request is found from another folder too
        path=path,
        target=options.text("target"),
        test=options.share("test"),
        drop=options.names("drop"),
        categories=options.names("categories"),
        missing=_missing(options),
    )


def _cut(train: NDArray[np.int64], validation: Fraction, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows to train on, and a share of them that is held out, by the rule of `splits.hold_out`."""
    held = _part(validation, len(train))
    if held >= len(train):
        raise TaskError(f"{what}: {len(train)} training rows are too few to hold out {float(validation):g} of them")
    kept, validated = hold_out(np.zeros(len(train), np.int64), held)
    return train[kept], train[validated]


def _part(share: Fraction, of: int) -> int:
    """A share of a number, rounded half up; one at least."""
    return max(1, int(share * of + Fraction(1, 2)))


def _missing(options: Options) -> Missing:
    word = options.text("missing", "median")
    for known in get_args(Missing):
        if word == known:
            return cast(Missing, known)
    raise options.wrong("missing", f"one of {list_choices(word, get_args(Missing))}")


def _split(options: Options, name: str, splits: int | None) -> int | None:
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
