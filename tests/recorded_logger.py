"""A logger that records its calls."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.lab.loggers import Logged


class Recorded:
    """A logger that records its calls and rejects calls that the protocol forbids."""

    def __init__(self, there: tuple[str, ...] = ()) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.there = there
        self.threads: set[int] = set()

    def start(self, run: Logged) -> bool:
        assert run.name not in self.runs or self.runs[run.name]["finished"]
        self.threads.add(threading.get_ident())
        self.runs[run.name] = {"run": run, "metrics": [], "artifacts": [], "finished": False, "failed": False}
        return run.name not in self.there

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        mine = self._open(run)
        assert not mine["metrics"] or mine["metrics"][-1][0] <= step
        mine["metrics"].append((step, dict(values)))

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        assert path.exists()
        self._open(run)["artifacts"].append((path, kind))

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        self._open(run).update(finished=True, failed=failed)

    def where(self) -> str:
        return "in memory"

    def _open(self, run: Logged) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        assert not self.runs[run.name]["finished"]
        return self.runs[run.name]
