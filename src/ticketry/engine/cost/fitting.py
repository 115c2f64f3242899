"""Coefficients of at least 0 that tell times from counts, by the least squares of relative errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RIDGE = 1e-3
"""Share of a column's own size that is charged for its coefficient: of two alike columns both are used."""

_FLOOR = 1e-6
"""Seconds: what takes less need not be told as exactly."""


def fitted(features: Sequence[dict[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """Name -> seconds each, such that the sum of coefficient times count is near to `seconds` of each row.

    A row's error is weighed by 1 / (its seconds + one microsecond).
    """
    names = sorted({name for one in features for name, value in one.items() if value})
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in features])
    goal = np.array(seconds)
    weight = 1 / (goal + _FLOOR)
    matrix, goal = matrix * weight[:, None], goal * weight
    size = np.sqrt((matrix**2).sum(axis=0))
    matrix = np.concatenate([matrix / size, _RIDGE * np.eye(len(names))])
    goal = np.concatenate([goal, np.zeros(len(names))])
    found = non_negative(matrix, goal) / size
    return {name: float(value) for name, value in zip(names, found, strict=True) if value > 0}


def non_negative(matrix: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The x >= 0 for which |matrix x - goal| is least (Lawson & Hanson 1974, chapter 23).

    >>> non_negative(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    count = matrix.shape[1]
    square, side = matrix.T @ matrix, matrix.T @ goal
    x, passive = np.zeros(count), np.zeros(count, dtype=bool)
    least = 1e-10 * max(1.0, float(np.abs(side).max(initial=0.0)))
    for _ in range(10 * count):
        gradient = np.where(passive, -np.inf, side - square @ x)
        if passive.all() or gradient.max() <= least:
            break
        passive[int(gradient.argmax())] = True
        while True:
            y = np.zeros(count)
            y[passive] = np.linalg.lstsq(square[np.ix_(passive, passive)], side[passive], rcond=None)[0]
            bad = passive & (y <= 0)
            if not bad.any():
                x = y
                break
            step = float((x[bad] / (x[bad] - y[bad])).min())
            x = x + step * (y - x)
            passive &= x > 1e-15
            x[~passive] = 0.0
    return x
