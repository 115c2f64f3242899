"""Which channels lie side by side, so that bfloat16's pairs are kept or pruned together as often as may be.

Kernels multiply two neighbouring channels at once, and a pair of which one is kept takes as long as one of two. The
order of a stream's channels is the engine's own, as far as the rows of each producer's groups stay neighbours: within
those runs, channels that the stream's readers keep together are put side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ticketry.core.structure.groups import row_groups
from ticketry.engine.plan.sketch import Sketch, Task

Array = np.ndarray[Any, Any]

_MOST = 256
"""Channels that are paired among themselves: a longer run is cut."""


def paired(sketch: Sketch, orders: Mapping[int, Array], lanes: int) -> dict[int, Array]:
    """Orders of streams (by root, as `orders`), with the channels of each run of rows in pairs."""
    storages = sketch.storages
    pinned = {storages.orders.find(one) for one in storages.pinned}
    readers: dict[int, list[Array]] = {}
    writers: dict[int, list[Array]] = {}
    for task in sketch.tasks:
        if task.node is None or task.output is None or task.kind not in ("conv2d", "linear"):
            continue
        if task.node.attrs.get("groups", 1) == 1:
            read = storages.orders.find(int(task.inputs[0].flat[0, 0]))
            readers.setdefault(read, []).append(_support(sketch, task, lanes))
            writers.setdefault(storages.orders.find(int(task.output.flat[0, 0])), []).append(_labels(sketch, task))
    found = dict(orders)
    for root, supports in readers.items():
        if root in pinned:
            continue
        kept = np.concatenate(supports, axis=1)
        order = orders.get(root, np.arange(len(kept)))
        labels = [each[order] for each in writers.get(root, [])]
        found[root] = order[_paired_runs(kept[order], labels)]
    return found


def _support(sketch: Sketch, task: Task, lanes: int) -> Array:
    """Which channels a layer keeps, float32 [channels, groups * taps]: the root of the work that a pair of them is."""
    assert task.node is not None
    assert task.output is not None
    weight = sketch.weight(task.node)
    groups = [group for group in row_groups(weight) if group.width]
    channels = task.inputs[0].channels
    if not groups:
        return np.zeros((channels, 0), np.float32)
    first = weight.detach().cpu().numpy()[[int(group.rows[0]) for group in groups]] != 0
    work = [-(-len(group.rows) // lanes) * task.output.pixels[0] * task.output.pixels[1] for group in groups]
    scaled = first.reshape(len(groups), channels, -1) * np.sqrt(np.array(work, np.float32))[:, None, None]
    return np.ascontiguousarray(scaled.swapaxes(0, 1).reshape(channels, -1), np.float32)


def _labels(sketch: Sketch, task: Task) -> Array:
    """The group of each row of a layer."""
    assert task.node is not None
    weight = sketch.weight(task.node)
    labels = np.zeros(weight.shape[0], np.int64)
    for number, group in enumerate(row_groups(weight)):
        labels[np.asarray(group.rows)] = number
    return labels


def _paired_runs(kept: Array, labels: list[Array]) -> Array:
    """An order of the rows of `kept` that stays within runs of equal labels."""
    count = len(kept)
    new = np.zeros(count, bool)
    for each in labels:
        new[1:] |= each[1:] != each[:-1]
    order = np.arange(count)
    for run in np.split(order, np.flatnonzero(new)):
        # Pairs begin at even places: the channel before the run's first one is its neighbour's.
        even = run[run[0] % 2 :] if len(run) else run
        for some in np.split(even, range(_MOST, len(even), _MOST)):
            if len(some) > 2:
                order[some] = some[pairs_of(kept[some] @ kept[some].T)]
    return order


def pairs_of(together: Array) -> Array:
    """An order of things in which neighbours 2c and 2c + 1 have much in common: those with the most first.

    Args:
        together: [n, n], symmetric: what two things have in common.
    """
    count = len(together)
    rows, columns = np.triu_indices(count, 1)
    free = np.ones(count, bool)
    pairs: list[tuple[int, int]] = []
    for index in np.argsort(-together[rows, columns], kind="stable").tolist():
        one, other = int(rows[index]), int(columns[index])
        if free[one] and free[other]:
            free[one] = free[other] = False
            pairs.append((one, other))
            if len(pairs) == count // 2:
                break
    _exchanged(together, pairs)
    return np.array([*(one for pair in sorted(pairs) for one in pair), *np.flatnonzero(free)], dtype=np.int64)


def _exchanged(together: Array, pairs: list[tuple[int, int]]) -> None:
    """Exchange partners between two pairs as long as that gives more."""
    better = True
    while better:
        better = False
        for i in range(len(pairs)):
            for j in range(i):
                (a, b), (c, d) = pairs[i], pairs[j]
                now = together[a, b] + together[c, d]
                crossed, straight = together[a, d] + together[c, b], together[a, c] + together[b, d]
                if max(crossed, straight) > now * (1 + 1e-6):
                    pairs[i], pairs[j] = ((a, d), (c, b)) if crossed >= straight else ((a, c), (b, d))
                    better = True
