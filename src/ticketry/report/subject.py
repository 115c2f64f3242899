"""What a page is about: runs and the evidence that belongs to them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import structs

from ticketry.errors import UsageError
from ticketry.records.evidence import KINDS, EvidenceValues, StabilityRecord, VerifyRecord, read_evidence
from ticketry.records.run import RunValues
from ticketry.records.speed import SpeedRecord
from ticketry.records.verdict import Task
from ticketry.report.tables.results import Results, results_of
from ticketry.report.wording import NONE, clean, shortened

_LONGEST = 28


@dataclass(frozen=True)
class Subject:
    """One run or several, and the evidence that belongs to them."""

    runs: tuple[Results, ...]
    verifications: tuple[VerifyRecord, ...] = ()
    studies: tuple[StabilityRecord, ...] = ()
    speeds: tuple[SpeedRecord, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.runs)

    @cached_property
    def by_task(self) -> Mapping[Task, tuple[int, ...]]:
        """The numbers of the runs that can share axes, by task (that of the first): same data, model and metric."""
        found: dict[Task, list[int]] = {}
        for index, results in enumerate(self.runs):
            own = results.run.task
            task = next((task for task in found if _share_axes(task, own)), own)
            found.setdefault(task, []).append(index)
        return {task: tuple(indices) for task, indices in found.items()}


_ALIKE = 0.02
"""Difference of denominators up to which densities may stand on one axis: masks of channels are of norms and biases
too, which others leave out."""


def _share_axes(one: Task, other: Task) -> bool:
    same = structs.replace(one, prunable=0) == structs.replace(other, prunable=0)
    return same and abs(one.prunable - other.prunable) <= _ALIKE * max(one.prunable, other.prunable)


def subject_of(records: RunValues | Sequence[RunValues], evidence: Iterable[EvidenceValues] = ()) -> Subject:
    """Read one run record or several, and evidence records.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed.
    """
    several = records if isinstance(records, Sequence) else [records]
    runs = tuple(results_of(record) for record in several)
    if not runs:
        raise UsageError("a report needs at least one run record")
    names = [results.run.name for results in runs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the run {name!r:.80} is given twice: give each run once")
    read_all = [read_evidence(record) for record in evidence]
    return Subject(
        runs,
        tuple(one for one in read_all if isinstance(one, VerifyRecord)),
        tuple(one for one in read_all if isinstance(one, StabilityRecord)),
        tuple(one for one in read_all if isinstance(one, SpeedRecord)),
    )


@dataclass(frozen=True)
class Series:
    """One run among others: its short name and its number, which sets its colour and marker on the whole page."""

    label: str
    index: int
    results: Results


def series_of(subject: Subject, indices: Sequence[int]) -> list[Series]:
    """The runs of one task: each with the colour it has on the whole page, named among these alone."""
    labels = labels_of([subject.runs[index] for index in indices])
    return [Series(label, index, subject.runs[index]) for label, index in zip(labels, indices, strict=True)]


def labels_of(runs: Sequence[Results]) -> tuple[str, ...]:
    """Return a short label for each run, no two alike.

    A run that the user has named has that name. The others have their method and the fewest facts that tell them apart,
    else their default names.
    """
    own = [shortened(results.run.label, 2 * _LONGEST) for results in runs]
    for facts in _facts(runs):
        told = [shortened(", ".join(parts), 2 * _LONGEST) for parts in zip(*facts, strict=True)]
        labels = [name or label for name, label in zip(own, told, strict=True)]
        if len(set(labels)) == len(runs):
            return tuple(labels)
    short = [shortened(results.run.name, _LONGEST) for results in runs]
    return tuple(f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, start=1))


def _facts(runs: Sequence[Results]) -> Iterator[Sequence[Sequence[str]]]:
    """Yield facts that may tell runs apart, each a text for every run.

    The method is always one of them. What was run comes before the number of replicates.
    """
    tasks = [results.run.task.title for results in runs]
    methods = [results.run.known_as for results in runs]
    rewinds = [f"rewind {rewind_of(results) or NONE}" for results in runs] if _rewound(runs) else []
    replicates = [f"n = {results.replicates}" for results in runs]
    settings = list(_methods_told_apart(runs))
    telling = [texts for texts in (tasks, rewinds) if len(set(texts)) > 1]
    chosen = [facts for count in range(len(telling) + 1) for facts in itertools.combinations(telling, count)]
    some = [[*(each for each in (tasks, methods, rewinds) if each is methods or each in facts)] for facts in chosen]
    yield from some
    yield from ([settings], [tasks, settings])
    yield from ([*facts, replicates] for facts in some)
    yield from ([settings, replicates], [tasks, settings, replicates])


def _rewound(runs: Sequence[Results]) -> bool:
    """Whether all were asked for a rewind step: of other methods it is a step of their own, which names nothing."""
    return all("rewind" in results.run.settings for results in runs)


_PLACES = {"profile"}
"""Settings that say where a file lies: what is in it may be the same, and is part of a run's name where it counts."""


