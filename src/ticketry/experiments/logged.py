"""What a search and a verification tell the loggers of a lab, see `lab.loggers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.loggers.logger import Logged
from ticketry.lab.search_result import Found
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import Point
from ticketry.records.run import RunRecord

_TOLD = ("replicate", "level", "role", "density", "kept", "budget", "search_steps", "cycles")
"""Of a network: by these dashboards group, filter and sort."""


class LoggedSearch:
    """A search as a group: a run for each network, each training that a mask comes from, and the whole."""

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._dashboards, self._name = lab.dashboards, run.name
        described = run.describe()
        self._config = {"method": run.method.name, "settings": described["settings"], "seeds": described["seeds"]}
        self._of_all = {**self._config, **{name: described[name] for name in ("task", "recipe", "controls")}}
        self._of_all["replicates"] = run.replicates
        self._searched: set[tuple[int, str]] = set()

    @contextlib.contextmanager
    def whole(self) -> Iterator[Logged]:
        """The search, for the length of a block."""
        with self._dashboards.whole(self._name, "search", self._of_all, by_label=False) as run:
            yield run

    def network(self, point: Point, result: Result) -> None:
        """A trained network; a ticket with its folder."""
        told = {name: value for name in _TOLD if (value := getattr(point, name)) is not None}
        self._dashboards.training(
            result,
            name=f"replicate {point.replicate} level {point.level:02d} {point.role}",
            kind=point.role,
            group=self._name,
            config={**self._config, **told},
            values={"density": point.density, "level": point.level},
            artifacts=[(Path(point.ticket), "ticket")] if point.ticket else [],
        )

    def searched(self, replicate: int, found: Found) -> None:
        """The trainings that a ticket's mask comes from, where these are no networks of the record."""
        for number, result in enumerate(found.searched, start=1):
            key = (replicate, result.segment.key)
            if key in self._searched or result.segment.key == found.dense.segment.key:
                continue  # told already
            self._searched.add(key)
            self._dashboards.training(
                result,
                name=f"replicate {replicate} level {found.level:02d} mask {number:02d}",
                kind="mask",
                group=self._name,
                config={**self._config, "replicate": replicate, "level": found.level, "role": "mask"},
            )

    def record(self, run: Logged, record: RunRecord, folder: Path) -> None:
        """The levels, each a step: means over replicates of every role; the record with verdicts, and the run file."""
        metric = record.task.metric.name
        for level in sorted({point.level for point in record.points}):
            points = [point for point in record.points if point.level == level]
            values = {"density": fmean(point.density for point in points)}
            for role in dict.fromkeys(point.role for point in points):
                values[f"test/{metric}/{role}"] = fmean(one.metric(metric) for one in points if one.role == role)
            self._dashboards.metrics(run, values, level)
        self._dashboards.artifact(run, folder / "run.json", "verdicts")
        self._dashboards.artifact(run, folder / "run.toml", "config")


def log_verification(lab: Lab, run: Logged, record: VerifyRecord, file: Path) -> None:
    """What a verification found: the metric of every network by seed, each seed a step; its record with the verdict."""
    metric = record.task.metric.name
    for seed in range(record.n):
        values = {f"test/{metric}/{one.role}": one.values[seed] for one in record.networks}
        lab.dashboards.metrics(run, values, seed)
    numbers: dict[str, Any] = {"p": record.p, "margin": record.margin, "wins": record.verdict == "wins"}
    lab.dashboards.metrics(run, numbers, record.n)
    lab.dashboards.artifact(run, file, "verdict")
