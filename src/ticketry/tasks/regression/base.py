"""What all regression has in common: squared error, and its root on the target's own scale."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.tasks.base import Metric, Split, Splits, Task


class Regression(Task):
    """A task whose network predicts one number, standardised: outputs are [n, 1].

    Targets are float32 [n, 2]: the standardised number, and what one standard deviation is on the target's own scale,
    the same in every row, so that errors can be told on that scale. `standardised` makes such splits.

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
