"""Read the subject of a page (one or several runs with their evidence), and choose labels for the runs."""

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
from ticketry.records.ticket import SpeedRecord
from ticketry.records.verdict import Task
from ticketry.report.tables.results import Results, results_of
from ticketry.report.wording import NONE, printable, shorten_middle

_LONGEST = 28


@dataclass(frozen=True)
class Subject:
    """The subject of a page: one or several runs, and the evidence about them."""

    runs: tuple[Results, ...]
    verifications: tuple[VerifyRecord, ...] = ()
    studies: tuple[StabilityRecord, ...] = ()
    speeds: tuple[SpeedRecord, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.runs)

    @cached_property
    def run_indices_by_task(self) -> Mapping[Task, tuple[int, ...]]:
        """Indices of runs by task; runs with the same data, model and metric are in one group and can share axes."""
        found: dict[Task, list[int]] = {}
        for index, results in enumerate(self.runs):
            own = results.run.task
            task = next((task for task in found if _can_share_axes(task, own)), own)
            found.setdefault(task, []).append(index)
        return {task: tuple(indices) for task, indices in found.items()}

    def runs_with_indices(self, indices: Sequence[int]) -> list[Results]:
        return [self.runs[index] for index in indices]

    def labels_distinguishing_runs(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Return labels for the runs with these indices; the labels only distinguish these runs from each other."""
        return labels_of(self.runs_with_indices(indices))

    @property
    def network_count(self) -> int:
        """Total number of trained networks in all runs."""
        return sum(len(results.run.points) for results in self.runs)

    @property
    def roles(self) -> list[str]:
        """All roles of networks that occur in the runs, without repeats."""
        return list(dict.fromkeys(role for results in self.runs for role in results.roles))

    @property
    def retrain_modes(self) -> list[str]:
        """How the runs train tickets again: the values of their setting `retrain`, without repeats."""
        modes = [results.run.settings.get("retrain") for results in self.runs]
        return list(dict.fromkeys(mode for mode in modes if isinstance(mode, str) and mode))

    @property
    def metric_statistics(self) -> set[str]:
        """Statistics that summarise the metrics over replicates: ``mean``, ``iqm`` (interquartile mean) or both."""
        return {results.run.task.metric.summary for results in self.runs}


_ALIKE = 0.02
"""Largest relative difference in the number of prunable weights between runs that share a density axis. The number
differs since channel masks also cover norms and biases."""


def _can_share_axes(one: Task, other: Task) -> bool:
    same = structs.replace(one, prunable=0) == structs.replace(other, prunable=0)
    return same and abs(one.prunable - other.prunable) <= _ALIKE * max(one.prunable, other.prunable)


def read_report_subject(records: RunValues | Sequence[RunValues], evidence: Iterable[EvidenceValues] = ()) -> Subject:
    """Read run records and evidence records as the subject of a page."""
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
    """A run in a figure: its label, its results, and its index, which sets colour and marker on the whole page."""

    label: str
    index: int
    results: Results


def labelled_runs(subject: Subject, indices: Sequence[int]) -> list[Series]:
    """Return the runs with these indices, with labels that distinguish them from each other."""
    labels = labels_of([subject.runs[index] for index in indices])
    return [Series(label, index, subject.runs[index]) for label, index in zip(labels, indices, strict=True)]


def labels_of(runs: Sequence[Results]) -> tuple[str, ...]:
    """Return a short, unique label for each run.

    The label of a run that the user has named is this name. The label of any other run has its method and the fewest
    facts that distinguish the runs. If no facts distinguish the runs, the label is the default name.
    """
    own = [shorten_middle(results.run.label, 2 * _LONGEST) for results in runs]
    for facts in _label_candidates(runs):
        described = [shorten_middle(", ".join(parts), 2 * _LONGEST) for parts in zip(*facts, strict=True)]
        labels = [name or label for name, label in zip(own, described, strict=True)]
        if len(set(labels)) == len(runs):
            return tuple(labels)
    short = [shorten_middle(results.run.name, _LONGEST) for results in runs]
    return tuple(f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, start=1))


def _label_candidates(runs: Sequence[Results]) -> Iterator[Sequence[Sequence[str]]]:
    """Yield combinations of facts that may distinguish the runs; a fact is a list with a text for every run."""
    tasks = [results.run.task.title for results in runs]
    methods = [results.run.known_as for results in runs]
    rewinds = [f"rewind {rewind_text(results) or NONE}" for results in runs if "rewind" in results.run.settings]
    rewinds = rewinds if len(rewinds) == len(runs) else []  # a step that some runs do not have cannot tell them apart
    replicates = [f"n = {results.replicates}" for results in runs]
    settings = list(_method_labels(runs))
    telling = [texts for texts in (tasks, rewinds) if len(set(texts)) > 1]
    chosen = [facts for count in range(len(telling) + 1) for facts in itertools.combinations(telling, count)]
    some = [[*(each for each in (tasks, methods, rewinds) if each is methods or each in facts)] for facts in chosen]
    yield from some
    yield from ([settings], [tasks, settings])
    yield from ([*facts, replicates] for facts in some)
    yield from ([settings, replicates], [tasks, settings, replicates])


_PATH_SETTINGS = {"profile"}
"""Settings that are paths of files; labels omit them, since files at two paths may have the same content."""


def _method_labels(runs: Sequence[Results]) -> Iterator[str]:
    """Yield, for each run, its method and the settings that distinguish it from other runs of the method, score first.

    The most common value of a setting is omitted, except for the score, which identifies a run best. A setting that is
    missing in a record is newer than the record, and does not count as a difference.
    """
    for results in runs:
        settings = results.run.effective_settings
        alike = [other.run.effective_settings for other in runs if other.run.known_as == results.run.known_as]
        own = [
            name
            for name in settings
            if name not in _PATH_SETTINGS and _setting_distinguishes_run(name, settings[name], alike)
        ]
        own.sort(key=lambda name: name != "score")
        yield ", ".join([results.run.known_as, *(_format_setting(name, settings[name]) for name in own)])


def _setting_distinguishes_run(name: str, value: object, alike: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether `value` of the setting `name` distinguishes a run from `alike`, the runs of the same method."""
    values = [settings[name] for settings in alike if name in settings]
    counts = [values.count(one) for one in values]
    if min(counts) == len(values):
        return False
    commonest = max(counts)
    several = counts.count(commonest) > commonest  # two values are equally common
    return name == "score" or several or values.count(value) < commonest


def _format_setting(name: str, value: object) -> str:
    """Return a setting as text: for `score` the value alone, for a switch its name, for others name and value."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        off = words.removeprefix("un") if words.startswith("un") else f"no {words}"  # weighed, for unweighed
        return words if value else off
    return _setting_value_text(value) if name == "score" and value else f"{words} {_setting_value_text(value) or NONE}"


def _setting_value_text(value: object) -> str:
    return (
        " ".join(map(_setting_value_text, value)) if isinstance(value, (list, tuple)) else f"{value}".removesuffix(".0")
    )


def rewind_text(results: Results) -> str:
    """Return the rewind step as the user requested it, otherwise as ``step N``; empty if the record has no step."""
    requested, step = results.run.settings.get("rewind"), results.run.steps.rewind
    if isinstance(requested, str) and requested:
        return printable(requested)
    return f"step {step:,}" if step is not None else ""


def read_evidence_about_runs(store_root: Path, run_names: Collection[str]) -> list[dict[str, Any]]:
    """Return the evidence records in a store that name one of the runs, sorted by file name."""
    from ticketry.lab.store.files import read_with_digest
    from ticketry.lab.store.paths import Paths

    wanted, found = set(run_names), []
    for path in Paths(store_root).evidence_records():
        record = read_with_digest(path)
        if record is None:  # it was removed in the meantime
            continue
        several = record.get("runs")
        named = [record.get("run"), *(several if isinstance(several, list) else [])]
        if str(record.get("kind")) in KINDS and any(isinstance(name, str) and name in wanted for name in named):
            found.append(record)
    return found