def _methods_told_apart(runs: Sequence[Results]) -> Iterator[str]:
    """Each run's method, and what is its own among the runs of that method: the score first, then other settings.

    A setting that most of these runs share is not repeated for each; the score is, as it names the run best. What a
    record lacks came later than it, and is no difference.
    """
    for results in runs:
        settings = results.run.effective_settings
        alike = [other.run.effective_settings for other in runs if other.run.known_as == results.run.known_as]
        own = [name for name in settings if name not in _PLACES and _is_own(name, settings[name], alike)]
        own.sort(key=lambda name: name != "score")
        yield ", ".join([results.run.known_as, *(_setting(name, settings[name]) for name in own)])


def _is_own(name: str, value: object, alike: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the value tells a run from others of its method: not all have it, nor is it the commonest of all."""
    values = [settings[name] for settings in alike if name in settings]
    counts = [values.count(one) for one in values]
    if min(counts) == len(values):
        return False
    commonest = max(counts)
    several = counts.count(commonest) > commonest  # two values are as common: neither is the usual one
    return name == "score" or several or values.count(value) < commonest


def _setting(name: str, value: object) -> str:
    """A setting in words: `score` is told by its value alone, and what is on or off by its name."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else _opposite(words)
    return _in_words(value) if name == "score" and value else f"{words} {_in_words(value) or NONE}"


def _opposite(words: str) -> str:
    """What a setting that is off says: "weighed" of `unweighed`, "no structured" of `structured`."""
    return words.removeprefix("un") if words.startswith("un") else f"no {words}"


def _in_words(value: object) -> str:
    return " ".join(map(_in_words, value)) if isinstance(value, (list, tuple)) else f"{value}".removesuffix(".0")


def rewind_of(results: Results) -> str:
    """The rewind step as it was asked for, or failing that its step; empty if the record tells neither."""
    asked, step = results.run.settings.get("rewind"), results.run.steps.rewind
    if isinstance(asked, str) and asked:
        return clean(asked)
    return f"step {step:,}" if step is not None else ""


def evidence_of(store_root: Path, run_names: Collection[str]) -> list[dict[str, Any]]:
    """The records in `<store>/evidence` that name one of the runs, by file name.

    Raises:
        StoreError: if a file there cannot be read or is damaged.
    """
    from ticketry.lab.store.files import read_sealed
    from ticketry.lab.store.paths import Paths

    wanted, found = set(run_names), []
    for path in Paths(store_root).evidence_records():
        record = read_sealed(path)
        if record is None:  # it went away just now
            continue
        if str(record.get("kind")) in KINDS and wanted & _runs(record):
            found.append(record)
    return found


def _runs(record: dict[str, Any]) -> set[str]:
    several = record.get("runs")
    named = [record.get("run"), *(several if isinstance(several, list) else [])]
    return {name for name in named if isinstance(name, str) and name}
