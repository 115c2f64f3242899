"""Collect the progress of a store's searches for the page of ``ticketry report --watch``, which renews itself.

The page's script draws values that it loads from a small file beside the page; this file is rewritten every two
seconds. Only files of the store that have changed are read again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ticketry.errors import StoreError
from ticketry.files import read_bytes, write_atomically
from ticketry.records.campaign import read_campaign_record
from ticketry.records.run import PROGRESS_SECONDS, Progress, ProgressPoint, read_run
from ticketry.report.tables.results import summarise

MOST_DONE = 12
_DEAD = 5 * PROGRESS_SECONDS
"""Seconds without an update after which a process counts as killed; a running process writes every two seconds."""
_LARGEST = 1 << 24

T = TypeVar("T")


class Watch:
    """Reads runs, campaigns and progress of a store repeatedly, each file only after it has changed.

    Args:
        running: function that lists the progress files.
        done: function that lists the record files of finished runs.
        campaigns: function that lists the record files of campaigns.
        read: function that returns the values of a record; for a wrong digest, it returns None or raises an error.
    """

    def __init__(
        self,
        running: Callable[[], Iterable[Path]],
        done: Callable[[], Iterable[Path]],
        campaigns: Callable[[], Iterable[Path]],
        read: Callable[[Path], object],
    ) -> None:
        self._places, self._read = (running, done, campaigns), read
        self._known: dict[Path, tuple[tuple[int, int], Any]] = {}
        """For each file that was read: its modification time and size, and the values made of its contents."""

    def current_state(self) -> dict[str, Any]:
        """Return, as JSON values, everything that the page shows."""
        running, done, campaigns = (list(place()) for place in self._places)
        self._known = {path: self._known[path] for path in (*running, *done, *campaigns) if path in self._known}
        now = time.time()
        alive = [
            one for one in self._read_valid(running, _read_progress, _describe_running_run) if now - one["at"] < _DEAD
        ]
        names = {one["name"] for one in alive}
        newest = sorted(done, key=_modified_at, reverse=True)[:MOST_DONE]
        campaigns.sort(key=_modified_at, reverse=True)
        return {
            "at": now,
            "every": PROGRESS_SECONDS,
            "runs": alive
            + [one for one in self._read_valid(newest, self._read, _describe_finished_run) if one["name"] not in names],
            "campaigns": list(self._read_valid(campaigns, self._read, _describe_campaign)),
        }

    def _read_valid(
        self, paths: Iterable[Path], read: Callable[[Path], T], convert: Callable[[T], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield `convert(read(path))` for each file; unchanged files are not read again, damaged files are skipped."""
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                stamp = status.st_mtime_ns, status.st_size
                if self._known.get(path, (None, None))[0] != stamp:
                    made = None
                    with contextlib.suppress(StoreError, msgspec.MsgspecError, ValueError, RecursionError):
                        made = convert(read(path))
                    self._known[path] = stamp, made
                if (found := self._known[path][1]) is not None:
                    yield found


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the script file that the page loads repeatedly; it passes `state` to the page's function `show`."""
    write_atomically(path, f"show({json.dumps(state)});\n".encode())


def _read_progress(path: Path) -> Progress:
    return msgspec.json.decode(read_bytes(path, most=_LARGEST), type=Progress)


def _modified_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _describe_running_run(progress: Progress) -> dict[str, Any]:
    return {
        **_page_run_fields(
            progress.run, progress.title, progress.task, progress.metric, progress.unit, progress.higher_is_better
        ),
        "state": "running",
        "at": progress.at,
        "began": progress.began,
        "left": progress.seconds_left,
        "expected": progress.expected,
        "networks": len(progress.points),
        "active": [msgspec.to_builtins(one) for one in progress.active],
        "levels": _level_summaries(progress.points),
    }


def _describe_finished_run(values: object) -> dict[str, Any]:
    record = read_run(values)
    metric = record.task.metric
    points = [ProgressPoint(p.replicate, p.level, p.role, p.density, p.metric(metric.name)) for p in record.points]
    return {
        **_page_run_fields(
            record.name, record.title, record.task.name, metric.words, metric.unit, metric.higher_is_better
        ),
        "state": "done",
        "expected": len(points),
        "networks": len(points),
        "active": [],
        "levels": _level_summaries(points),
    }


def _page_run_fields(name: str, title: str, task: str, metric: str, unit: str, higher: bool) -> dict[str, Any]:
    return {"name": name, "title": title, "task": task, "metric": metric, "unit": unit, "higher": higher}


def _level_summaries(points: Iterable[ProgressPoint]) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], list[ProgressPoint]] = {}
    for point in points:
        found.setdefault((point.level, point.role), []).append(point)
    levels = []
    for (level, role), group in sorted(found.items()):
        values, density = (summarise(getattr(point, name) for point in group) for name in ("value", "density"))
        of = {"level": level, "role": role, "density": density.mean}
        levels.append({**of, "mean": values.mean, "sd": values.sd, "n": values.n})
    return levels


def _describe_campaign(values: object) -> dict[str, Any]:
    record = read_campaign_record(values)
    claims = [
        {"name": one.name, "found": one.found, "difference": one.difference, "n": one.n, "limit": one.limit}
        for one in record.claims
    ]
    return {
        "name": record.name,
        "title": record.title,
        "decided": sum(one["found"] != "undecided" for one in claims),
        "claims": claims,
    }
