"""Work that was trained twice, from the steps that each process logged."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A training step: its process, its time in seconds, and the digest of its outputs."""

    pid: int
    moment: float
    digest: str


def steps_of(path: Path) -> list[Step]:
    """In the order of their moments, as `counted_task` writes them; a line that a killed process left half is left."""
    lines = [line.split() for line in path.read_text().splitlines()]
    found = [Step(int(one[0]), float(one[1]), one[2]) for one in lines if len(one) == 3 and len(one[2]) == 16]
    return sorted(found, key=lambda step: step.moment)


def own(steps: Iterable[Step]) -> frozenset[str]:
    """Digests of an undisturbed search; of steps that are measured, and not trained, there are several alike."""
    return frozenset(step.digest for step in steps)


def losses(steps: Sequence[Step], needed: frozenset[str], checkpoint: float) -> dict[str, float]:
    """Return the number of repeated steps, and the seconds that the first process had spent on them.

    A loss is a sequence of steps of one process that were all repeated later. Its seconds reach from the first to
    the last of them: what the process had trained since the state that others went on from. Checkpoints bound them,
    but for steps beside a checkpoint that was just being written.
    """
    number = Counter(step.digest for step in steps)
    last = {step.digest: at for at, step in enumerate(steps)}
    rows: list[float] = []
    of: dict[int, list[tuple[int, Step]]] = {}
    for at, step in enumerate(steps):
        of.setdefault(step.pid, []).append((at, step))
    lost = 0
    for mine in of.values():
        for again, row in itertools.groupby(mine, lambda one: last[one[1].digest] > one[0]):
            if again:
                moments = [step.moment for _, step in row]
                lost += len(moments)
                rows.append(moments[-1] - moments[0])
    return {
        "steps": len(steps),
        "steps lost": lost,
        "losses": len(rows),
        "losses longer than a checkpoint's time": sum(row > checkpoint for row in rows),
        "seconds lost": round(sum(rows), 4),
        "longest loss": round(max(rows, default=0.0), 4),
        "steps of other bits": sum(count for digest, count in number.items() if digest not in needed),
    }
