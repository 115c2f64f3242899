"""What a page is about: runs and the evidence that belongs to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ticketry.errors import UsageError
from ticketry.report.aggregate import Results
from ticketry.report.evidence_record import StabilityStudy, Verify, read_evidence
from ticketry.report.record import Task, read
from ticketry.report.speed_record import Speed
from ticketry.report.wording import NONE, clean

_LONGEST = 28


@dataclass(frozen=True)
class Subject:
    """One run or several, and the evidence that belongs to them."""

    runs: tuple[Results, ...]
    verifications: tuple[Verify, ...] = ()
    studies: tuple[StabilityStudy, ...] = ()
    speeds: tuple[Speed, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.runs)

    @cached_property
    def by_task(self) -> Mapping[Task, tuple[int, ...]]:
        """The numbers of the runs that can share axes, by task: same data, model and metric."""
        found: dict[Task, list[int]] = {}
        for index, results in enumerate(self.runs):
            found.setdefault(results.run.task, []).append(index)
        return {task: tuple(indices) for task, indices in found.items()}


def subject_of(
    records: Mapping[str, Any] | Sequence[Mapping[str, Any]], evidence: Iterable[Mapping[str, Any]] = ()
) -> Subject:
    """Read one run record or several, and evidence records.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed.
    """
    several = [records] if isinstance(records, Mapping) else records
    runs = tuple(Results(read(record)) for record in several)
    if not runs:
        raise UsageError("a report needs at least one run record")
    names = [results.run.name for results in runs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the run {name!r:.80} is given twice: give each run once")
    read_all = [read_evidence(record) for record in evidence]
    return Subject(
        runs,
        tuple(one for one in read_all if isinstance(one, Verify)),
        tuple(one for one in read_all if isinstance(one, StabilityStudy)),
        tuple(one for one in read_all if isinstance(one, Speed)),
    )


def labels_of(runs: Sequence[Results]) -> tuple[str, ...]:
    """A short name of each run, no two alike: the fewest facts that tell all runs apart, else their names."""
    facts = (
        [f"{results.run.task.model} on {results.run.task.name}" for results in runs],
        [results.run.method for results in runs],
        [f"rewind {rewind_of(results) or NONE}" for results in runs] if _rewound(runs) else [],
        [f"n = {results.replicates}" for results in runs],
    )
    telling = [texts for texts in facts if len(set(texts)) > 1]
    for count in range(1, len(telling) + 1):
        for chosen in itertools.combinations(telling, count):
            labels = [_short(", ".join(parts), 2 * _LONGEST) for parts in zip(*chosen, strict=True)]
            if len(set(labels)) == len(runs):
                return tuple(labels)
    told = [_short(text, 2 * _LONGEST) for text in _methods_told_apart(runs)]
    if len(set(told)) == len(runs):
        return tuple(told)
    short = [_short(results.run.name, _LONGEST) for results in runs]
    return tuple(f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, start=1))


def _rewound(runs: Sequence[Results]) -> bool:
    """Whether any was asked for a rewind step: of other methods it is a step of their own, which names nothing."""
    return any("rewind" in results.run.settings for results in runs)


def _methods_told_apart(runs: Sequence[Results]) -> Iterator[str]:
    """Each run's method, and those of its settings in which runs of the method differ.

    What a record lacks came later than it, and is no difference.
    """
    for results in runs:
        alike = [other.run.settings for other in runs if other.run.method == results.run.method]
        settings = results.run.settings
        differing = [
            name for name in settings if any(name in other and other[name] != settings[name] for other in alike)
        ]
        yield ", ".join([results.run.method, *(f"{name} {_in_words(settings[name])}" for name in differing)])


def _in_words(value: object) -> str:
    return " ".join(map(_in_words, value)) if isinstance(value, (list, tuple)) else f"{value}".removesuffix(".0")


def rewind_of(results: Results) -> str:
    """The rewind point as it was asked for, or failing that its step; empty if the record tells neither."""
    asked, step = results.run.settings.get("rewind"), results.run.steps.get("rewind")
    if isinstance(asked, str) and asked:
        return clean(asked)
    return f"step {step:,}" if isinstance(step, int) else ""


def _short(name: str, most: int) -> str:
    """The text on one line, without its middle where it is too long."""
    name = clean(name).replace("\n", " ")
    return name if len(name) <= most else f"{name[: most // 2 - 4]}…{name[-most // 2 - 3 :]}"
